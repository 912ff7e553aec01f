"""What the documentation's commands find: real products of fedkron, tiny, made once and only if asked for.

Each method takes the path that a page names (`runs/RUN`, `my-bundle`, …) and puts it there. `STAND_INS`
says which name is what; a page on which a name means something else has a line in `ON_PAGE`.
"""

import shutil
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from blocks import ROOT
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from federation_cases import (
    federate,
    grid_of,
    run_config_for,
    tiny_tokenizer,
    write_choices,
    write_texts,
)
from flwr.app import Message
from peft import LoraConfig, get_peft_model
from transformers import DistilBertConfig, DistilBertModel, LlamaConfig, LlamaForCausalLM

import clients.app
from fedkron.adapters import AdapterSpec, adapter_layout, adapter_state, attach
from fedkron.base import load_base, load_language_model
from fedkron.cli import main
from fedkron.exchange import AdapterFile, save_adapter
from fedkron.registry.signature import publisher_key
from fedkron.rundir import ADAPTER, LEDGER
from fedkron.socketlog import Crossing, SocketLog
from fedkron.sweep.grid import read_grid
from fedkron.sweep.journal import Journal
from fedkron.sweep.table import Tables
from simulations.in_process import InProcessGrid

CLUES = {
    "trec": {"person": "rose", "place": "leaf", "number": "sky"},
    "spam": {"ham": "milk", "spam": "bone"},
}


class CutOffError(Exception):
    """The server is gone."""


class FragileGrid(InProcessGrid):
    """Is cut off before the third training."""

    pushes = 0

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        self.pushes += 1
        if self.pushes > 4:
            raise CutOffError
        return super().push_messages(messages)


