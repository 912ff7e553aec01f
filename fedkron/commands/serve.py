"""`fedkron serve`: a bundle behind HTTP, for the programs of this machine or network."""

from __future__ import annotations

import argparse
import logging
import signal
import socket
from contextlib import nullcontext
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING

from fedkron.errors import ConfigError

if TYPE_CHECKING:
    from fedkron.edge.runtime import Bundle

_log = logging.getLogger(__name__)

GRACE = 10
"""Seconds that requests may take to finish after the service was told to end."""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the subcommand."""
    parser = subparsers.add_parser(
        "serve",
        help="answers of a bundle over HTTP",
        description="Answer over HTTP with an exported bundle of text: POST /predict and /choose, GET "
        "/adapters, /health and /metrics. There is no authentication: whoever reaches the address may ask.",
    )
    parser.add_argument("bundle", type=Path, help="bundle folder")
    parser.add_argument("--host", default="127.0.0.1", help="address (default: this machine only)")
    parser.add_argument("--port", type=int, default=8000, help="port (default: 8000; 0: any that is free)")
    parser.add_argument(
        "--adapters",
        type=Path,
        metavar="FOLDER",
        help="also load each NAME.safetensors in this folder as adapter NAME, and follow its changes",
    )
    parser.add_argument(
        "--allow-upload",
        action="store_true",
        help="also take PUT and DELETE /adapters/NAME, from anyone who reaches the address: there is no "
        "authentication (uploads last until the service ends)",
    )
    parser.add_argument("--threads", type=int, default=0, help="CPU threads of an answer (default: all)")
    parser.set_defaults(command=serve)


def serve(options: argparse.Namespace) -> int:
    """Serve until SIGTERM or SIGINT; requests that have begun are answered before the end."""
    import uvicorn

    from fedkron.edge.adapter_folder import AdapterFolder
    from fedkron.edge.manifest import read_manifest
    from fedkron.edge.runtime import Bundle
    from fedkron.edge.service import application, check_takes_text

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    check_takes_text(read_manifest(options.bundle))
    bundle = Bundle.open(options.bundle, threads=options.threads)
    app = application(bundle, allow_upload=options.allow_upload)
    _warm_up(bundle)
    following = AdapterFolder(options.adapters, bundle).followed() if options.adapters else nullcontext()
    server = uvicorn.Server(
        uvicorn.Config(
            app,
            log_config=None,
            log_level="warning",
            access_log=False,
            lifespan="off",
            ws="none",
            server_header=False,
            timeout_graceful_shutdown=GRACE,
        )
    )

    def end(*_: object) -> None:
        server.should_exit = True

    # uvicorn has handlers of its own while it runs, and then raises the signal again for these.
    for number in signal.SIGTERM, signal.SIGINT:
        signal.signal(number, end)
    with _listening(options.host, options.port) as listener, following:
        print(f"Serving {options.bundle} ({len(bundle.adapters)} adapters) on {_url(listener)}", flush=True)
        server.run(sockets=[listener])
    return 0


def _warm_up(bundle: Bundle) -> None:
    """Load the graph now: one that cannot run ends the start, and no request has to wait for it."""
    for name, adapter in list(bundle.adapters.items())[:1]:
        for task in list(adapter.tasks)[:1]:
            bundle.logits(["warm up"], task, adapter=name)


def _listening(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listener = socket.create_server((host, port), family=family)
    except (OSError, OverflowError) as error:
        raise ConfigError(f"cannot listen on {host}, port {port} ({error}): choose others") from error
    if not ip_address(listener.getsockname()[0]).is_loopback:
        _log.warning("anyone who reaches %s may ask: there is no authentication", _url(listener))
    return listener


def _url(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
