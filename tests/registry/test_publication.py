"""What a manifest may say, and that nothing else gets through."""

import copy
import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from registry_cases import KEY, OTHER_KEY, prepared, public, resigned

from fedkron.errors import ExchangeError
from fedkron.registry.publication import check_name
from fedkron.registry.signature import Signed, publisher_key, read_signed
from fedkron.registry.trust import check_trusted, is_trusted, read_known, read_trust, remember


@pytest.fixture(scope="module")
def signed(tmp_path_factory: pytest.TempPathFactory) -> Signed:
    return prepared(tmp_path_factory.mktemp("files")).signed(3, KEY)


def test_a_manifest_comes_back_as_it_was_signed(signed: Signed) -> None:
    assert read_signed(signed.content) == signed
    assert signed.publication.public_key == public(KEY)
    # As docs/formats.md says, and not as the code does.
    assert resigned(signed.content, lambda content: content) == signed.content


def test_each_flipped_bit_of_a_manifest_is_found(signed: Signed) -> None:
    for position in range(len(signed.content)):
        altered = bytearray(signed.content)
        altered[position] ^= 1 << position % 8
        with pytest.raises(ExchangeError):
            read_signed(bytes(altered))
    for end in range(0, len(signed.content), 97):
        with pytest.raises(ExchangeError):
            read_signed(signed.content[:end])


def test_a_signature_for_another_purpose_or_by_another_key_is_none(signed: Signed) -> None:
    content = json.loads(signed.content)
    del content["signature"]
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
    for signature in (KEY.sign(canonical), OTHER_KEY.sign(b"fedkron publication 1\n" + canonical)):
        text = json.dumps(content | {"signature": signature.hex()}, sort_keys=True, separators=(",", ":"))
        with pytest.raises(ExchangeError, match="signature is wrong"):
            read_signed(text.encode())


def _file(**changes: object) -> Callable[[dict[str, Any]], object]:
    return lambda content: content["files"][2].update(changes)


HOSTILE: dict[str, Callable[[dict[str, Any]], object]] = {
    "version is 2, known": lambda c: c.update(version=2),
    "version is True": lambda c: c.update(version=True),
    "not a fedkron-publication": lambda c: c.update(format="fedkron-bundle"),
    "key 'more'": lambda c: c.update(more=1),
    "base has a key 'more'": lambda c: c["base"].update(more=1),
    "no key 'license'": lambda c: c.pop("license"),
    "release is 1.0": lambda c: c.update(release=1.0),
    "release is True": lambda c: c.update(release=True),
    "release 0 is not": lambda c: c.update(release=0),
    "release 2147483648": lambda c: c.update(release=2**31),
    "'../film' cannot be": lambda c: c.update(name="../film"),
    "'film..x' cannot be": lambda c: c.update(name="film..x"),
    "'Film' cannot be": lambda c: c.update(name="Film"),
    "is not a time": lambda c: c.update(created="today"),
    "is not 16 bytes": lambda c: c.update(nonce="00"),
    "is not 32 bytes": lambda c: c.update(contract="00"),
    "is not a plain text": lambda c: c.update(tasks=["a\nb"]),
    "'' is not a plain text": lambda c: c.update(license=""),
    "named twice": lambda c: c.update(tasks=["a", "a"]),
    "tasks is 'a', not of type list": lambda c: c.update(tasks="a"),
    "no name of a head file": _file(path="../head-0.safetensors"),
    "no name of a adapter file": lambda c: c["files"][2].update(role="adapter"),
    "'script'": _file(role="script"),
    "has 0 bytes": _file(size=0),
    "has -1 bytes": _file(size=-1),
    "has 4294967297 bytes": _file(size=2**32 + 1),
    "not in order, or named twice": lambda c: c["files"].append(c["files"][-1]),
    "no adapter.safetensors": lambda c: c["files"].clear(),
    "'pickle'": lambda c: c["adapter"].update(kinds={"pickle": 1}),
    "-1 is not a count": lambda c: c["adapter"].update(parameters=-1),
    "not a share": lambda c: c.update(metrics=[{"task": "a", "name": "accuracy", "value": 2.0}]),
    "more than 1048576 bytes": lambda c: c["adapter"].update(spec={"x": "y" * 2**20}),
}