class Shelf:
    """Makes stand-ins; what takes long is made once, in `folder`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    # Bases and data.

    @cached_property
    def encoder(self) -> Path:
        """A DistilBERT of one layer with random weights."""
        torch.manual_seed(0)
        config = DistilBertConfig(
            vocab_size=64, dim=32, n_layers=1, n_heads=2, hidden_dim=64, max_position_embeddings=64
        )
        folder = self.folder / "encoder"
        DistilBertModel(config).save_pretrained(folder)
        tiny_tokenizer().save_pretrained(folder)
        return folder

    def base(self, path: Path) -> None:
        shutil.copytree(self.encoder, path)

    def language_base(self, path: Path) -> None:
        """A LLaMA of one layer."""
        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=64,
            hidden_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            num_key_value_heads=2,
            intermediate_size=48,
            bos_token_id=2,
            eos_token_id=3,
            pad_token_id=0,
        )
        LlamaForCausalLM(config).save_pretrained(path)
        tiny_tokenizer().save_pretrained(path)

    def texts(self, path: Path) -> None:
        write_texts(path, {"cat": "purr", "dog": "bark"}, seed=len(path.name))

    @cached_property
    def tasks(self) -> Sequence[Path]:
        """`trec`, `spam`, and `animals` with choices."""
        folder = self.folder / "tasks"
        return (
            *(write_texts(folder / name, clues, seed=1) for name, clues in CLUES.items()),
            write_choices(folder / "animals", seed=4),
        )

    # Runs.

    def config(self, output: Path, **changes: object) -> dict[str, object]:
        return run_config_for(output, self.encoder, *self.tasks, changes={"num-server-rounds": 3} | changes)

    @cached_property
    def finished(self) -> Path:
        config = self.config(self.folder / "finished")
        return federate(config, grid_of(config, 3)).folder

    def run(self, path: Path) -> None:
        shutil.copytree(self.finished, path)

    def other_run(self, path: Path) -> None:
        config = self.config(path.parent, **{"run-name": path.name, "seed": 1})
        federate(config, grid_of(config, 3))

    def grouped_run(self, path: Path) -> None:
        """Each task has an adapter of its own."""
        config = self.config(path.parent, **{"run-name": path.name, "groups.by": "task"})
        federate(config, grid_of(config, 3))

    def cut_off_run(self, path: Path) -> None:
        """The server was ended after two of three rounds."""
        config = self.config(path.parent, **{"run-name": path.name})
        grid = FragileGrid(clients.app.app, 3, config)
        try:
            federate(config, grid)
        except CutOffError:
            return
        raise AssertionError("the run was not cut off")

    def ledger(self, path: Path) -> None:
        shutil.copy(self.finished / LEDGER, path)

    def socket_log(self, path: Path) -> None:
        """One connection has crossed the socket of a node."""
        log = SocketLog(path, listen="127.0.0.1:9001", to="superlink:8000")
        log.record(Crossing(connection=1, start=0.0, end=1.0, up=1000, down=2000))
        log.close()

    # Adapters.

    def adapter(self, path: Path) -> None:
        shutil.copy(self.finished / ADAPTER, path)

    def language_adapter(self, path: Path) -> None:
        """For the language model `my/llama` of the same sandbox."""
        base = path.parent / "my" / "llama"
        if not base.exists():
            self.language_base(base)
        loaded = load_language_model(str(base))
        model = attach(loaded.backbone, AdapterSpec(rank=2, d_a2=4))
        state = {name: np.ones(values.shape, np.float32) for name, values in adapter_state(model).items()}
        save_adapter(path, AdapterFile(state, adapter_layout(model, loaded.fingerprint), str(base)))

    def peft_lora(self, path: Path) -> None:
        model = load_base(str(self.encoder)).backbone
        config = LoraConfig(r=4, target_modules=["q_lin", "v_lin"])
        get_peft_model(model, config).save_pretrained(path)

    # Bundles.

    @cached_property
    def exported(self) -> Path:
        """A bundle with the adapters `default` and `clinic-7`."""
        folder, other = self.folder / "bundle", self.folder / "other"
        self.other_run(other)
        assert main(["export", str(self.finished), "-o", str(folder)]) == 0
        assert main(["export", str(other), "--into", str(folder), "--name", "clinic-7"]) == 0
        return folder

    def bundle(self, path: Path) -> None:
        shutil.copytree(self.exported, path)

    def device_adapter(self, path: Path) -> None:
        shutil.copy(self.exported / "adapters" / "clinic-7.safetensors", path)

    def sweep_table(self, path: Path) -> None:
        """That of a sweep of which nothing has run yet."""
        grid = read_grid(ROOT / "simulations" / "sweep.toml", {}, lambda settings: settings)
        Tables(grid.cells, grid.keys, Journal(path.parent)).write()

    def publisher(self, path: Path) -> None:
        """The public key of whoever publishes."""
        key = publisher_key(None).public_key()
        path.write_bytes(key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))

    def empty_folder(self, path: Path) -> None:
        path.mkdir()


Maker = Callable[[Shelf, Path], None]

STAND_INS: dict[str, Maker] = {
    "distilbert-base-uncased": Shelf.base,
    "some/base": Shelf.base,
    "some-peft-lora": Shelf.peft_lora,
    "my/llama": Shelf.language_base,
    "data/clinic-a": Shelf.texts,
    "data/clinic-b": Shelf.texts,
    "runs/RUN": Shelf.run,
    "runs/OTHER": Shelf.other_run,
    "runs/A": Shelf.run,
    "runs/B": Shelf.other_run,
    "runs/C": Shelf.run,
    "sweeps/sweep/cells.parquet": Shelf.sweep_table,
    "a.safetensors": Shelf.adapter,
    "b.safetensors": Shelf.adapter,
    "adapter.safetensors": Shelf.adapter,
    "clinic-7.safetensors": Shelf.device_adapter,
    "my-bundle": Shelf.bundle,
    "bundle": Shelf.bundle,
    "KEY": Shelf.publisher,
    "incoming": Shelf.empty_folder,
    "ledger.jsonl": Shelf.ledger,
    "node1.jsonl": Shelf.socket_log,
}
"""What stands for a name in the documentation: made where a command names it and nothing before made it."""

ON_PAGE: dict[tuple[str, str], Maker] = {
    ("docs/faults.md", "runs/RUN"): Shelf.cut_off_run,
    ("docs/aggregation.md", "runs/RUN"): Shelf.grouped_run,
    ("docs/edge.md", "adapter.safetensors"): Shelf.language_adapter,
}
"""Names that stand for something else on one page."""
