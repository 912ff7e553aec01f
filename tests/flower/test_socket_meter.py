"""The relay: what goes in comes out, and each byte is counted once, in its direction."""

import asyncio
import datetime
import ipaddress
import itertools
import random
import socket
import ssl
import struct
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from fedkron.errors import ConfigError, RunError
from fedkron.flower.socket_meter import Address, SocketMeter
from fedkron.socketlog import read_socket_log, socket_totals

HERE = Address("127.0.0.1", 0)
Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(1 << 16):
        writer.write(data)
        await writer.drain()
    writer.close()


@asynccontextmanager
async def serving(handler: Handler, tls: ssl.SSLContext | None = None) -> AsyncIterator[Address]:
    """A server of the test's own."""
    server = await asyncio.start_server(handler, *HERE, ssl=tls)
    try:
        yield Address(*server.sockets[0].getsockname())
    finally:
        server.close()


async def sent_and_answered(address: Address, data: bytes) -> bytes:
    """Send all, say so (half-close), and read the answer to its end."""
    reader, writer = await asyncio.open_connection(*address)
    _, answer = await asyncio.gather(write_all(writer, data), reader.read())
    writer.close()
    return answer


async def write_all(writer: asyncio.StreamWriter, data: bytes) -> None:
    writer.write(data)
    await writer.drain()
    writer.write_eof()


async def until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not true():
            await asyncio.sleep(0.01)


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


# ------------------------------------------------------------------ counting


@pytest.mark.parametrize("size", [0, 1, 70_001, 20_000_000])
def test_what_is_sent_comes_back_and_is_counted_exactly_both_ways(size: int, tmp_path: Path) -> None:
    data = random.Random(size).randbytes(size)
    path = tmp_path / "new" / "sockets.jsonl"

    async def scene() -> None:
        async with serving(echo) as target, SocketMeter(HERE, target, path=path) as meter:
            assert await sent_and_answered(meter.address, data) == data
        (connection,) = meter.connections
        assert (connection.connection, connection.up, connection.down) == (1, size, size)

    asyncio.run(scene())
    totals = socket_totals(read_socket_log(path))
    assert (totals.up, totals.down, totals.connections) == (size, size, 1)


def test_directions_and_connections_are_counted_apart(tmp_path: Path) -> None:
    rng = random.Random(3)
    wanted = [(rng.randrange(300_000), rng.randrange(300_000)) for _ in range(40)]

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        (size,) = struct.unpack("<Q", await reader.readexactly(8))
        await reader.read()
        writer.write(bytes(size))
        await writer.drain()
        writer.close()

    async def ask(address: Address, up: int, down: int) -> None:
        assert len(await sent_and_answered(address, struct.pack("<Q", down) + bytes(up))) == down

    async def scene() -> None:
        path = tmp_path / "sockets.jsonl"
        async with serving(answer) as target, SocketMeter(HERE, target, path=path) as meter:
            await asyncio.gather(*(ask(meter.address, up, down) for up, down in wanted))
        expected = sorted((up + 8, down) for up, down in wanted)
        assert sorted((c.up, c.down) for c in meter.connections) == expected
        assert [c.connection for c in meter.connections] == list(range(1, 41))
        logged = read_socket_log(path)
        for connection in meter.connections:
            own = socket_totals(c for c in logged if c.connection == connection.connection)
            assert (own.up, own.down) == (connection.up, connection.down)

    asyncio.run(scene())


def test_a_connection_that_stays_open_is_counted_and_logged_while_it_lasts(tmp_path: Path) -> None:
    path = tmp_path / "sockets.jsonl"

    def logged() -> tuple[int, int]:
        totals = socket_totals(read_socket_log(path))
        return totals.up, totals.down

    async def scene() -> None:
        async with serving(echo) as target, SocketMeter(HERE, target, path=path) as meter:
            reader, writer = await asyncio.open_connection(*meter.address)
            sent = 0
            for size in (5, 50_000):
                writer.write(bytes(size))
                await reader.readexactly(size)
                sent += size
                (connection,) = meter.connections
                assert (connection.up, connection.down) == (sent, sent)
                await until(lambda sent=sent: logged() == (sent, sent))
            before = path.read_bytes()
            await asyncio.sleep(1.2)
            assert path.read_bytes() == before  # nothing moved, nothing to say
        assert await reader.read() == b""  # the end of the meter is the end of its connections
        assert logged() == (sent, sent)
        writer.close()
        lines = read_socket_log(path)
        assert all(a.end == b.start for a, b in itertools.pairwise(lines))

    asyncio.run(scene())


