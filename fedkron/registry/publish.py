"""Publish an adapter: first its files, under their hashes, then the manifest that makes them a release."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from fedkron.audit.keys import SigningKey, public_key_of
from fedkron.errors import ExchangeError
from fedkron.registry.card import model_card
from fedkron.registry.material import Content, Material, content
from fedkron.registry.publication import CARD, BaseModel, Publication, check_name
from fedkron.registry.signature import Signed, sign
from fedkron.registry.storage import Storage
from fedkron.registry.store import BLOBS, add


@dataclass(frozen=True)
class Conditions:
    """Under which name and licences (SPDX) something is published."""

    name: str
    license: str
    base_license: str | None = None


@dataclass(frozen=True)
class Prepared:
    """All that is to be published, the model card too; of the manifest only the release is missing."""

    draft: Publication
    contents: tuple[Content, ...]

    @property
    def name(self) -> str:
        """Under which it is published."""
        return self.draft.name

    def signed(self, release: int, key: SigningKey) -> Signed:
        """The manifest of this release, signed with the key that `prepare` was given."""
        return sign(replace(self.draft, release=release), key)


def spdx(expression: str) -> str:
    """An SPDX licence expression in its usual form. Raises `ExchangeError` for what is none."""
    from packaging.licenses import InvalidLicenseExpression, canonicalize_license_expression

    try:
        return str(canonicalize_license_expression(expression))
    except InvalidLicenseExpression as error:
        raise ExchangeError(
            f"licence {expression!r} is not an SPDX expression ({error}): take one of "
            "https://spdx.org/licenses, such as Apache-2.0, or LicenseRef-NAME for one of your own"
        ) from error


def prepare(material: Material, key: SigningKey, conditions: Conditions) -> Prepared:
    """Everything but the number of the release.

    Raises `ExchangeError` for a name or a licence that cannot be, and other values that no publication has.
    """
    check_name(conditions.name)
    adapter = material.adapter
    draft = Publication(
        name=conditions.name,
        release=1,
        created=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        nonce=os.urandom(16).hex(),
        contract=adapter.layout.contract,
        base=BaseModel(
            adapter.base_name,
            adapter.layout.base,
            None if conditions.base_license is None else spdx(conditions.base_license),
        ),
        adapter=material.facts,
        tasks=material.tasks,
        metrics=material.metrics,
        training=material.training,
        traffic=material.traffic,
        privacy=material.privacy,
        lineage=material.lineage,
        license=spdx(conditions.license),
        files=tuple(item.file for item in _sorted(material.contents)),
        public_key=public_key_of(key),
    )
    card = content(CARD, "card", model_card(draft).encode())
    contents = _sorted((*material.contents, card))
    return Prepared(replace(draft, files=tuple(item.file for item in contents)), contents)


def publish(storage: Storage, prepared: Prepared, key: SigningKey) -> Signed:
    """Publish as the next release of its name, and return the manifest.

    What is there already is never changed. Whoever is stopped before the manifest is written leaves nothing
    but blobs that no manifest names. Raises `ExchangeError` when the storage cannot be written to.
    """
    for item in prepared.contents:
        storage.put(f"{BLOBS}/{item.file.sha256}", item.data)
    return add(storage, prepared.name, lambda release: prepared.signed(release, key))


def _sorted(contents: tuple[Content, ...]) -> tuple[Content, ...]:
    return tuple(sorted(contents, key=lambda item: item.file.path))
