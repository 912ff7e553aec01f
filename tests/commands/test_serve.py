"""`fedkron serve` as a process: where it listens, what it follows, and how it ends."""

import json
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import httpx
import pytest
from command_cases import Capture, Command, Finished

from fedkron.cli import main
from fedkron.edge.runtime import Bundle
from fedkron.exchange import AdapterFile, load_adapter, save_adapter

TEXTS = ["my bark is near the bone", "purr purr the paw"]


@dataclass(frozen=True)
class Service:
    process: subprocess.Popen[str]
    client: httpx.Client
    log: Path

    def predict(self, **fields: object) -> httpx.Response:
        return self.client.post("/predict", json={"texts": TEXTS, "task": "animals"} | fields)


@contextmanager
def serving(
    bundle: Path, log: Path, flags: Sequence[object] = (), program: Sequence[str] = ("-m", "fedkron.cli")
) -> Iterator[Service]:
    """A service on a free port; what it logs goes to the file `log`."""
    command = [sys.executable, *program, "serve", bundle, "--port", 0, "--threads", 1, *flags]
    with (
        log.open("w") as errors,
        subprocess.Popen([*map(str, command)], stdout=subprocess.PIPE, stderr=errors, text=True) as process,
    ):
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            match = re.search(r"http://(\S+):(\d+)$", line)
            assert match, line + log.read_text()
            url = match[0].replace("0.0.0.0", "127.0.0.1")
            with httpx.Client(base_url=url, timeout=30, trust_env=False) as client:
                yield Service(process, client, log)
        finally:
            process.kill()


@pytest.fixture(scope="module")
def other(finished: Finished, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained adapter file that gives other answers."""
    adapter = load_adapter(finished.run / "adapter.safetensors")
    state = {n: (v * 3 if n.endswith("B1") else v) for n, v in adapter.state.items()}
    path = tmp_path_factory.mktemp("other") / "other.safetensors"
    save_adapter(path, AdapterFile(state, adapter.layout, adapter.base_name))
    return path


@pytest.fixture(scope="module")
def followed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("followed")


@pytest.fixture(scope="module")
def service(
    finished: Finished, followed: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Service]:
    log = tmp_path_factory.mktemp("log") / "log.txt"
    with serving(finished.bundle, log, ["--adapters", followed]) as running:
        yield running


def expected(bundle: Path, adapter: Path | None = None) -> list[dict[str, object]]:
    opened = Bundle.open(bundle, threads=1)
    name = opened.load(adapter, "truth") if adapter else "default"
    return json.loads(json.dumps([asdict(p) for p in opened.predict(TEXTS, "animals", adapter=name)]))


def within(seconds: float, service: Service, adapter: str) -> httpx.Response:
    """The first answer of an adapter that is not an error, or the last error."""
    end = time.monotonic() + seconds
    while True:
        response = service.predict(adapter=adapter)
        if response.status_code == 200 or time.monotonic() > end:
            return response
        time.sleep(0.05)


def test_it_answers_as_the_bundle_does(service: Service, finished: Finished) -> None:
    assert service.client.get("/health").json()["status"] == "ok"
    response = service.predict()
    assert response.json()["answers"] == expected(finished.bundle)
    assert service.client.base_url.host == "127.0.0.1"


def test_it_takes_up_and_keeps_adapters_of_the_folder(
    service: Service, finished: Finished, followed: Path, other: Path
) -> None:
    assert service.predict(adapter="tenant").status_code == 404
    shutil.copy(other, followed / ".new")
    (followed / ".new").replace(followed / "tenant.safetensors")
    # A second, and time for a busy machine.
    answers = within(10, service, "tenant").json()["answers"]
    assert answers == expected(finished.bundle, other)
    assert answers != expected(finished.bundle)
    (followed / ".new").write_bytes(other.read_bytes()[:-7])
    (followed / ".new").replace(followed / "tenant.safetensors")
    end = time.monotonic() + 10
    while "WARNING" not in service.log.read_text() and time.monotonic() < end:
        time.sleep(0.05)
    assert "adapter 'tenant' stays as it is" in service.log.read_text()
    assert service.predict(adapter="tenant").json()["answers"] == answers


def test_uploads_are_refused_by_default(service: Service, other: Path) -> None:
    response = service.client.put("/adapters/mine", content=other.read_bytes())
    assert (response.status_code, service.predict(adapter="mine").status_code) == (403, 404)
    assert "--allow-upload" in response.json()["error"]


def test_a_port_that_is_taken_is_refused(service: Service, finished: Finished, capsys: Capture) -> None:
    port = service.client.base_url.port
    error = Command("serve").error_of(capsys, finished.bundle, "--port", port)
    assert f"cannot listen on 127.0.0.1, port {port}" in error


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        (["--port", 99999], "cannot listen"),
        (["--host", "256.1.1.1"], "cannot listen"),
        (["--adapters", "nowhere"], "nowhere is not a folder"),
    ],
)
def test_what_cannot_be_served_is_said(
    finished: Finished, capsys: Capture, flags: Sequence[object], reason: str
) -> None:
    assert reason in Command("serve").error_of(capsys, finished.bundle, *flags)


def test_something_else_than_a_bundle_is_refused(tmp_path: Path, capsys: Capture) -> None:
    assert "is not a bundle" in Command("serve").error_of(capsys, tmp_path)


def test_the_help_says_that_there_is_no_authentication(capsys: Capture) -> None:
    with pytest.raises(SystemExit):
        main(["serve", "--help"])
    upload = capsys.readouterr().out.partition("--allow-upload  ")[2]
    assert "no authentication" in " ".join(upload.split())


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_after_the_request_that_has_begun(
    finished: Finished, other: Path, tmp_path: Path, number: signal.Signals
) -> None:
    flags = ["--allow-upload", "--host", "0.0.0.0"]
    with serving(finished.bundle, tmp_path / "log.txt", flags) as running:
        assert "there is no authentication" in running.log.read_text()
        assert running.client.put("/adapters/mine", content=other.read_bytes()).status_code == 201
        body = json.dumps({"texts": TEXTS, "task": "animals", "adapter": "mine"}).encode()
        head = f"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n"
        address = (running.client.base_url.host, running.client.base_url.port)
        with socket.create_connection(address, timeout=30) as connection:
            connection.sendall(head.encode() + b"Expect: 100-continue\r\n\r\n")
            assert connection.recv(1000).startswith(b"HTTP/1.1 100")
            running.process.send_signal(number)
            time.sleep(0.5)
            assert running.process.poll() is None
            connection.sendall(body)
            answer = b"".join(iter(lambda: connection.recv(1 << 16), b""))
        assert answer.startswith(b"HTTP/1.1 200")
        answers = json.loads(answer.partition(b"\r\n\r\n")[2])["answers"]
        assert answers == expected(finished.bundle, other)
        assert running.process.wait(30) == 0
        assert "Traceback" not in running.log.read_text()


def test_it_runs_without_torch(finished: Finished, tmp_path: Path) -> None:
    missing = "; ".join(f"sys.modules[{name!r}] = None" for name in ("torch", "transformers", "onnx", "flwr"))
    code = f"import sys; {missing}; from fedkron.cli import main; sys.exit(main())"
    with serving(finished.bundle, tmp_path / "log.txt", program=["-c", code]) as running:
        assert running.predict().json()["answers"] == expected(finished.bundle)
