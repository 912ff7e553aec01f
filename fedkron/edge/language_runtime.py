"""Run a language model's bundle on a CPU: no torch, no transformers.

`LanguageModel.open(Path("my-bundle")).generate(["Once upon a time"])` is all that it takes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from fedkron.edge.device_adapter import DeviceAdapter
from fedkron.edge.generation import Generator
from fedkron.edge.language_model import LanguageModelInput
from fedkron.edge.manifest import TOKENIZER, UNMERGED, Manifest, read_manifest, verify_files
from fedkron.edge.session import open_session
from fedkron.edge.store import DEFAULT, AdapterStore, slot_feeds
from fedkron.edge.texts import Feeds
from fedkron.errors import BundleError, TaskError


@dataclass(frozen=True)
class Sampling:
    """How a text is continued: see `fedkron.edge.generation.Generator.generate`."""

    max_new_tokens: int = 128
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0


class LanguageModel:
    """An opened bundle that continues texts. Make one with `LanguageModel.open`.

    It holds adapters by name, like `fedkron.edge.runtime.Bundle`; `adapter=None` asks the bare base. All
    methods may be called from several threads.
    """

    def __init__(self, folder: Path, manifest: Manifest, store: AdapterStore, threads: int) -> None:
        self.manifest = manifest
        self._folder = folder
        self._store = store
        self._threads = threads
        self._exported = store[DEFAULT]

    @staticmethod
    def open(folder: Path, *, threads: int = 0) -> LanguageModel:
        """Open a bundle after checking every file in it; `threads` is what one call may use, 0 for all cores.

        Raises `BundleError` when it is incomplete, damaged, of another version or not of a language model,
        `ContractError` when its parts do not belong together.
        """
        manifest = read_manifest(folder)
        if not isinstance(manifest.input, LanguageModelInput):
            raise BundleError(f"{folder} does not generate text: open it with fedkron.edge.runtime.Bundle")
        verify_files(folder, manifest)
        store = AdapterStore(manifest.slot, manifest.hidden_size)
        for entry in manifest.adapters:
            store.load(folder / entry.file, entry.name)
        return LanguageModel(folder, manifest, store, threads)

    @property
    def adapters(self) -> Mapping[str, DeviceAdapter]:
        """The adapters that are loaded at this moment, by name."""
        return self._store.snapshot()

    def load(self, path: Path, name: str = "") -> str:
        """Load an adapter from a file and return its name; see `fedkron.edge.runtime.Bundle.load`."""
        return self._store.load(path, name)

    def unload(self, name: str) -> None:
        """Drop an adapter; raises `TaskError` when it is not loaded."""
        self._store.drop(name)

    def generate(
        self,
        prompts: Sequence[str],
        sampling: Sampling = Sampling(),
        *,
        adapter: str | Sequence[str | None] | None = DEFAULT,
        merged: bool = False,
    ) -> list[str]:
        """Continue several prompts together; `adapter` is that of all, or one for each.

        Raises like `Generator.generate`, `TaskError` for an adapter that is not there, `BundleError` for
        `merged` where the bundle has no such graph or it is not the default adapter that is asked.
        """
        names = [adapter] * len(prompts) if adapter is None or isinstance(adapter, str) else list(adapter)
        if len(names) != len(prompts):
            raise TaskError(
                f"there are {len(names)} adapters for {len(prompts)} prompts: give one, or one each"
            )
        generator, feeds = self._chosen(names, merged)
        return generator.generate(prompts, adapter=feeds, **asdict(sampling))

    def stream(
        self,
        prompt: str,
        sampling: Sampling = Sampling(),
        *,
        adapter: str | None = DEFAULT,
        merged: bool = False,
    ) -> Iterator[str]:
        """Continue a prompt piece by piece. Raises like `generate`."""
        generator, feeds = self._chosen([adapter], merged)
        return generator.stream(prompt, adapter=feeds, **asdict(sampling))

    def next_logits(
        self, prompt: str, *, adapter: str | None = DEFAULT, merged: bool = False
    ) -> npt.NDArray[np.float32]:
        """What the model gives for the token after a prompt: (vocabulary,). Raises like `generate`."""
        generator, feeds = self._chosen([adapter], merged)
        found: list[npt.NDArray[np.float32]] = []

        def note(logits: npt.NDArray[np.float32]) -> npt.NDArray[np.int64]:
            found.append(logits[0])
            return np.asarray(np.argmax(logits, -1), np.int64)

        ids = generator.tokenizer.encode(prompt).ids
        for _ in generator.tokens([ids], note, adapter=feeds, max_new_tokens=1):
            pass
        return found[0]

    def _chosen(self, names: Sequence[str | None], merged: bool) -> tuple[Generator, Feeds]:
        adapters = [self._bare if name is None else self._store[name] for name in names]
        if not merged:
            if not self.manifest.slot.per_row and any(adapter is not adapters[0] for adapter in adapters):
                raise TaskError("this model takes one adapter at a time: ask for each one by itself")
            return self._unmerged, slot_feeds(adapters) if adapters else {}
        if not self.manifest.merged:
            raise BundleError("this bundle has no merged graph: ask with merged=False, or export it")
        if any(adapter is not self._exported for adapter in adapters):
            raise BundleError(
                "the merged graph holds the adapter of the export alone: ask with merged=False, or export"
            )
        return self._merged, {}

    @cached_property
    def _bare(self) -> DeviceAdapter:
        """An adapter that changes nothing."""
        slot = self.manifest.slot
        return DeviceAdapter("", slot.adapter.contract, slot.hash, slot.zeros(), ())

    @cached_property
    def _unmerged(self) -> Generator:
        return self._generator(UNMERGED)

    @cached_property
    def _merged(self) -> Generator:
        return self._generator(next(iter(self.manifest.merged.values())))

    def _generator(self, graph: str) -> Generator:
        settings = self.manifest.input
        assert isinstance(settings, LanguageModelInput)
        tokenizer = Tokenizer.from_file(str(self._folder / TOKENIZER))
        tokenizer.no_padding()
        tokenizer.no_truncation()
        return Generator(open_session(self._folder / graph, self._threads), tokenizer, settings)
