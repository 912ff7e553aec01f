"""A SuperLink that does not answer is waited for, but not for ever."""

import time
from pathlib import Path

import pytest

from fedkron.commands.progress import NoProgress
from fedkron.commands.run import _wait
from fedkron.errors import RunError
from fedkron.flower.superlink import QUIET, Connection, free_ports


def test_a_silent_superlink_is_waited_for_and_then_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (port,) = free_ports(1)
    (tmp_path / "config.toml").write_text(
        f'[superlink]\ndefault = "gone"\n\n[superlink.gone]\naddress = "127.0.0.1:{port}"\ninsecure = true\n'
    )
    asked = []
    ask = Connection.status

    def counted(connection: Connection, run_id: int) -> tuple[str, str]:
        asked.append(run_id)
        return ask(connection, run_id)

    monkeypatch.setattr(Connection, "status", counted)
    monkeypatch.setattr("fedkron.commands.run.STATUS_POLL_SECONDS", 0.0)
    monkeypatch.setattr("fedkron.commands.run.SILENCE_SECONDS", 3.0)
    began = time.monotonic()
    connection = Connection("gone", {**QUIET, "FLWR_HOME": str(tmp_path)})
    with pytest.raises(RunError):
        _wait(connection, 7, tmp_path / "run", NoProgress())
    assert time.monotonic() - began > 3.0
    assert len(asked) > 1
