"""What a service counts, for Prometheus: requests, seconds, adapters."""

from __future__ import annotations

from time import perf_counter

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from fedkron.edge.runtime import Bundle

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
"""Upper bounds of the histogram of latencies."""


def adapter_metrics(bundle: Bundle) -> CollectorRegistry:
    """`fedkron_adapters` and `fedkron_adapter_bytes`, read whenever they are asked for."""
    registry = CollectorRegistry()
    number = Gauge("fedkron_adapters", "Adapters in memory", registry=registry)
    number.set_function(lambda: len(bundle.adapters))
    nbytes = Gauge("fedkron_adapter_bytes", "Bytes of all adapters in memory", registry=registry)
    nbytes.set_function(lambda: sum(adapter.nbytes for adapter in bundle.adapters.values()))
    return registry


class Measured:
    """ASGI middleware that counts requests by endpoint and status, and their seconds by endpoint.

    Metrics `fedkron_requests_total` and `fedkron_request_seconds`.
    """

    def __init__(self, app: ASGIApp, registry: CollectorRegistry) -> None:
        self._app = app
        self._requests = Counter(
            "fedkron_requests", "Requests that were answered", ["endpoint", "status"], registry=registry
        )
        self._seconds = Histogram(
            "fedkron_request_seconds",
            "Seconds from a request to its answer",
            ["endpoint"],
            buckets=SECONDS,
            registry=registry,
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass one request on."""
        status = 500  # of a request that nobody answers

        async def observed(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        start = perf_counter()
        try:
            await self._app(scope, receive, observed)
        finally:
            # The router has noted it there. Paths are not used: anyone can make up new ones.
            endpoint = getattr(scope.get("endpoint"), "__name__", "unknown")
            self._requests.labels(endpoint, status).inc()
            self._seconds.labels(endpoint).observe(perf_counter() - start)
