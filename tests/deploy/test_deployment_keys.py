"""Keys as others see them: Python's TLS, another X.509 verifier, Flower's readers, the file system."""

import json
import os
import socket
import ssl
import stat
import threading
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_ssh_private_key, load_ssh_public_key
from cryptography.x509.verification import PolicyBuilder, Store, VerificationError
from flwr.cli.supernode.register import try_load_public_key
from flwr.supercore.primitives.asymmetric import public_key_to_bytes

from fedkron.cli import main
from fedkron.deploy.keys import issue, issue_node, renew
from fedkron.errors import ConfigError

HOSTS = ("federation.example.org", "localhost", "127.0.0.1", "10.0.0.7", "fd00::7")
PRIVATE = {"ca.key", "server.key", "superexec.secret", "node.key"}


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("keys") / "mine"
    before = os.umask(0)  # the worst one: nothing is hidden by it
    try:
        issue(folder, hosts=HOSTS, nodes=2, days=30)
    finally:
        os.umask(before)
    return folder


def certificate(path: Path) -> x509.Certificate:
    return x509.load_pem_x509_certificate(path.read_bytes())


def verify(keys: Path, authority: Path, host: str, when: datetime | None = None) -> None:
    name = x509.DNSName(host) if host[0].isalpha() and ":" not in host else x509.IPAddress(ip_address(host))
    policy = PolicyBuilder().store(Store([certificate(authority / "ca.crt")]))
    verifier = (policy.time(when) if when else policy).build_server_verifier(name)
    verifier.verify(certificate(keys / "superlink" / "server.crt"), [])


@pytest.mark.parametrize("host", HOSTS)
def test_the_chain_verifies_for_every_host(keys: Path, host: str) -> None:
    verify(keys, keys / "superlink", host)
    verify(keys, keys / "node1", host)


@pytest.mark.parametrize("host", ["other.example.org", "10.0.0.8"])
def test_it_does_not_for_another(keys: Path, host: str) -> None:
    with pytest.raises(VerificationError):
        verify(keys, keys / "node0", host)


def test_a_certificate_ends(keys: Path) -> None:
    verify(keys, keys / "node0", "localhost", datetime.now(UTC) + timedelta(days=29))
    with pytest.raises(VerificationError):
        verify(keys, keys / "node0", "localhost", datetime.now(UTC) + timedelta(days=31))


def test_another_authority_is_not_believed(keys: Path, tmp_path: Path) -> None:
    issue(tmp_path / "other", hosts=("localhost",), nodes=0)
    with pytest.raises(VerificationError):
        verify(keys, tmp_path / "other" / "superlink", "localhost")
    with pytest.raises(InvalidSignature):
        certificate(keys / "superlink" / "server.crt").verify_directly_issued_by(
            certificate(tmp_path / "other" / "superlink" / "ca.crt")
        )


def test_the_servers_certificate_cannot_sign_others(keys: Path) -> None:
    server = certificate(keys / "superlink" / "server.crt")
    assert not server.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    assert not server.extensions.get_extension_for_class(x509.KeyUsage).value.key_cert_sign
    assert server.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value == x509.ExtendedKeyUsage(
        [x509.oid.ExtendedKeyUsageOID.SERVER_AUTH]
    )


def handshake(keys: Path, trusted: ssl.SSLContext, name: str) -> str | None:
    """A real TLS connection; returns the protocol that was agreed on."""
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(keys / "superlink" / "server.crt", keys / "superlink" / "server.key")
    near, far = socket.socketpair()

    def answer() -> None:
        with far, suppress(OSError):
            server.wrap_socket(far, server_side=True).close()

    thread = threading.Thread(target=answer)
    thread.start()
    try:
        with near, trusted.wrap_socket(near, server_hostname=name) as connection:
            return connection.version()
    finally:
        thread.join()


def test_tls_works_with_strict_checks_and_refuses_another_name(keys: Path) -> None:
    trusted = ssl.create_default_context(cafile=keys / "node0" / "ca.crt")
    trusted.verify_flags |= ssl.VERIFY_X509_STRICT
    assert handshake(keys, trusted, "federation.example.org") == "TLSv1.3"
    with pytest.raises(ssl.SSLCertVerificationError, match="mismatch"):
        handshake(keys, trusted, "other.example.org")


def test_flower_reads_the_node_keys_and_they_are_pairs(keys: Path) -> None:
    publics = set()
    for name in ("node0", "node1"):
        private = load_ssh_private_key((keys / name / "node.key").read_bytes(), None)
        public = load_ssh_public_key((keys / name / "node.pub").read_bytes())
        assert isinstance(private, ec.EllipticCurvePrivateKey)
        assert isinstance(private.curve, ec.SECP384R1)
        assert private.public_key() == public
        assert try_load_public_key(keys / name / "node.pub") == public_key_to_bytes(public)
        publics.add(try_load_public_key(keys / name / "node.pub"))
    assert len(publics) == 2


