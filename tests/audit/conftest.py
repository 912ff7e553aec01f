from pathlib import Path

import pytest
from audit_cases import audited_run
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fedkron.audit import SigningKey


@pytest.fixture(scope="session")
def key() -> SigningKey:
    return Ed25519PrivateKey.generate()


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory: pytest.TempPathFactory, key: SigningKey) -> Path:
    """A run of two rounds with its log; tests change copies of it."""
    return audited_run(tmp_path_factory.mktemp("audited") / "run", key)
