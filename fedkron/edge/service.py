"""A bundle behind HTTP: answers, adapters by name, health and metrics. There is no authentication.

    POST   /predict         {"text" | "texts", "task", "adapter"}; task and adapter for all or one per text
    POST   /choose          {"question", "choices", "task", "adapter"}
    GET    /adapters        what is loaded
    PUT    /adapters/NAME   with a device adapter file as the body
    DELETE /adapters/NAME
    GET    /health
    GET    /metrics         for Prometheus

An error is {"error": what was wrong} with status 400 (the request), 403 (changes are switched off), 404 (an
unknown adapter or task), 409 (an adapter of another contract), 413 (too large) or 422 (an unusable adapter).
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any

from fedkron.edge.device_adapter import DeviceAdapter
from fedkron.edge.manifest import Manifest
from fedkron.edge.runtime import Bundle, Prediction
from fedkron.edge.store import DEFAULT
from fedkron.edge.texts import TextInput
from fedkron.errors import AdapterError, BundleError, ContractError, FedKronError, TaskError

try:
    from anyio import CapacityLimiter, to_thread
    from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
    from starlette.applications import Starlette
    from starlette.exceptions import HTTPException
    from starlette.middleware import Middleware
    from starlette.requests import ClientDisconnect, Request
    from starlette.responses import JSONResponse, Response
    from starlette.routing import Route

    from fedkron.edge.service_metrics import Measured, adapter_metrics
    from fedkron.edge.service_requests import names_in, read_body, read_fields, text_in, texts_in
except ImportError as error:
    raise ImportError(
        "a service needs starlette, uvicorn and prometheus-client: pip install 'fedkron[serve]'"
    ) from error

MAX_ADAPTER = 64 << 20
"""Bytes of an uploaded adapter, at most."""
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
"""Names that an uploaded adapter may have."""

Handler = Callable[[Request, Exception], Response]


def application(bundle: Bundle, *, allow_upload: bool) -> Starlette:
    """The service as an ASGI application; PUT and DELETE are answered with 403 unless `allow_upload`.

    Raises `BundleError` for a bundle that does not take text.
    """
    check_takes_text(bundle.manifest)
    service = _Service(bundle, allow_upload)
    registry = adapter_metrics(bundle)

    def metrics(_: Request) -> Response:
        return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)

    handlers: dict[Any, Handler] = {
        HTTPException: _answer_http_error,
        ContractError: _answer_with(409),
        AdapterError: _answer_with(422),
        FedKronError: _answer_with(400),
        ClientDisconnect: _answer_with(400),
        Exception: _answer_unexpected,
    }
    return Starlette(
        routes=[
            Route("/predict", service.predict, methods=["POST"]),
            Route("/choose", service.choose, methods=["POST"]),
            Route("/adapters", service.adapters, methods=["GET"]),
            Route("/adapters/{name}", service.adapter, methods=["PUT", "DELETE"]),
            Route("/health", service.health, methods=["GET"]),
            Route("/metrics", metrics, methods=["GET"]),
        ],
        middleware=[Middleware(Measured, registry=registry)],
        exception_handlers=handlers,
    )


def check_takes_text(manifest: Manifest) -> None:
    """Raise `BundleError` for a bundle of images, or one of a language model."""
    if not isinstance(manifest.input, TextInput):
        raise BundleError(
            "this bundle is for images or a language model, a service answers texts: use `fedkron predict`"
        )


class _Service:
    """The endpoints; their names are those in the metrics."""

    def __init__(self, bundle: Bundle, allow_upload: bool) -> None:
        self._bundle = bundle
        self._allow_upload = allow_upload
        # More at once would only wait for a core, with their activations in memory.
        self._cores = CapacityLimiter(os.cpu_count() or 1)

    async def predict(self, request: Request) -> Response:
        fields = {"adapter": DEFAULT} | await read_fields(request, {"text", "texts", "task", "adapter"})
        if ("text" in fields) == ("texts" in fields):
            raise HTTPException(400, "send either field 'text' or field 'texts'")
        texts = texts_in(fields, "texts") if "texts" in fields else [text_in(fields, "text")]
        tasks, adapters = names_in(fields, "task", len(texts)), names_in(fields, "adapter", len(texts))
        return await self._answer(
            lambda: self._bundle.predict(texts, tasks, adapter=adapters), adapters, tasks
        )

    async def choose(self, request: Request) -> Response:
        known = {"question", "choices", "task", "adapter"}
        fields = {"adapter": DEFAULT} | await read_fields(request, known)
        question, choices = text_in(fields, "question"), texts_in(fields, "choices")
        task, adapter = text_in(fields, "task"), text_in(fields, "adapter")
        return await self._answer(
            lambda: [self._bundle.choose(question, choices, task, adapter=adapter)], [adapter], [task]
        )

    def adapters(self, _: Request) -> Response:
        found = [_description(name, adapter) for name, adapter in self._bundle.adapters.items()]
        return JSONResponse({"adapters": found})

    async def adapter(self, request: Request) -> Response:
        if not self._allow_upload:
            raise HTTPException(
                403, "adapters cannot be changed: this service was started without --allow-upload"
            )
        name = request.path_params["name"]
        if not NAME.fullmatch(name):
            raise HTTPException(400, f"adapter name {name!r} does not match {NAME.pattern}")
        if request.method == "DELETE":
            return await to_thread.run_sync(self._drop, name)
        content = await read_body(request, MAX_ADAPTER)
        return await to_thread.run_sync(self._take, name, content)

    def health(self, _: Request) -> Response:
        manifest = self._bundle.manifest
        facts = {"contract": manifest.layout.contract, "base": manifest.base_name}
        return JSONResponse({"status": "ok"} | facts | {"adapters": len(self._bundle.adapters)})

    async def _answer(
        self, ask: Callable[[], list[Prediction]], adapters: Sequence[str], tasks: Sequence[str]
    ) -> Response:
        def timed() -> Response:
            start = perf_counter()
            answers = [asdict(prediction) for prediction in ask()]
            return JSONResponse({"answers": answers, "milliseconds": (perf_counter() - start) * 1000})

        try:
            return await to_thread.run_sync(timed, limiter=self._cores)
        except TaskError as error:
            raise HTTPException(_status(self._bundle, adapters, tasks), str(error)) from error

    def _take(self, name: str, content: bytes) -> Response:
        status = 200 if name in self._bundle.adapters else 201
        with TemporaryDirectory(prefix="fedkron-") as folder:
            path = Path(folder, name)
            path.write_bytes(content)
            try:
                self._bundle.load(path, name)
            except FedKronError as error:
                # Where the file lay is nobody's business.
                raise type(error)(str(error).replace(str(path), f"adapter {name!r}")) from error
        return JSONResponse({"name": name}, status)

    def _drop(self, name: str) -> Response:
        try:
            self._bundle.unload(name)
        except TaskError as error:
            raise HTTPException(404, str(error)) from error
        return Response(status_code=204)


def _description(name: str, adapter: DeviceAdapter) -> dict[str, Any]:
    tasks = [{"name": h.name, "kind": h.kind, "labels": list(h.labels)} for h in adapter.heads]
    return {"name": name, "tasks": tasks, "bytes": adapter.nbytes, "sha256": _digest(adapter)}


def _digest(adapter: DeviceAdapter) -> str:
    """SHA-256 of the tensors' bytes, slot before heads: the same wherever the adapter is loaded."""
    tensors = [*adapter.arrays.values(), *(head.weights for head in adapter.heads)]
    return hashlib.sha256(b"".join(tensor.tobytes() for tensor in tensors)).hexdigest()


def _status(bundle: Bundle, adapters: Sequence[str], tasks: Sequence[str]) -> int:
    """Of a question that could not be answered: 404 if it was about something that is not there, else 400."""
    known = all(
        adapter in bundle.adapters and task in bundle.tasks(adapter)
        for adapter, task in set(zip(adapters, tasks, strict=True))
    )
    return 400 if known else 404


def _answer_http_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return JSONResponse({"error": error.detail}, error.status_code, error.headers)


def _answer_with(status: int) -> Handler:
    return lambda _, error: JSONResponse({"error": str(error)}, status)


def _answer_unexpected(_: Request, error: Exception) -> Response:
    return JSONResponse({"error": f"unexpected {type(error).__name__}, see the service's log"}, 500)
