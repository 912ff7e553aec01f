"""The model card: `README.md` in the form of the Hugging Face Hub, written from what a publication says."""

from __future__ import annotations

import html
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from fedkron.registry.publication import Publication

if TYPE_CHECKING:
    from huggingface_hub import EvalResult

TEMPLATE = Path(__file__).with_name("card.md.jinja")
LIBRARY = "fedkron"
_DEMO_BASES = {"demo:all-minilm-l6-v2": "sentence-transformers/all-MiniLM-L6-v2"}
"""How the Hub knows the demo's bases."""
HUB_LICENSES = (
    "apache-2.0 mit bsd-2-clause bsd-3-clause cc0-1.0 cc-by-4.0 cc-by-sa-4.0 cc-by-nc-4.0 cc-by-nc-sa-4.0 "
    "cc-by-nd-4.0 cc-by-nc-nd-4.0 gpl-3.0 lgpl-3.0 agpl-3.0 mpl-2.0 isc unlicense wtfpl zlib artistic-2.0 "
    "epl-2.0 eupl-1.2 bsl-1.0 ecl-2.0 ms-pl ncsa ofl-1.1 osl-3.0 postgresql afl-3.0"
)
"""What the Hub calls a licence is, for these, the SPDX identifier in lower case."""
_MARKDOWN = re.compile(r"([\\`*_{}\[\]()#+!|~])")


def model_card(publication: Publication) -> str:
    """The card: metadata in YAML, then text for people. Same publication, same card; it names no release."""
    from huggingface_hub import ModelCard, ModelCardData

    name, licence = publication.name, publication.license.lower()
    data = ModelCardData(
        base_model=hub_id(publication.base.name),
        library_name="peft" if publication.of_role("peft") else LIBRARY,
        license=licence if licence in HUB_LICENSES.split() else "other",
        license_name=None if licence in HUB_LICENSES.split() else re.sub(r"[^a-z0-9.-]+", "-", licence),
        tags=[LIBRARY, "federated-learning", "adapter", *sorted(publication.adapter.kinds)],
        metrics=["accuracy"] if publication.metrics else None,
        model_name=name,
        eval_results=_results(publication) or None,
    )
    card = ModelCard.from_template(
        data,
        template_path=str(TEMPLATE),
        name=name,
        release_of=publication,
        accuracies=_accuracies(publication),
        heads=publication.of_role("head"),
        terms=publication.of_role("terms"),
        devices=publication.of_role("device"),
        factor=_factor(publication),
        text=_escaped,
    )
    return f"{str(card).rstrip()}\n"


def hub_id(base: str) -> str | None:
    """The base's id on the Hub, if its name is one."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    known = _DEMO_BASES.get(base, base)
    try:
        validate_repo_id(known)
    except HFValidationError:
        return None
    return known


def _results(publication: Publication) -> list[EvalResult]:
    from huggingface_hub import EvalResult

    return [
        EvalResult(
            task_type="text-classification",
            dataset_type=re.sub(r"[^A-Za-z0-9._-]+", "-", metric.task),
            dataset_name=metric.task,
            dataset_split="test",
            metric_type="accuracy",
            metric_name="accuracy",
            metric_value=metric.value,
        )
        for metric in publication.metrics
        if metric.name == "accuracy"
    ]


def _accuracies(publication: Publication) -> Mapping[str, Mapping[str, float]]:
    found: dict[str, dict[str, float]] = {}
    for metric in publication.metrics:
        found.setdefault(metric.task, {})[metric.name] = metric.value
    return found


def _factor(publication: Publication) -> float | None:
    traffic = publication.traffic
    if traffic is None or not (traffic.up + traffic.down):
        return None
    return traffic.baseline / (traffic.up + traffic.down)


def _escaped(text: object) -> str:
    """A text as itself on a page: names come from nodes and publishers, and must not be taken for markup."""
    return _MARKDOWN.sub(r"\\\1", html.escape(str(text), quote=False))
