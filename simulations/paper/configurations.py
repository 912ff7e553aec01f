"""Are the full-size configurations complete? DistilBERT and Mistral-7B, checked on the meta device.

Settings must parse, all five tasks be named, the adapter fit the model, and its parameters be the paper's,
but for what the paper trains beyond: DistilBERT's two-layer head, and the adapter on Mistral's lm_head. A run
of ours has one linear head on the hidden states instead. Bytes are payloads of a change up and one down per
client and round. Exit code 1 where something is missing.

    python -m simulations.paper.configurations
    fedkron run -c simulations/paper/distilbert.toml --nodes 5 --gpus-per-node 0.2
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from rich.console import Console

from fedkron.adapters import adapter_layout, attach
from fedkron.commands.runconfig import read_run_config
from fedkron.errors import FedKronError, RunError
from fedkron.settings import Settings
from simulations.paper.counts import CLAIMS
from simulations.paper.models import MODELS, PaperModel
from simulations.paper.study.parameters import payload_bytes
from simulations.paper.tasks import HUB
from simulations.study.command import tables_console, write
from simulations.study.tables import table_of

FOLDER = Path(__file__).resolve().parent


@dataclass(frozen=True)
class Checked:
    """What a configuration makes of its model. `beyond` is what the paper trains and a run of ours does not.

    `weights` is bytes of the base as it is held; the other bytes are both ways, per client and round.
    """

    file: str
    layers: int
    parameters: int
    beyond: int
    paper: int
    weights: int
    codec: str
    bytes: int
    lora_bytes: int

    @property
    def equal(self) -> bool:
        """Whether parameters are the paper's."""
        return self.parameters + self.beyond == self.paper


def main(arguments: Sequence[str] | None = None) -> int:
    """Check, print and write; 1 when a configuration is not complete."""
    parser = argparse.ArgumentParser(
        prog="python -m simulations.paper.configurations",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--json", metavar="PATH", help="write all figures as JSON (- for standard output)")
    options = parser.parse_args(arguments)
    try:
        found = [check(FOLDER / f"{name}.toml", model) for name, model in MODELS.items()]
    except FedKronError as error:
        print(f"configurations: {error}", file=sys.stderr)
        return 1
    show(found, tables_console(options.json))
    if options.json:
        write(json.dumps([{**asdict(one), "equal": one.equal} for one in found], indent=1), options.json)
    return 0 if all(one.equal for one in found) else 1


def check(file: Path, model: PaperModel) -> Checked:
    """Read a configuration and put its adapter on the model's shapes.

    Raises `ConfigError` for settings that do not parse, `AdapterError` for an adapter that does not fit, and
    `RunError` for another base or other tasks than the paper's.
    """
    settings = Settings.from_run_config(read_run_config(str(file)))
    if settings.base != model.base:
        raise RunError(f"{file}: base is {settings.base!r}, it must be {model.base!r}")
    if settings.task_sources != tuple(HUB.values()):
        raise RunError(f"{file}: the tasks are not those of simulations/paper/tasks.py")
    backbone = model.backbone()
    size = getattr(torch, settings.base_dtype).itemsize
    weights = size * sum(parameter.numel() for parameter in backbone.parameters())
    layout = adapter_layout(attach(backbone, settings.adapter.spec()), base="")
    adapter = settings.adapter
    claimed = next(
        claim.parameters
        for claim in CLAIMS
        if (claim.model, claim.kind, claim.rank) == (model, adapter.kind, adapter.rank)
    )
    return Checked(
        file=file.name,
        layers=len(layout.modules),
        parameters=layout.size,
        beyond=_beyond(model),
        paper=claimed,
        weights=weights,
        codec=settings.codec.upload,
        bytes=payload_bytes(layout, settings.codec.upload) + payload_bytes(layout, settings.codec.broadcast),
        lora_bytes=3 * 4 * layout.lora_size(8),
    )


def _beyond(model: PaperModel) -> int:
    """Parameters that the paper trains outside of the backbone."""
    with torch.device("meta"):
        whole = model.with_head(model.config())
    prefix = f"{whole.base_model_prefix}."
    layout = adapter_layout(attach(whole, model.spec("kron_lora")), base="")
    return sum(tensor.size for tensor in layout.tensors if not tensor.name.startswith(prefix))


def show(found: Sequence[Checked], console: Console) -> None:
    """Print a row for each configuration."""
    table = table_of(
        "Full-size configurations, on the meta device",
        *("file", "layers", "parameters", "+ beyond", "paper", "equal", "base, GB", "codec"),
        *("kB a round", "LoRA-8 fp32, kB"),
    )
    for one in found:
        table.add_row(
            one.file,
            f"{one.layers}",
            f"{one.parameters:,}",
            f"{one.beyond:,}",
            f"{one.paper:,}",
            "yes" if one.equal else "NO",
            f"{one.weights / 1e9:.1f}",
            one.codec,
            f"{one.bytes / 1000:,.1f}",
            f"{one.lora_bytes / 1000:,.0f}",
        )
    console.print(table)


if __name__ == "__main__":
    sys.exit(main())
