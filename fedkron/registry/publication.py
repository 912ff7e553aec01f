"""What is said about a published adapter: its manifest, `publication.json`, specified in docs/formats.md."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

from fedkron.errors import ExchangeError
from fedkron.kinds import ADAPTER_KINDS
from fedkron.registry.strict import read_as
from fedkron.rundir import ADAPTER, TERMS

FORMAT, VERSION = "fedkron-publication", 1
MANIFEST = "publication.json"
CARD = "README.md"

LARGEST_MANIFEST = 2**20
LARGEST_FILE = 2**32
"""Bytes. What is larger is refused before it is read."""
MOST_FILES = 256
HIGHEST_RELEASE = 2**31 - 1

_PATHS = {
    "adapter": re.compile(re.escape(ADAPTER)),
    "terms": re.compile(re.escape(TERMS)),
    "card": re.compile(re.escape(CARD)),
    "head": re.compile(r"head-(0|[1-9]\d{0,2})\.safetensors"),
    "peft": re.compile(r"adapter_config\.json|adapter_model\.safetensors"),
    "device": re.compile(r"device-[0-9a-f]{16}\.safetensors"),
}
"""How a file of each role is called: there is no path that leads anywhere."""

_NAME = re.compile(r"[a-z0-9]([a-z0-9._-]{0,62}[a-z0-9])?")
_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_NONCE = re.compile(r"[0-9a-f]{32}")


@dataclass(frozen=True)
class BaseModel:
    """The base: its name for people, the SHA-256 of its weights (hex), and its licence if known."""

    name: str
    fingerprint: str
    license: str | None


@dataclass(frozen=True)
class AdapterFacts:
    """Number of layers of each adapter kind, number of elements, and the settings it was made with."""

    kinds: dict[str, int]
    parameters: int
    spec: dict[str, Any]


@dataclass(frozen=True)
class Metric:
    """What was measured on a task: `accuracy`, `head-only-accuracy`, `majority`, shares in [0, 1]."""

    task: str
    name: str
    value: float


@dataclass(frozen=True)
class Training:
    """How the run went that made the adapter; `nodes` is the number of nodes of its last round."""

    run: str
    rounds: int
    nodes: int
    aggregation: str
    upload_codec: str
    broadcast_codec: str
    secure_aggregation: bool


@dataclass(frozen=True)
class Traffic:
    """Serialized bytes of the whole run, all nodes together; `baseline` with LoRA-8 in float32."""

    up: int
    down: int
    baseline: int


@dataclass(frozen=True)
class Privacy:
    """What the node that was asked most often has spent; `epsilon` is None where nothing is guaranteed."""

    kind: str
    epsilon: float | None
    delta: float
    rounds: int


@dataclass(frozen=True)
class Parent:
    """A publication that this one was made from; `sha256` (hex) is that of its manifest."""

    name: str
    release: int
    sha256: str


@dataclass(frozen=True)
class Lineage:
    """How it came to be. `source_sha256` (hex) is that of the adapter file that was given to be published."""

    source_sha256: str
    steps: tuple[str, ...]
    parents: tuple[Parent, ...]


@dataclass(frozen=True)
class PublishedFile:
    """One file: its name, what it is (`_PATHS`), bytes, SHA-256 (hex)."""

    path: str
    role: str
    size: int
    sha256: str


@dataclass(frozen=True)
class Publication:
    """One release of a published adapter: everything that its publisher signs.

    `created` is UTC by the publisher's clock, `nonce` makes each publication another one, `public_key` is
    the publisher's (Ed25519, hex). Raises `ExchangeError` for values that no publication has.
    """

    name: str
    release: int
    created: str
    nonce: str
    contract: str
    base: BaseModel
    adapter: AdapterFacts
    tasks: tuple[str, ...]
    metrics: tuple[Metric, ...]
    training: Training | None
    traffic: Traffic | None
    privacy: Privacy | None
    lineage: Lineage
    license: str
    files: tuple[PublishedFile, ...]
    public_key: str

    def __post_init__(self) -> None:
        check_name(self.name)
        _require(1 <= self.release <= HIGHEST_RELEASE, f"release {self.release} is not a positive number")
        _require(bool(_TIME.fullmatch(self.created)), f"created {self.created!r} is not a time in UTC")
        _require(bool(_NONCE.fullmatch(self.nonce)), f"nonce {self.nonce!r} is not 16 bytes in hex")
        _check_hashes(self)
        _check_texts(self)
        _check_numbers(self)
        _check_files(self.files)

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(file.size for file in self.files)

    def of_role(self, role: str) -> tuple[PublishedFile, ...]:
        """The files that are this."""
        return tuple(file for file in self.files if file.role == role)

    def to_bytes(self) -> bytes:
        """Canonical JSON of all of it, without the signature."""
        return canonical({"format": FORMAT, "version": VERSION, **asdict(self)})


def publication_of(content: dict[str, Any]) -> Publication:
    """Inverse of `Publication.to_bytes`, of the JSON object.

    Raises `ExchangeError` for another format or version, and for keys, types or values that it does not have.
    """
    if (found := content.pop("format", None)) != FORMAT:
        raise ExchangeError(f"it is not a {FORMAT} (its format is {found!r:.60})")
    version = content.pop("version", None)
    if type(version) is not int or version != VERSION:
        raise ExchangeError(f"format version is {version!r:.60}, known here is {VERSION}: update fedkron")
    return read_as(Publication, content)


def canonical(content: object) -> bytes:
    """JSON with sorted keys, no spaces, UTF-8. Raises `ExchangeError` for NaN and what is not JSON."""
    try:
        return json.dumps(
            content, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
        ).encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise ExchangeError(f"it cannot be written as JSON: {error}") from error


def device_path(slot_hash: str) -> str:
    """How the file for the slot with this hash is called."""
    return f"device-{slot_hash[:16]}.safetensors"


def check_name(name: str) -> None:
    """Raise `ExchangeError` unless adapters may be published under this name.

    No capitals: two names that differ in them would be one folder on some systems.
    """
    _require(
        bool(_NAME.fullmatch(name)) and ".." not in name,
        f"{name!r:.80} cannot be the name of a published adapter: take up to 64 of a-z, 0-9, '.', '_' and "
        "'-', beginning and ending with a letter or digit",
    )


def _require(holds: bool, problem: str) -> None:
    if not holds:
        raise ExchangeError(problem)


def _check_hashes(publication: Publication) -> None:
    hashes = [
        publication.contract,
        publication.base.fingerprint,
        publication.public_key,
        publication.lineage.source_sha256,
        *(parent.sha256 for parent in publication.lineage.parents),
        *(file.sha256 for file in publication.files),
    ]
    for digest in hashes:
        _require(bool(_SHA256.fullmatch(digest)), f"{digest!r:.80} is not 32 bytes in hex")


def _check_texts(publication: Publication) -> None:
    """They are shown to people, in terminals and on pages: no control characters."""
    base, training, lineage = publication.base, publication.training, publication.lineage
    needed = [base.name, publication.license, *publication.tasks]
    needed += [text for metric in publication.metrics for text in (metric.task, metric.name)]
    needed += [] if base.license is None else [base.license]
    if training is not None:
        needed += [training.run, training.aggregation, training.upload_codec, training.broadcast_codec]
    for text in (*needed, *lineage.steps):
        _require(text.isprintable() and text == text.strip() != "", f"{text!r:.80} is not a plain text")
    twice = [task for task, count in Counter(publication.tasks).items() if count > 1]
    _require(not twice, f"task {twice[0] if twice else ''!r:.80} is named twice")
    for parent in lineage.parents:
        check_name(parent.name)


def _check_numbers(publication: Publication) -> None:
    adapter, training, traffic = publication.adapter, publication.training, publication.traffic
    counts = [adapter.parameters, *adapter.kinds.values()]
    counts += [training.rounds, training.nodes] if training else []
    counts += [traffic.up, traffic.down, traffic.baseline] if traffic else []
    for count in counts:
        _require(0 <= count < 2**63, f"{count} is not a count")
    unknown = sorted(adapter.kinds.keys() - set(ADAPTER_KINDS))
    _require(not unknown, f"adapter kind {unknown[:1]!r:.80} is not known here: update fedkron")
    for parent in publication.lineage.parents:
        _require(1 <= parent.release <= HIGHEST_RELEASE, f"release {parent.release} is not a positive number")
    for metric in publication.metrics:
        _require(
            math.isfinite(metric.value) and 0 <= metric.value <= 1,
            f"{metric.name} of {metric.task!r} is {metric.value}, not a share",
        )
    if (privacy := publication.privacy) is not None:
        fits = privacy.rounds >= 0 and 0 < privacy.delta < 1 and privacy.kind in ("central", "local")
        fits &= privacy.epsilon is None or (math.isfinite(privacy.epsilon) and privacy.epsilon >= 0)
        _require(fits, f"{privacy} is not a privacy budget")


def _check_files(files: Iterable[PublishedFile]) -> None:
    paths = [file.path for file in files]
    _require(len(paths) <= MOST_FILES, f"it has {len(paths)} files, more than {MOST_FILES}")
    for file in files:
        pattern = _PATHS.get(file.role)
        _require(pattern is not None, f"file {file.path!r:.80} is a {file.role!r:.40}, which is not known")
        assert pattern is not None
        _require(
            bool(pattern.fullmatch(file.path)), f"file {file.path!r:.80} has no name of a {file.role} file"
        )
        _require(
            0 < file.size <= LARGEST_FILE,
            f"file {file.path} has {file.size} bytes: 1 to {LARGEST_FILE} are allowed",
        )
    _require(paths == sorted(set(paths)), "its files are not in order, or named twice")
    _require(ADAPTER in paths, f"there is no {ADAPTER} in it")