@pytest.mark.parametrize("message", HOSTILE)
def test_a_manifest_that_says_what_none_may_say_is_refused_though_signed(
    message: str, signed: Signed
) -> None:
    with pytest.raises(ExchangeError, match=message.replace("(", r"\(")):
        read_signed(resigned(signed.content, HOSTILE[message]))


def test_other_spellings_of_the_same_are_refused(signed: Signed) -> None:
    content = json.loads(signed.content)
    spellings = [
        json.dumps(content).encode(),
        signed.content + b"\n",
        b"\xef\xbb\xbf" + signed.content,
        signed.content.replace(b'"release":3', b'"release":3,"release":3'),
        signed.content.replace(b'"release":3', b'"release":3e0'),
        signed.content.replace(b'"release":3', b'"release":NaN'),
        b"[" * 100_000,
        b"null",
        b"",
    ]
    for spelling in spellings:
        with pytest.raises(ExchangeError):
            read_signed(spelling)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), value=JSON)
def test_any_value_in_any_place_is_refused_or_comes_back(
    data: st.DataObject, value: object, signed: Signed
) -> None:
    content = json.loads(signed.content)

    def replace(target: dict[str, Any]) -> None:
        place: Any = target
        while isinstance(place, dict | list) and place:
            keys = sorted(place) if isinstance(place, dict) else range(len(place))
            key = data.draw(st.sampled_from(keys))
            if not isinstance(place[key], dict | list) or not place[key] or data.draw(st.booleans()):
                place[key] = value
                return
            place = place[key]

    expected = copy.deepcopy(content)
    try:
        forged = resigned(signed.content, lambda target: (replace(target), expected.update(target)))
    except UnicodeEncodeError:  # half a character cannot be written
        return
    try:
        read = read_signed(forged)
    except ExchangeError:
        return
    unsigned = {key: value for key, value in expected.items() if key != "signature"}
    assert json.loads(read.publication.to_bytes()) == unsigned


@pytest.mark.parametrize("name", ["a", "clinic-7", "x.y_z", "0" * 64])
def test_plain_names_are_names(name: str) -> None:
    check_name(name)


@given(st.text(max_size=70))
def test_no_name_leads_to_another_folder(name: str) -> None:
    try:
        check_name(name)
    except ExchangeError:
        return
    assert Path(name).name == name
    assert name == name.lower()
    assert name not in (".", "..")


def test_keys_are_trusted_for_the_names_that_were_said(signed: Signed, tmp_path: Path) -> None:
    known, publication = tmp_path / "sub" / "known", signed.publication
    assert read_known(known) == []
    with pytest.raises(ExchangeError, match="not trusted here"):
        check_trusted(publication, [])
    remember(publication, known)
    assert is_trusted(publication, read_known(known))
    known.write_text(f"# mine\n{public(KEY)} others\n\n{public(OTHER_KEY)} spam  # a comment")
    assert not is_trusted(publication, read_known(known))
    known.write_text(f"{public(OTHER_KEY)} film\n")
    with pytest.raises(ExchangeError, match="known for it is"):
        is_trusted(publication, read_known(known))
    known.write_text(f"{public(KEY)} *")
    remember(publication, known)
    assert known.read_text().splitlines() == [f"{public(KEY)} *", f"{public(KEY)} film"]
    known.write_text("who knows\n")
    with pytest.raises(ExchangeError, match="line 1 is not KEY NAME"):
        read_known(known)


def test_a_key_is_given_in_hex_or_as_openssl_writes_it(signed: Signed, tmp_path: Path) -> None:
    private, pem = tmp_path / "key.pem", tmp_path / "public.pem"
    key = publisher_key(private)
    command = ["openssl", "pkey", "-in", str(private), "-pubout", "-out", str(pem)]
    subprocess.run(command, check=True, timeout=60)
    (from_pem,) = read_trust(str(pem))
    assert from_pem.key == public(key)
    (from_hex,) = read_trust(public(KEY).upper())
    assert is_trusted(signed.publication, [from_hex])
    (tmp_path / "known").write_text(f"{public(KEY)} film\n")
    assert is_trusted(signed.publication, read_trust(str(tmp_path / "known")))
    for wrong in ("0123", str(tmp_path / "nothing")):
        with pytest.raises(ExchangeError, match="neither a public key in hex nor a file"):
            read_trust(wrong)
    private.chmod(0o644)
    with pytest.raises(ExchangeError, match="chmod 600"):
        publisher_key(private)
