"""The HTTP service: right answers while adapters change, and an error with its status for everything else."""

import json
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import uvicorn
from edge_cases import SPECS, Written, random_head, with_adapter
from prometheus_client.parser import text_string_to_metric_families

from fedkron.edge.device_adapter import device_adapter, save_device_adapter
from fedkron.edge.manifest import read_manifest
from fedkron.edge.runtime import Bundle, Prediction
from fedkron.edge.service import MAX_ADAPTER, application
from fedkron.edge.service_requests import MAX_REQUEST, MAX_TEXTS

TEXTS = ["who wrote the play", "what is a pipe", "red cat blue dog one two"]
COLOURS = "colour/of: it"


@dataclass(frozen=True)
class Served:
    """A running service, and the bundle behind it."""

    bundle: Bundle
    client: httpx.Client

    def ask(self, **fields: object) -> list[dict[str, Any]]:
        """POST /predict; the answers."""
        response = self.client.post("/predict", json=fields)
        assert response.status_code == 200, response.text
        answers: list[dict[str, Any]] = response.json()["answers"]
        return answers


@contextmanager
def serving(bundle: Bundle, *, allow_upload: bool) -> Iterator[Served]:
    app = application(bundle, allow_upload=allow_upload)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = uvicorn.Server(uvicorn.Config(app, log_config=None, lifespan="off", ws="none"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            url = f"http://127.0.0.1:{listener.getsockname()[1]}"
            with httpx.Client(base_url=url, timeout=30, trust_env=False) as client:
                yield Served(bundle, client)
        finally:
            server.should_exit = True
            thread.join()


@pytest.fixture(scope="module")
def served(bundle: Written) -> Iterator[Served]:
    """For questions, and changes that are refused."""
    with serving(Bundle.open(bundle.folder, threads=1), allow_upload=True) as running:
        yield running


@pytest.fixture
def changed(bundle: Written) -> Iterator[Served]:
    """For changes."""
    with serving(Bundle.open(bundle.folder, threads=1), allow_upload=True) as running:
        yield running


@pytest.fixture(scope="module")
def files(bundle: Written, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Device adapters: two that fit, one of another base, one of another encoding."""
    folder = tmp_path_factory.mktemp("adapters")
    manifest = read_manifest(bundle.folder)
    heads = list(bundle.heads.values())
    paths = {}
    for seed, name in enumerate(("one", "two"), 2):
        _, adapter = with_adapter(
            bundle.base.backbone, SPECS["kron_lora"], bundle.base.fingerprint, seed=seed
        )
        device = device_adapter(name, adapter, heads, manifest.slot, manifest.hidden_size)
        paths[name] = folder / f"{name}.safetensors"
        save_device_adapter(paths[name], device)
    _, foreign = with_adapter(bundle.base.backbone, SPECS["kron_lora"], "0" * 64, seed=9)
    head = random_head("spam", ("ham", "spam"), foreign.layout.contract)
    slot = type(manifest.slot)(foreign.layout, manifest.slot.groups, "fp32")
    paths["foreign"] = folder / "foreign.safetensors"
    save_device_adapter(paths["foreign"], device_adapter("x", foreign, [head], slot, manifest.hidden_size))
    slot = type(manifest.slot)(bundle.adapter.layout, manifest.slot.groups, "int8")
    paths["int8"] = folder / "int8.safetensors"
    save_device_adapter(paths["int8"], device_adapter("x", bundle.adapter, heads, slot, manifest.hidden_size))
    return paths


def as_json(predictions: list[Prediction]) -> list[dict[str, Any]]:
    return [asdict(p) | {"probabilities": list(p.probabilities)} for p in predictions]


def close(answers: list[dict[str, Any]], expected: list[dict[str, Any]]) -> bool:
    return all(
        a["label"] == e["label"] and np.allclose(a["probabilities"], e["probabilities"], atol=1e-6)
        for a, e in zip(answers, expected, strict=True)
    )


# ---------------------------------------------------------------- answers


@pytest.mark.parametrize("task", [COLOURS, "spam"])
def test_answers_are_those_of_the_bundle(served: Served, task: str) -> None:
    expected = as_json(served.bundle.predict(TEXTS, task))
    assert served.ask(texts=TEXTS, task=task) == expected
    assert close(served.ask(text=TEXTS[1], task=task), expected[1:2])


def test_a_choice_is_that_of_the_bundle(served: Served) -> None:
    question, choices = "what is the _ ?", ["red", "green", "blue cat"]
    expected = as_json([served.bundle.choose(question, choices, "trivia")])
    response = served.client.post(
        "/choose", json={"question": question, "choices": choices, "task": "trivia", "adapter": "default"}
    )
    assert response.status_code == 200
    assert response.json()["answers"] == expected
    assert response.json()["milliseconds"] > 0


def test_each_text_may_have_its_own_adapter_and_task(changed: Served, files: dict[str, Path]) -> None:
    changed.bundle.load(files["one"], "one")
    tasks, adapters = ["spam", COLOURS, "spam"], ["default", "one", "one"]
    answers = changed.ask(texts=TEXTS, task=tasks, adapter=adapters)
    for text, task, adapter, answer in zip(TEXTS, tasks, adapters, answers, strict=True):
        assert close([answer], as_json(changed.bundle.predict([text], task, adapter=adapter)))


# ---------------------------------------------------------------- adapters


def test_the_list_says_what_is_loaded(changed: Served, bundle: Written, files: dict[str, Path]) -> None:
    changed.bundle.load(files["one"], "a")
    changed.bundle.load(files["one"], "b")
    changed.bundle.load(files["two"], "c")
    listed = changed.client.get("/adapters").json()["adapters"]
    assert [adapter["name"] for adapter in listed] == ["default", "a", "b", "c"]
    for adapter in listed:
        assert adapter["tasks"] == [
            {"name": head.task, "kind": head.task_kind, "labels": list(head.labels)}
            for head in bundle.heads.values()
        ]
        # The factors and heads of a float32 slot.
        numbers = bundle.adapter.layout.size + sum(h.weight.size + h.bias.size for h in bundle.heads.values())
        assert adapter["bytes"] == 4 * numbers
    digests = [adapter["sha256"] for adapter in listed]
    assert digests[1] == digests[2]
    assert len(set(digests)) == 3


def test_an_adapter_comes_is_replaced_and_goes(
    changed: Served, files: dict[str, Path], bundle: Written
) -> None:
    truth = Bundle.open(bundle.folder, threads=1)
    for name, status in ("one", 201), ("two", 200):
        truth.load(files[name], name)
        response = changed.client.put("/adapters/tenant-7", content=files[name].read_bytes())
        assert (response.status_code, response.json()) == (status, {"name": "tenant-7"})
        answers = changed.ask(texts=TEXTS, task="spam", adapter="tenant-7")
        assert close(answers, as_json(truth.predict(TEXTS, "spam", adapter=name)))
    assert changed.client.delete("/adapters/tenant-7").status_code == 204
    assert "tenant-7" not in changed.client.get("/adapters").text
    response = changed.client.post("/predict", json={"text": "red", "task": "spam", "adapter": "tenant-7"})
    assert response.status_code == 404


def test_every_answer_is_that_of_one_adapter_while_it_is_replaced(
    changed: Served, files: dict[str, Path], bundle: Written
) -> None:
    truth = Bundle.open(bundle.folder, threads=1)
    expected = {}
    for name in "one", "two":
        truth.load(files[name], name)
        expected[name] = as_json(truth.predict(TEXTS, "spam", adapter=name))
    assert not close(expected["one"], expected["two"])
    contents = {name: files[name].read_bytes() for name in expected}
    assert changed.client.put("/adapters/hot", content=contents["one"]).status_code == 201
    ended = threading.Event()

    def ask_until_the_end() -> list[str]:
        seen = []
        while not ended.is_set():
            answers = changed.ask(texts=TEXTS, task="spam", adapter="hot")
            (name,) = (name for name in expected if close(answers, expected[name]))
            seen.append(name)
        return seen

    with ThreadPoolExecutor(4) as pool:
        asking = [pool.submit(ask_until_the_end) for _ in range(4)]
        try:
            for number in range(60):
                name = ("two", "one")[number % 2]
                assert changed.client.put("/adapters/hot", content=contents[name]).status_code == 200
        finally:
            ended.set()
        seen = [name for future in asking for name in future.result()]
    assert {"one", "two"} == set(seen)


# ---------------------------------------------------------------- errors


def fields(**changes: object) -> bytes:
    content = {"texts": TEXTS, "task": "spam"} | changes
    return json.dumps({key: value for key, value in content.items() if value is not None}).encode()


@pytest.mark.parametrize(
    ("body", "status", "reason"),
    [
        (b"", 400, "not JSON"),
        (b"{", 400, "not JSON"),
        (b"\xff\xfe", 400, "not JSON"),
        (b"[" * 100_000, 400, "not JSON"),
        (b"[]", 400, "send an object"),
        (fields(adaptor="x"), 400, "'adaptor' is not known here"),
        (fields(texts=None), 400, "either field 'text' or field 'texts'"),
        (fields(text="red"), 400, "either field 'text' or field 'texts'"),
        (fields(texts="red"), 400, "send a list"),
        (fields(texts=[]), 400, "send a list of one string or more"),
        (fields(texts=["red", 7]), 400, "field 'texts' has 7: send a string"),
        (fields(texts=None, text=7), 400, "field 'text' has 7: send a string"),
        (fields(texts=None, text="\ud800"), 400, "not valid Unicode"),
        (fields(task=None), 400, "field 'task' is missing"),
        (fields(task=7), 400, "field 'task' has 7"),
        (fields(task=["spam"]), 400, "1 names for 3 texts"),
        (fields(adapter=["default"] * 4), 400, "4 names for 3 texts"),
        (fields(adapter=[["default"]] * 3), 400, "send a string"),
        (fields(task="trivia"), 400, "use choose()"),
        (fields(task="weather"), 404, "has no task 'weather'"),
        (fields(task=["spam", "spam", "weather"]), 404, "has no task 'weather'"),
        (fields(adapter="nobody"), 404, "adapter 'nobody' is not loaded"),
        (fields(adapter=["default", "default", "nobody"]), 404, "adapter 'nobody' is not loaded"),
        (fields(texts=["red"] * (MAX_TEXTS + 1)), 413, f"at most {MAX_TEXTS}"),
        (fields(texts=["x" * MAX_REQUEST]), 413, f"more than {MAX_REQUEST} bytes"),
    ],
)
def test_a_wrong_question_is_answered_with_what_is_wrong(
    served: Served, body: bytes, status: int, reason: str
) -> None:
    response = served.client.post("/predict", content=body)
    assert response.status_code == status
    assert reason in response.json()["error"]
    assert len(response.json()["error"]) < 300
    assert len(served.ask(texts=TEXTS, task="spam")) == 3


@pytest.mark.parametrize(
    ("changes", "status", "reason"),
    [
        ({"question": None}, 400, "field 'question' is missing"),
        ({"question": ["x"]}, 400, "send a string"),
        ({"choices": []}, 400, "send a list"),
        ({"choices": "ab"}, 400, "send a list"),
        ({"choices": ["a"] * (MAX_TEXTS + 1)}, 413, f"at most {MAX_TEXTS}"),
        ({"task": "spam"}, 400, "use predict()"),
        ({"task": "weather"}, 404, "has no task 'weather'"),
        ({"adapter": "nobody"}, 404, "adapter 'nobody' is not loaded"),
        ({"adapter": ["default", "default"]}, 400, "send a string"),
        ({"merged": True}, 400, "'merged' is not known here"),
    ],
)
def test_a_wrong_choice_is_answered_with_what_is_wrong(
    served: Served, changes: dict[str, Any], status: int, reason: str
) -> None:
    content = {"question": "who", "choices": ["a", "b"], "task": "trivia"} | changes
    content = {key: value for key, value in content.items() if value is not None}
    response = served.client.post("/choose", json=content)
    assert response.status_code == status
    assert reason in response.json()["error"]


def cut(content: bytes) -> bytes:
    return content[:-5]


def flipped(content: bytes) -> bytes:
    return content[:-5] + bytes([content[-5] ^ 1]) + content[-4:]


@pytest.mark.parametrize(
    ("broken", "status", "reason"),
    [
        (lambda files: files["foreign"].read_bytes(), 409, "contract"),
        (lambda files: files["int8"].read_bytes(), 409, "slot"),
        (lambda files: files["two"].read_bytes()[:-5], 422, "not a safetensors file"),
        (lambda files: files["two"].read_bytes()[:-1] + b"\x17", 422, "checksum"),
        (lambda _: b"", 422, "not a safetensors file"),
        (lambda _: b"PK\x03\x04 not at all", 422, "not a safetensors file"),
        (lambda _: bytes(MAX_ADAPTER + 1), 413, f"more than {MAX_ADAPTER} bytes"),
    ],
)
def test_an_adapter_that_cannot_be_used_leaves_the_old_one(
    changed: Served,
    files: dict[str, Path],
    broken: Callable[[dict[str, Path]], bytes],
    status: int,
    reason: str,
) -> None:
    assert changed.client.put("/adapters/hot", content=files["one"].read_bytes()).status_code == 201
    before = changed.ask(texts=TEXTS, task="spam", adapter="hot")
    response = changed.client.put("/adapters/hot", content=broken(files))
    assert response.status_code == status
    assert reason in response.json()["error"]
    assert "/tmp" not in response.json()["error"]
    assert changed.ask(texts=TEXTS, task="spam", adapter="hot") == before


def test_a_body_without_a_declared_length_is_limited_too(served: Served) -> None:
    chunks = (bytes(1 << 16) for _ in range(MAX_REQUEST // (1 << 16) + 2))
    response = served.client.post("/predict", content=chunks)
    assert response.status_code == 413


@pytest.mark.parametrize("name", ["..", "%2e%2e", ".hidden", "a b", "a%00b", "ä", "x" * 65, "-flag"])
@pytest.mark.parametrize("method", ["PUT", "DELETE"])
def test_names_of_adapters_are_plain(served: Served, files: dict[str, Path], name: str, method: str) -> None:
    # As bytes on the wire: a client library would tidy the path up.
    content = files["one"].read_bytes() if method == "PUT" else b""
    host, port = served.client.base_url.host, served.client.base_url.port
    head = f"{method} /adapters/{name} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
    head += f"Content-Length: {len(content)}\r\n"
    with socket.create_connection((host, port)) as connection:
        connection.sendall(head.encode() + b"\r\n" + content)
        answer = b"".join(iter(lambda: connection.recv(1 << 16), b""))
    assert answer.split()[1] == b"400"
    assert list(served.bundle.adapters) == ["default"]


def test_a_name_with_a_slash_is_no_adapter(served: Served, files: dict[str, Path]) -> None:
    for path in "/adapters/a/b", "/adapters/a%2Fb", "/adapters/..%2Fb":
        assert served.client.put(path, content=files["one"].read_bytes()).status_code == 404
    assert list(served.bundle.adapters) == ["default"]


def test_what_is_not_there_and_what_cannot_be_done(served: Served) -> None:
    assert served.client.get("/").status_code == 404
    assert served.client.get("/predict").status_code == 405
    assert served.client.post("/adapters").status_code == 405
    assert served.client.delete("/adapters/nobody").status_code == 404
    for response in served.client.get("/"), served.client.delete("/adapters/nobody"):
        assert response.json()["error"]


def test_nothing_can_be_changed_unless_it_is_allowed(bundle: Written, files: dict[str, Path]) -> None:
    with serving(Bundle.open(bundle.folder, threads=1), allow_upload=False) as served:
        for response in (
            served.client.put("/adapters/one", content=files["one"].read_bytes()),
            served.client.delete("/adapters/default"),
        ):
            assert response.status_code == 403
            assert "--allow-upload" in response.json()["error"]
        assert list(served.bundle.adapters) == ["default"]
        assert len(served.ask(texts=TEXTS, task="spam")) == 3


# ---------------------------------------------------------------- health and metrics


def test_health_says_what_is_served(changed: Served, bundle: Written, files: dict[str, Path]) -> None:
    changed.bundle.load(files["one"], "one")
    response = changed.client.get("/health")
    assert response.status_code == 200
    assert response.json() == {
        "status": "ok",
        "contract": bundle.adapter.layout.contract,
        "base": "tiny-bert",
        "adapters": 2,
    }


def samples(served: Served) -> dict[tuple[str, ...], float]:
    response = served.client.get("/metrics")
    assert response.status_code == 200
    families = text_string_to_metric_families(response.text)
    return {
        (sample.name, *(sample.labels[key] for key in sorted(sample.labels))): sample.value
        for family in families
        for sample in family.samples
    }


def test_metrics_count_requests_and_adapters(changed: Served, files: dict[str, Path]) -> None:
    assert samples(changed)["fedkron_adapters",] == 1
    changed.ask(texts=TEXTS, task="spam")
    changed.ask(text="red", task="spam")
    changed.client.post("/predict", json={"text": "red", "task": "weather"})
    changed.client.post("/predict", content=b"{")
    changed.client.put("/adapters/one", content=files["one"].read_bytes())
    for path in "/made", "/up", "/adapters/a/b":
        changed.client.get(path)
    found = samples(changed)
    assert found["fedkron_requests_total", "predict", "200"] == 2
    assert found["fedkron_requests_total", "predict", "404"] == 1
    assert found["fedkron_requests_total", "predict", "400"] == 1
    assert found["fedkron_requests_total", "adapter", "201"] == 1
    assert found["fedkron_requests_total", "unknown", "404"] == 3
    assert found["fedkron_requests_total", "metrics", "200"] == 1
    assert found["fedkron_request_seconds_count", "predict"] == 4
    assert found["fedkron_request_seconds_bucket", "predict", "+Inf"] == 4
    assert found["fedkron_request_seconds_sum", "predict"] > 0
    assert found["fedkron_adapters",] == 2
    resident = sum(adapter.nbytes for adapter in changed.bundle.adapters.values())
    assert found["fedkron_adapter_bytes",] == resident
