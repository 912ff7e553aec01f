"""Ask a bundle in the browser.

python -m export.web bundles/demo
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from export.web.server import make_server
from fedkron.errors import FedKronError


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve page and bundle until interrupted; 1 when that cannot start."""
    options = _parser().parse_args(arguments)
    try:
        server = make_server(options.bundle, host=options.host, port=options.port)
    except (FedKronError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    with server:
        print(f"Open http://{options.host}:{server.server_port}/ in a browser (Ctrl+C ends).", flush=True)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            print()
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m export.web", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("bundle", type=Path, help="folder of the bundle")
    parser.add_argument("--port", type=int, default=8000, help="0 is any free one (default: %(default)s)")
    parser.add_argument(
        "--host",
        default="127.0.0.1",
        help="address to listen on (default: %(default)s; browsers run the page from another machine over "
        "https only)",
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
