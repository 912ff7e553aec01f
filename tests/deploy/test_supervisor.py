"""The supervisor with small real processes: they come back when they die, and go with what they started."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from fedkron.deploy.supervisor import Program, Supervisor, session_members, tail

FAMILY = """
import signal, subprocess, sys, time
print("born", flush=True)
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
print("child", child.pid, flush=True)
time.sleep(600)
"""

STUBBORN = """
import signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print("born", flush=True)
time.sleep(600)
"""

ORDERLY = """
import signal, sys, time
def end(*_):
    print("good-bye", flush=True)
    sys.exit(0)
signal.signal(signal.SIGTERM, end)
print("born", flush=True)
time.sleep(600)
"""


def program(folder: Path, code: str, name: str = "it") -> Program:
    return Program(
        name, (sys.executable, "-c", code), {"MARK": name}, folder, folder / "logs" / f"{name}.log"
    )


def until(true: Callable[[], bool], patience: float = 15) -> None:
    deadline = time.monotonic() + patience
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def said(folder: Path, words: str, times: int = 1, name: str = "it") -> Callable[[], bool]:
    log = folder / "logs" / f"{name}.log"
    return lambda: log.exists() and log.read_text().count(words) >= times


def child_of(folder: Path) -> int:
    return int((folder / "logs" / "it.log").read_text().rpartition("child ")[2].split()[0])


def alive(pid: int) -> bool:
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


def test_everything_is_ended_children_and_grandchildren_too(tmp_path: Path) -> None:
    with Supervisor(lambda _: None) as supervisor:
        supervisor.start(program(tmp_path, FAMILY))
        until(said(tmp_path, "child"))
        leader, child = supervisor.pid("it"), child_of(tmp_path)
        assert leader is not None
        assert {process.pid for process in supervisor.members()} == {leader, child}
    assert not alive(leader)
    assert not alive(child)
    assert list(session_members({leader})) == []


def test_a_killed_program_comes_back_and_its_orphans_do_not_stay(tmp_path: Path) -> None:
    lines: list[str] = []
    with Supervisor(lines.append) as supervisor:
        supervisor.start(program(tmp_path, FAMILY))
        until(said(tmp_path, "child"))
        first, orphan = supervisor.pid("it"), child_of(tmp_path)
        assert first is not None
        os.kill(first, signal.SIGKILL)
        until(said(tmp_path, "child", 2))
        assert not alive(orphan)
        second = supervisor.pid("it")
        assert second not in (None, first)
        assert supervisor.deaths("it") == 1
        assert child_of(tmp_path) in {process.pid for process in supervisor.members()}
    assert lines == ["it ended with code -9; it is started again in 1 s"]


def test_pauses_grow_while_a_program_keeps_dying(tmp_path: Path) -> None:
    lines: list[str] = []
    with Supervisor(lines.append) as supervisor:
        supervisor.start(program(tmp_path, "import sys; print('no luck'); sys.exit(3)"))
        until(said(tmp_path, "no luck", 3))
        until(lambda: len(lines) == 3)
    assert [line.rpartition(" in ")[2] for line in lines] == ["1 s", "2 s", "4 s"]
    assert all("code 3" in line for line in lines)
    assert tail(tmp_path / "logs" / "it.log", 2) == "no luck\nno luck"


def test_what_cannot_be_started_is_reported(tmp_path: Path) -> None:
    lines: list[str] = []
    with Supervisor(lines.append) as supervisor:
        missing = Program("ghost", (str(tmp_path / "none"),), {}, tmp_path, tmp_path / "ghost.log")
        supervisor.start(missing)
        until(lambda: bool(lines))
        assert supervisor.pid("ghost") is None
    assert "could not be started" in lines[0]


def test_a_program_that_ends_when_asked_is_let_to(tmp_path: Path) -> None:
    with Supervisor(lambda _: None) as supervisor:
        supervisor.start(program(tmp_path, ORDERLY))
        until(said(tmp_path, "born"))
        supervisor.end("it")
        assert supervisor.pid("it") is None
        time.sleep(0.5)
        assert supervisor.pid("it") is None
    assert tail(tmp_path / "logs" / "it.log") == "born\ngood-bye"


@pytest.mark.parametrize("state", ["deaf", "stopped"])
def test_one_that_does_not_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, state: str) -> None:
    monkeypatch.setattr("fedkron.deploy.supervisor.PATIENCE", 0.5)
    with Supervisor(lambda _: None) as supervisor:
        supervisor.start(program(tmp_path, STUBBORN if state == "deaf" else FAMILY))
        until(said(tmp_path, "born"))
        pid = supervisor.pid("it")
        assert pid is not None
        if state == "stopped":
            os.kill(pid, signal.SIGSTOP)
    assert not alive(pid)


def test_an_error_inside_ends_all_of_them(tmp_path: Path) -> None:
    pids: list[int | None] = []

    def fail() -> None:
        with Supervisor(lambda _: None) as supervisor:
            for name in ("a", "b"):
                supervisor.start(program(tmp_path, ORDERLY, name))
                until(said(tmp_path, "born", name=name))
                pids.append(supervisor.pid(name))
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert not any(alive(pid) for pid in pids if pid is not None)


INTERRUPTED = """
import sys, time
from pathlib import Path
from fedkron.commands.interruption import interruptible
from fedkron.deploy.supervisor import Program, Supervisor
folder = Path(sys.argv[1])
with interruptible(), Supervisor(lambda _: None) as supervisor:
    command = (sys.executable, "-c", sys.argv[2])
    supervisor.start(Program("it", command, {}, folder, folder / "logs" / "it.log"))
    time.sleep(600)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_all_of_them_even_when_it_comes_twice(tmp_path: Path, number: signal.Signals) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", INTERRUPTED, str(tmp_path), FAMILY],
        stderr=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )
    until(said(tmp_path, "child"))
    child = child_of(tmp_path)
    process.send_signal(number)
    time.sleep(0.05)
    process.send_signal(number)
    assert process.wait(timeout=20) != 0
    assert not alive(child)
