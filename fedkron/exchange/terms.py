"""Kronecker terms at rest: what belongs to the base after some rounds, in one safetensors file.

An adapter that was trained on a base with terms is of use on that base only: its layout names the fingerprint
of both together, so that it fits nowhere else.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from safetensors.numpy import save

from fedkron.atomic import write_atomically
from fedkron.errors import AdapterError
from fedkron.exchange.files import (
    EXACT_FORM_OF,
    METADATA_KEY,
    AdapterFile,
    naming_the_file,
    unpacked,
)
from fedkron.layout import State

TERMS_VERSION = 1
TERMS_FORMAT = "fedkron-terms"
TERMS_DIGEST = "terms"
"""The key in an adapter's `info` for the SHA-256 (hex) of the terms that it needs."""


def save_terms(path: Path, terms: Sequence[State]) -> None:
    """Write sets of terms (`fedkron.adapters.terms`) atomically: same terms, same bytes."""
    write_atomically(path, _packed(terms))


def load_terms(path: Path) -> list[State]:
    """Read sets of terms; raises `AdapterError` when the file is missing, damaged or of another format."""
    with naming_the_file(path):
        tensors, _ = unpacked(path, TERMS_FORMAT, TERMS_VERSION)
        sets: dict[int, State] = {}
        for name, values in tensors.items():
            number, _, tensor = name.partition("/")
            sets.setdefault(int(number), {})[tensor] = values
        return [sets[number] for number in sorted(sets)]


def on_folded_base(adapter: AdapterFile, terms: Sequence[State]) -> AdapterFile:
    """The same adapter as one of a base into which `terms` have been folded; heads go on fitting."""
    if not terms:
        return adapter
    digest = hashlib.sha256(_packed(terms)).hexdigest()
    layout = replace(adapter.layout, base=folded_fingerprint(adapter.layout.base, terms))
    info = {**adapter.info, TERMS_DIGEST: digest, EXACT_FORM_OF: adapter.layout.contract}
    return replace(adapter, layout=layout, info=info)


def folded_fingerprint(base: str, terms: Sequence[State]) -> str:
    """Fingerprint (SHA-256, hex) of the base with this fingerprint and terms together."""
    return hashlib.sha256(base.encode() + _packed(terms)).hexdigest()


def check_complete(adapter: AdapterFile) -> None:
    """Raises `AdapterError` for an adapter that is nothing without its terms."""
    if TERMS_DIGEST in adapter.info:
        raise AdapterError(
            f"this adapter was aggregated by {adapter.info.get('aggregation')!r} and belongs to a base with "
            "terms folded in, which would be lost here: export its run folder instead"
        )


def _packed(terms: Sequence[State]) -> bytes:
    tensors = {
        f"{number}/{name}": np.ascontiguousarray(values, np.float32)
        for number, state in enumerate(terms)
        for name, values in sorted(state.items())
    }
    return save(tensors, {METADATA_KEY: json.dumps({"format": TERMS_FORMAT, "version": TERMS_VERSION})})
