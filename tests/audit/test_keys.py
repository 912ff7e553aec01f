import stat
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

from fedkron.audit import SigningKey, public_key_of, read_public_key, server_key
from fedkron.errors import AuditError


def test_a_key_is_made_once_for_its_owner_alone(tmp_path: Path) -> None:
    path = tmp_path / "keys" / "server.pem"
    key = server_key(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert public_key_of(server_key(path)) == public_key_of(key)
    assert [file.name for file in path.parent.iterdir()] == ["server.pem"]


def test_processes_that_start_together_get_the_same_key(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        keys = list(pool.map(lambda _: server_key(tmp_path / "server.pem"), range(8)))
    assert len({public_key_of(key) for key in keys}) == 1


def test_openssl_reads_the_key_and_makes_the_public_one(tmp_path: Path) -> None:
    key, public = server_key(tmp_path / "server.pem"), tmp_path / "public.pem"
    command = ["openssl", "pkey", "-in", str(tmp_path / "server.pem"), "-pubout", "-out", str(public)]
    subprocess.run(command, check=True, timeout=60)
    assert read_public_key(public) == key.public_key()


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o602, 0o644, 0o610])
def test_a_key_that_others_may_use_is_refused(mode: int, tmp_path: Path) -> None:
    path = tmp_path / "server.pem"
    server_key(path)
    path.chmod(mode)
    with pytest.raises(AuditError, match=f"its mode is {mode:04o}.*chmod 600"):
        server_key(path)


def test_what_is_not_a_signing_key_is_refused(tmp_path: Path, key: SigningKey) -> None:
    pem, pkcs8 = Encoding.PEM, PrivateFormat.PKCS8
    contents = {
        "holds a key of another sort": X25519PrivateKey.generate().private_bytes(pem, pkcs8, NoEncryption()),
        "without a password": key.private_bytes(pem, pkcs8, BestAvailableEncryption(b"secret")),
        "not a private key": b"",
    }
    path = tmp_path / "server.pem"
    path.touch(0o600)
    for message, content in contents.items():
        path.write_bytes(content)
        with pytest.raises(AuditError, match=message):
            server_key(path)
    with pytest.raises(AuditError, match="cannot be read"):
        server_key(tmp_path)


def test_what_is_not_a_public_key_is_refused(tmp_path: Path, key: SigningKey) -> None:
    path = tmp_path / "public.pem"
    with pytest.raises(AuditError, match="not a public key"):
        read_public_key(path)
    path.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    with pytest.raises(AuditError, match="not a public key"):
        read_public_key(path)
    other = X25519PrivateKey.generate().public_key()
    path.write_bytes(other.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    with pytest.raises(AuditError, match="of another sort"):
        read_public_key(path)
