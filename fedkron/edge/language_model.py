"""What a device must know to run an exported language model: its inputs and outputs, and its limits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

KIND = "language_model"
"""Value of `kind` in the manifest's `input`."""


@dataclass(frozen=True)
class LanguageModelInput:
    """The part `input` of a language model's manifest.

    A text and its continuation have `max_length` tokens together at most. Padding on the left is `pad_id`;
    any of `eos_ids` ends a text. The cache of each of the `layers` is a key and a value, float32 (batch,
    key_value_heads, past, head_size).
    """

    max_length: int
    pad_id: int
    eos_ids: tuple[int, ...]
    layers: int
    key_value_heads: int
    head_size: int

    @property
    def past_names(self) -> tuple[str, ...]:
        """The graph's inputs for the cache: `past_key_values.0.key`, `past_key_values.0.value`, …"""
        return self._cache_names("past_key_values")

    @property
    def present_names(self) -> tuple[str, ...]:
        """The graph's outputs for the cache with the new tokens: `present.0.key`, …"""
        return self._cache_names("present")

    @property
    def names(self) -> tuple[str, ...]:
        """All inputs of the graph but those for an adapter."""
        return ("input_ids", "attention_mask", *self.past_names)

    def to_json(self) -> dict[str, Any]:
        """The object `input` of the manifest."""
        return {
            "kind": KIND,
            "max_length": self.max_length,
            "pad_id": self.pad_id,
            "eos_ids": list(self.eos_ids),
            "layers": self.layers,
            "key_value_heads": self.key_value_heads,
            "head_size": self.head_size,
            "names": list(self.names),
        }

    @staticmethod
    def from_json(content: dict[str, Any]) -> LanguageModelInput:
        """The inverse of `to_json`; raises `KeyError`, `TypeError` or `ValueError` for anything else."""
        if content["kind"] != KIND:
            raise ValueError(f"the input is {content['kind']!r}, not {KIND!r}")
        found = LanguageModelInput(
            max_length=int(content["max_length"]),
            pad_id=int(content["pad_id"]),
            eos_ids=tuple(map(int, content["eos_ids"])),
            layers=int(content["layers"]),
            key_value_heads=int(content["key_value_heads"]),
            head_size=int(content["head_size"]),
        )
        if tuple(content["names"]) != found.names:
            raise ValueError(f"the inputs of {found.layers} layers are {', '.join(found.names)}")
        return found

    def _cache_names(self, cache: str) -> tuple[str, ...]:
        return tuple(f"{cache}.{layer}.{part}" for layer in range(self.layers) for part in ("key", "value"))