# ------------------------------------------------------------------ a relay as if it were not there


def test_the_end_of_one_direction_leaves_the_other_open() -> None:
    async def answer_after_the_end(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        received = await reader.read()  # ends only when the half-close is passed on
        for _ in range(3):
            await asyncio.sleep(0.05)
            writer.write(received)
            await writer.drain()
        writer.close()

    async def scene() -> None:
        async with serving(answer_after_the_end) as target, SocketMeter(HERE, target) as meter:
            assert await sent_and_answered(meter.address, b"question") == b"question" * 3
            (connection,) = meter.connections
            assert (connection.up, connection.down) == (8, 24)

    asyncio.run(scene())


def test_the_server_may_end_its_direction_first() -> None:
    received = bytearray()

    async def greet_and_listen(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await write_all(writer, b"only listening")
        received.extend(await reader.read())
        writer.close()

    async def scene() -> None:
        async with serving(greet_and_listen) as target, SocketMeter(HERE, target) as meter:
            reader, writer = await asyncio.open_connection(*meter.address)
            assert await reader.read() == b"only listening"
            await write_all(writer, bytes(100_000))
            await until(lambda: len(received) == 100_000)
            assert meter.connections[0].up == 100_000
            writer.close()

    asyncio.run(scene())


def test_a_slow_receiver_slows_the_sender_down() -> None:
    size = 64 << 20
    read_on = asyncio.Event()

    async def slow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_on.wait()
        while await reader.read(1 << 20):
            pass
        writer.close()

    async def scene() -> None:
        async with serving(slow) as target, SocketMeter(HERE, target) as meter:
            asking = asyncio.create_task(sent_and_answered(meter.address, bytes(size)))
            seen = -1
            while not meter.connections or meter.connections[0].up > seen:
                seen = meter.connections[0].up if meter.connections else -1
                await asyncio.sleep(0.3)
            assert 0 < seen < size / 2  # the rest waits with the sender, not in the relay
            read_on.set()
            await asking
            assert meter.connections[0].up == size

    asyncio.run(scene())


@pytest.mark.parametrize("breaks", ["client", "server"])
def test_a_broken_connection_is_broken_on_both_sides_and_the_next_one_works(breaks: str) -> None:
    ended = asyncio.Event()

    def reset(writer: asyncio.StreamWriter) -> None:
        plain = writer.get_extra_info("socket")
        plain.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        writer.transport.abort()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        first = await reader.read(4)
        if first == b"fall" and breaks == "server":
            reset(writer)
            return
        writer.write(first)
        with suppress(ConnectionError):
            await reader.read()
        writer.close()
        ended.set()

    async def scene() -> None:
        async with serving(handle) as target, SocketMeter(HERE, target) as meter:
            reader, writer = await asyncio.open_connection(*meter.address)
            writer.write(b"fall")
            if breaks == "client":
                assert await reader.read(4) == b"fall"
                reset(writer)
                async with asyncio.timeout(5):
                    await ended.wait()
            else:
                async with asyncio.timeout(5):
                    with suppress(ConnectionError):
                        assert await reader.read() == b""
            assert meter.connections[0].up == 4
            assert await sent_and_answered(meter.address, b"next") == b"next"

    asyncio.run(scene())


def test_tls_passes_through_and_the_counts_are_of_what_is_on_the_wire(tmp_path: Path) -> None:
    server_side, client_side = tls_contexts(tmp_path)
    data = random.Random(1).randbytes(1_000_000)

    async def scene() -> None:
        async with (
            serving(echo_until_all(len(data)), server_side) as target,
            SocketMeter(HERE, target) as meter,
        ):
            reader, writer = await asyncio.open_connection(*meter.address, ssl=client_side)
            writer.write(data)
            assert await reader.readexactly(len(data)) == data
            writer.close()
            (connection,) = meter.connections
            for count in (connection.up, connection.down):
                assert len(data) < count < 1.01 * len(data) + 5000

    asyncio.run(scene())


def echo_until_all(size: int) -> Handler:
    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(await reader.readexactly(size))
        await writer.drain()
        await reader.read()
        writer.close()

    return handle


def tls_contexts(folder: Path) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """A self-signed certificate for 127.0.0.1: for the server, and for a client that trusts only it."""
    key, now = ec.generate_private_key(ec.SECP256R1()), datetime.datetime.now(datetime.UTC)
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "test")])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), False
        )
        .sign(key, hashes.SHA256())
    )
    encoding, form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    pem, private = folder / "cert.pem", folder / "key.pem"
    pem.write_bytes(certificate.public_bytes(encoding))
    private.write_bytes(key.private_bytes(encoding, form, serialization.NoEncryption()))
    server_side = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server_side.load_cert_chain(pem, private)
    return server_side, ssl.create_default_context(cafile=pem)


