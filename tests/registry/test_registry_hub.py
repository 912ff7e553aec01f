"""Pushed with the Hub's own client to a server that speaks its protocol over a folder of this machine."""

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hub_server import HubServer
from huggingface_hub import HfApi, ModelCard
from peft import LoraConfig, PeftConfig
from registry_cases import KEY, adapter, files_in, prepared, public, written

from fedkron.errors import ExchangeError
from fedkron.exchange import read_peft
from fedkron.registry.hub import push, with_peft
from fedkron.registry.material import Choice, material
from fedkron.registry.publish import Conditions, prepare

ROOT = Path(__file__).parents[2]


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[HubServer]:
    server = HubServer(tmp_path / "hub")
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def api(hub: HubServer) -> HfApi:
    return HfApi(endpoint=hub.url, token="hf_test")


def test_one_commit_has_all_files_and_the_next_one_replaces_them(
    hub: HubServer, api: HfApi, tmp_path: Path
) -> None:
    ready = prepared(tmp_path / "one", 1)
    pushed = push(api, "me/Film", ready, KEY, private=True)
    assert pushed.commit == f"{hub.url}/me/Film/commit/{hub.head('me/Film')}"
    assert (hub.root / "me/Film/visibility").read_text() == "private"
    assert len([request for request in hub.requests if "/commit/" in request]) == 1
    there = files_in(hub.files("me/Film"))
    expected = {item.file.path: item.data for item in ready.contents}
    assert there == {**expected, "publication.json": pushed.signed.content, ".gitattributes": b""}
    assert ModelCard.load(hub.files("me/Film") / "README.md").data.license == "apache-2.0"
    file, _ = written(tmp_path / "two", 2)
    second = prepare(material(file, Choice(tasks=["film"])), KEY, Conditions("film", "MIT"))
    assert push(api, "me/Film", second, KEY, private=False).signed.publication.release == 2
    assert sorted(files_in(hub.files("me/Film"))) == [
        ".gitattributes",
        "README.md",
        "adapter.safetensors",
        "publication.json",
    ]
    with pytest.raises(ExchangeError, match="holds 'film', not 'spam'"):
        push(api, "me/Film", prepared(tmp_path / "three", name="spam"), KEY, private=False)


def test_who_pushes_at_the_same_time_as_another_is_told(hub: HubServer, api: HfApi, tmp_path: Path) -> None:
    push(api, "me/film", prepared(tmp_path / "one"), KEY, private=False)
    before = files_in(hub.files("me/film"))

    class Slow(HfApi):
        """Somebody else pushes between its look and its commit."""

        def create_commit(self, *arguments: object, **options: object) -> object:
            hub.commit("me/film", {"note": b"mine"})
            return super().create_commit(*arguments, **options)  # type: ignore[call-overload]

    with pytest.raises(ExchangeError, match="the Hub says no"):
        push(
            Slow(endpoint=hub.url, token="hf_test"), "me/film", prepared(tmp_path / "two"), KEY, private=False
        )
    assert files_in(hub.files("me/film")) == {**before, "note": b"mine"}


def test_peft_reads_what_lies_beside_it(hub: HubServer, api: HfApi, tmp_path: Path) -> None:
    file, _ = written(tmp_path, 1)
    ready = prepare(with_peft(material(file, Choice())), KEY, Conditions("film", "MIT"))
    push(api, "me/film", ready, KEY, private=False)
    folder = hub.files("me/film")
    config = PeftConfig.from_pretrained(str(folder))
    assert isinstance(config, LoraConfig)
    assert config.base_model_name_or_path == "org/tiny"
    assert config.target_modules == {"dense", "second"}
    found, ours = read_peft(folder), adapter(1).state
    expected = {
        "dense": 4.0 * np.kron(ours["dense.A"], ours["dense.B1"] @ ours["dense.B2"]),
        "second": 0.5 * ours["second.lora_B"] @ ours["second.lora_A"],
    }
    for module in found.modules:
        lora_A, lora_B = (found.state[module.tensor_name(factor)] for factor in ("lora_A", "lora_B"))
        delta = expected.pop(module.path.rpartition(".")[2])
        np.testing.assert_allclose(module.scale * lora_B @ lora_A, delta, rtol=1e-5, atol=1e-6)
    assert not expected
    assert ModelCard.load(folder / "README.md").data.library_name == "peft"


def test_the_commands_push_to_and_pull_from_the_hub(hub: HubServer, tmp_path: Path) -> None:
    file, head = written(tmp_path, 1)
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "HF_ENDPOINT": hub.url,
        "HF_TOKEN": "hf_test",
        "HF_HOME": str(tmp_path / "home"),
        "FEDKRON_PUBLISHER_KEY": str(tmp_path / "key.pem"),
    }

    def fedkron(*arguments: object) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "fedkron.cli", *map(str, arguments)],
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    said = fedkron("push", file, "me/film", "--license", "MIT", "--head", head)
    assert "Pushed film@1 to me/film" in said
    key = said.split("public key")[1].strip()
    fedkron("pull", "hf://me/film", "-o", tmp_path / "pulled", "--trust", key)
    pulled = files_in(tmp_path / "pulled")
    assert pulled.pop("README.md").startswith(b"---\n")
    assert pulled["adapter.safetensors"] == file.read_bytes()
    assert pulled["head-0.safetensors"] == head.read_bytes()
    assert key != public(KEY)