def test_secrets_are_for_the_owner_alone_and_machines_get_only_their_own(keys: Path) -> None:
    files = {str(path.relative_to(keys)) for path in keys.rglob("*") if path.is_file()}
    server = {f"superlink/{name}" for name in ("ca.crt", "server.crt", "server.key", "superexec.secret")}
    nodes = {f"node{n}/{name}" for n in range(2) for name in ("ca.crt", "node.key", "node.pub")}
    assert files == {"authority/ca.key", "authority/ca.crt"} | server | nodes
    for path in (keys, *keys.rglob("*")):
        mode = stat.S_IMODE(path.stat().st_mode)
        if path.is_dir():
            assert mode == 0o700
        else:
            assert mode == (0o600 if path.name in PRIVATE else 0o644), path


def test_private_files_are_never_open_to_others_not_even_for_a_moment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    created = {}
    real = os.open

    def watched(path: Path, flags: int, mode: int = 0o777, **rest: object) -> int:
        descriptor = real(path, flags, mode, **rest)
        created[Path(path).name] = stat.S_IMODE(os.fstat(descriptor).st_mode)
        return descriptor

    monkeypatch.setattr(os, "open", watched)
    before = os.umask(0)
    try:
        issue(tmp_path / "keys", hosts=("localhost",), nodes=1)
    finally:
        os.umask(before)
    assert {name: created[name] for name in PRIVATE} == dict.fromkeys(PRIVATE, 0o600)


def test_keys_are_never_overwritten(keys: Path) -> None:
    before = {path: path.read_bytes() for path in keys.rglob("*") if path.is_file()}
    with pytest.raises(ConfigError, match="never overwritten"):
        issue(keys, hosts=HOSTS, nodes=2)
    with pytest.raises(ConfigError, match="never overwritten"):
        issue_node(keys / "node0")
    assert {path: path.read_bytes() for path in keys.rglob("*") if path.is_file()} == before


def test_renewed_is_another_certificate_that_the_nodes_believe_already(tmp_path: Path) -> None:
    folder = tmp_path / "keys"
    issue(folder, hosts=("localhost", "10.0.0.7"), nodes=1, days=2)
    old = certificate(folder / "superlink" / "server.crt")
    kept = (folder / "node0" / "node.key").read_bytes()
    issued = renew(folder, hosts=(), days=90)
    new = certificate(folder / "superlink" / "server.crt")
    assert (new.serial_number, new.public_key()) != (old.serial_number, old.public_key())
    assert issued.hosts == ("localhost", "10.0.0.7")
    assert issued.server_expires == new.not_valid_after_utc > datetime.now(UTC) + timedelta(days=89)
    verify(folder, folder / "node0", "10.0.0.7", datetime.now(UTC) + timedelta(days=80))
    trusted = ssl.create_default_context(cafile=folder / "node0" / "ca.crt")
    assert handshake(folder, trusted, "localhost")
    assert (folder / "node0" / "node.key").read_bytes() == kept
    assert stat.S_IMODE((folder / "superlink" / "server.key").stat().st_mode) == 0o600
    assert not list(folder.rglob("*.new"))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["new", "KEYS", "--host", "bad host"], ["bad host", "DNS name"]),
        (["new", "KEYS", "--host", "example.org:8000"], ["example.org:8000", "no port"]),
        (["new", "KEYS", "--nodes", "-1"], ["--nodes", "-1"]),
        (["new", "KEYS", "--days", "0"], ["--days", "0"]),
        (["new", "KEYS", "--days", "9999"], ["9999", "authority"]),
        (["renew", "KEYS"], ["KEYS", "fedkron keys new"]),
    ],
)
def test_bad_requests_are_explained_and_leave_nothing(
    options: list[str],
    words: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["keys", *options]) == 1
    error = capsys.readouterr().err
    assert error.startswith("fedkron: ")
    assert all(word in error for word in words)
    assert list(tmp_path.iterdir()) == []


def test_the_command_says_what_it_made_and_nothing_secret(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "keys"
    assert main(["keys", "new", str(folder), "--nodes", "3", "--host", "h.example", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["nodes"] == ["node0", "node1", "node2"]
    assert said["hosts"] == ["h.example"]
    expires = certificate(folder / "superlink" / "server.crt").not_valid_after_utc
    assert said["server_expires"] == expires.isoformat()
    assert main(["keys", "node", str(tmp_path / "more")]) == 0
    assert str(tmp_path / "more" / "node.pub") in capsys.readouterr().out