# ------------------------------------------------------------------ trouble


def test_a_target_that_goes_away_is_reported_and_the_meter_goes_on() -> None:
    warnings: list[str] = []

    async def scene() -> None:
        async with AsyncExitStack() as stack:
            async with serving(echo) as target:
                meter = await stack.enter_async_context(SocketMeter(HERE, target, warn=warnings.append))
            with suppress(ConnectionError):
                assert await sent_and_answered(meter.address, b"anybody?") == b""
            assert warnings == [f"cannot reach {target}: Connection refused"]
            server = await asyncio.start_server(echo, *target)
            assert await sent_and_answered(meter.address, b"back again") == b"back again"
            server.close()
            assert [(c.up, c.down) for c in meter.connections] == [(0, 0), (10, 10)]

    asyncio.run(scene())


def test_a_target_that_is_not_there_is_refused_at_once() -> None:
    async def scene() -> None:
        async with SocketMeter(HERE, Address("127.0.0.1", port)):
            pass

    port = free_port()
    with pytest.raises(
        RunError, match=f"cannot reach 127.0.0.1:{port}: Connection refused; start what listens"
    ):
        asyncio.run(scene())


def test_a_port_that_is_taken_is_refused_by_name(tmp_path: Path) -> None:
    async def scene() -> None:
        async with serving(echo) as target:
            said = f"cannot listen on {target}: Address already in use"
            with pytest.raises(RunError, match=said):
                async with SocketMeter(target, target, path=tmp_path / "log"):
                    pass
        assert not (tmp_path / "log").exists()

    asyncio.run(scene())


def test_a_log_that_cannot_be_written_is_refused_and_the_port_is_free_again(tmp_path: Path) -> None:
    async def scene() -> None:
        listen = Address("127.0.0.1", free_port())
        async with serving(echo) as target:
            with pytest.raises(RunError, match=f"cannot write the socket log {tmp_path}: Is a directory"):
                async with SocketMeter(listen, target, path=tmp_path):
                    pass
            async with SocketMeter(listen, target) as meter:
                assert await sent_and_answered(meter.address, b"works") == b"works"

    asyncio.run(scene())


def test_what_is_listed_while_it_runs_is_a_picture_of_that_moment() -> None:
    async def scene() -> None:
        async with serving(echo) as target, SocketMeter(HERE, target) as meter:
            began = time.time()
            assert meter.connections == []
            await sent_and_answered(meter.address, b"12345")
            (before,) = meter.connections
            await sent_and_answered(meter.address, b"1")
            assert (before.up, before.down) == (5, 5)
            assert began <= before.start <= before.end <= time.time()

    asyncio.run(scene())


# ------------------------------------------------------------------ addresses


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("127.0.0.1:9092", Address("127.0.0.1", 9092)),
        ("superlink.example:0", Address("superlink.example", 0)),
        ("[::1]:65535", Address("::1", 65535)),
    ],
)
def test_an_address_is_read_and_written_the_same(text: str, address: Address) -> None:
    assert Address.parse(text) == address
    assert str(address) == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        ":",
        "9092",
        ":9092",
        "host",
        "host:",
        "host:port",
        "host:65536",
        "host:-1",
        "::1:9092",
        "[]:1",
        "h:٣",
    ],
)
def test_anything_else_is_no_address(text: str) -> None:
    with pytest.raises(ConfigError, match="is not an address: write HOST:PORT"):
        Address.parse(text)
