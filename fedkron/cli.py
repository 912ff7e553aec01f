"""The `fedkron` command. Each subcommand is one module in `fedkron.commands`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from importlib.metadata import version

from fedkron.commands import (
    audit,
    convert,
    export,
    federation,
    inspect,
    keys,
    list_published,
    merge,
    meter,
    plan,
    predict,
    publish,
    pull,
    push,
    report,
    run,
    serve,
    sweep,
    verify,
)
from fedkron.errors import FedKronError

COMMANDS = (
    run,
    federation,
    sweep,
    keys,
    report,
    meter,
    export,
    convert,
    merge,
    predict,
    serve,
    publish,
    push,
    list_published,
    verify,
    pull,
    inspect,
    audit,
    plan,
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one subcommand. Exit code 0 only on success; 1 for an error that we explain, in one line."""
    parser = argparse.ArgumentParser(
        prog="fedkron",
        description="Federated and edge exchange of Kron-LoRA adapters: kilobytes per round, Flower in, "
        "ONNX out.",
    )
    parser.add_argument("--version", action="version", version=f"fedkron {version('fedkron')}")
    subparsers = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for command in COMMANDS:
        command.add_parser(subparsers)
    options = parser.parse_args(arguments)
    try:
        return int(options.command(options))
    except FedKronError as error:
        print(f"fedkron: {error}", file=sys.stderr)
        return 1
    except ImportError as error:
        missing = error.__cause__ if isinstance(error.__cause__, ImportError) else error
        extra = EXTRAS.get((missing.name or "").partition(".")[0])
        if extra is None:
            raise
        print(f"fedkron: {missing}: install it with pip install 'fedkron[{extra}]'", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("fedkron: interrupted", file=sys.stderr)
        return 130


EXTRAS = {
    "torch": "train",
    "transformers": "train",
    "flwr": "flower",
    "psutil": "flower",
    "cryptography": "exchange",
    "dp_accounting": "privacy",
    "datasets": "data",
    "flwr_datasets": "data",
    "onnx": "export",
    "onnxscript": "export",
    "onnxruntime": "edge",
    "tokenizers": "edge",
    "PIL": "vision",
    "starlette": "serve",
    "uvicorn": "serve",
    "prometheus_client": "serve",
    "tensorboardX": "flower",
    "fsspec": "exchange",
    "huggingface_hub": "exchange",
    "s3fs": "s3",
    "plotly": "report",
    "jinja2": "report",
    "pyarrow": "sweep",
}
"""Which extra of fedkron brings an optional dependency."""


if __name__ == "__main__":
    sys.exit(main())
