"""`fedkron meter` as a process: what it relays, how it ends, what it says when it cannot begin."""

import signal
import socket
import socketserver
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from fedkron.cli import main
from fedkron.socketlog import read_socket_log, socket_totals


class Echo(socketserver.StreamRequestHandler):
    def handle(self) -> None:
        while data := self.request.recv(1 << 16):
            self.request.sendall(data)


@pytest.fixture
def target() -> Iterator[str]:
    """The address of a server that sends back what it gets."""
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Echo) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"127.0.0.1:{server.server_address[1]}"
        server.shutdown()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_relays_until_a_signal_and_then_shows_and_keeps_the_counts(
    target: str, tmp_path: Path, number: signal.Signals
) -> None:
    command = [sys.executable, "-m", "fedkron.cli", "meter", "--listen", "127.0.0.1:0", "--to", target]
    with subprocess.Popen(
        [*command, "-o", str(tmp_path / "log")], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as meter:
        first = meter.stderr.readline()
        host, port = first.split("listening on ")[1].split(",")[0].split(":")
        # One connection is still open when the meter ends.
        with socket.create_connection((host, int(port))) as opened:
            for data in (b"a" * 4000, b"b" * 56):
                opened.sendall(data)
                assert opened.recv(len(data), socket.MSG_WAITALL) == data
            with socket.create_connection((host, int(port))) as closed:
                closed.sendall(b"short")
                assert closed.recv(5, socket.MSG_WAITALL) == b"short"
            meter.send_signal(number)
            output, errors = meter.communicate(timeout=20)
    assert (meter.returncode, errors) == (0, "")
    assert "all 2 4.1 kB 4.1 kB" in [" ".join(line.split()) for line in output.splitlines()]
    totals = socket_totals(read_socket_log(tmp_path / "log"))
    assert (totals.up, totals.down, totals.connections) == (4061, 4061, 2)


def refusal(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    assert main(["meter", *map(str, arguments)]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("fedkron: ")
    assert captured.err.count("\n") == 1
    return captured.err


def test_what_stands_in_the_way_is_named_in_one_line(
    target: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert f"cannot listen on {target}: Address already in use" in refusal(
        capsys, "--listen", target, "--to", target
    )
    assert "'nowhere' is not an address: write HOST:PORT" in refusal(
        capsys, "--listen", "nowhere", "--to", target
    )
    assert "cannot reach 127.0.0.1:1: Connection refused; start what listens there first" in refusal(
        capsys, "--listen", "127.0.0.1:0", "--to", "127.0.0.1:1"
    )
    assert "cannot reach no.such.host.invalid:1: " in refusal(
        capsys, "--listen", "127.0.0.1:0", "--to", "no.such.host.invalid:1"
    )
    assert f"cannot write the socket log {tmp_path}: Is a directory" in refusal(
        capsys, "--listen", "127.0.0.1:0", "--to", target, "-o", tmp_path
    )
