"""Push an adapter to a repository on the Hugging Face Hub: one commit with its files, manifest and card.

What lies there is a single publication: `fedkron pull hf://USER/REPOSITORY` fetches it.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from fedkron.audit.keys import SigningKey
from fedkron.errors import ExchangeError
from fedkron.exchange import AdapterFile
from fedkron.exchange.peft_checkpoint import PEFT_CONFIG, PEFT_WEIGHTS
from fedkron.registry.card import hub_id
from fedkron.registry.material import Content, Material, content
from fedkron.registry.publication import MANIFEST
from fedkron.registry.publish import Prepared
from fedkron.registry.signature import Signed, read_signed

if TYPE_CHECKING:
    from huggingface_hub import HfApi


@dataclass(frozen=True)
class Pushed:
    """What was pushed, and the address of its commit."""

    signed: Signed
    commit: str


def with_peft(material: Material) -> Material:
    """The same, with a PEFT LoRA checkpoint of the same ΔW beside it. This needs torch.

    Raises like `fedkron.exchange.peft_export.write_peft`.
    """
    from fedkron.exchange.peft_export import write_peft

    adapter = material.adapter
    known: AdapterFile = replace(adapter, base_name=hub_id(adapter.base_name) or adapter.base_name)
    with tempfile.TemporaryDirectory() as folder:
        write_peft(Path(folder), known, task_type="FEATURE_EXTRACTION")
        written: list[Content] = [
            content(name, "peft", (Path(folder) / name).read_bytes()) for name in (PEFT_CONFIG, PEFT_WEIGHTS)
        ]
    return replace(material, contents=(*material.contents, *written))


def push(api: HfApi, repository: str, prepared: Prepared, key: SigningKey, *, private: bool) -> Pushed:
    """Push as the release after the one that is there; a repository is made where there is none.

    All files change in one commit, which fails when somebody else has pushed since we looked. Raises
    `ExchangeError` then, when the repository holds another adapter, and for what the Hub refuses.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete

    with _naming(repository):
        api.create_repo(repository, private=private, exist_ok=True)
        head = api.repo_info(repository).sha
        previous = _published(api, repository, head)
    if previous is not None and previous.publication.name != prepared.name:
        raise ExchangeError(
            f"{repository} holds {previous.publication.name!r}, not {prepared.name!r}: choose another "
            "repository, or the same --name"
        )
    signed = prepared.signed(1 if previous is None else previous.publication.release + 1, key)
    files: Mapping[str, bytes] = {c.file.path: c.data for c in prepared.contents} | {MANIFEST: signed.content}
    before = () if previous is None else previous.publication.files
    operations: list[CommitOperationAdd | CommitOperationDelete] = [
        CommitOperationAdd(path, data) for path, data in sorted(files.items())
    ]
    operations += [CommitOperationDelete(file.path) for file in before if file.path not in files]
    title = f"{prepared.name}@{signed.publication.release}"
    with _naming(repository):
        commit = api.create_commit(repository, operations, commit_message=title, parent_commit=head)
    return Pushed(signed, str(commit.commit_url))


def _published(api: HfApi, repository: str, revision: str | None) -> Signed | None:
    from huggingface_hub.errors import EntryNotFoundError

    with tempfile.TemporaryDirectory() as folder:
        try:
            path = api.hf_hub_download(repository, MANIFEST, revision=revision, cache_dir=folder)
        except EntryNotFoundError:
            return None
        return read_signed(Path(path).read_bytes())


@contextmanager
def _naming(repository: str) -> Iterator[None]:
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalTokenNotFoundError

    try:
        yield
    except (HfHubHTTPError, HFValidationError, LocalTokenNotFoundError) as error:
        raise ExchangeError(f"{repository}: the Hub says no ({error})") from error
    except OSError as error:
        raise ExchangeError(f"{repository}: the Hub cannot be reached ({error})") from error
