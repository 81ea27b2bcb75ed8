"""Which address is connected when a name has several."""

import asyncio
import socket

import pytest

from host.upstream import tcp
from tests.support.upstream_servers import ScriptedServer, ServerConnection, within


def addresses(*ports: int) -> list[tcp.AddressInfo]:
    return [(socket.AF_INET, socket.SOCK_STREAM, 0, "", ("127.0.0.1", port)) for port in ports]


def resolving_to(monkeypatch: pytest.MonkeyPatch, *ports: int) -> None:
    async def resolve(host: str, port: int) -> list[tcp.AddressInfo]:
        return addresses(*ports)

    monkeypatch.setattr(tcp, "_resolve", resolve)


def unused_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


async def open_until_closed(connection: ServerConnection) -> None:
    await connection.closed_by_peer()


async def test_a_refused_address_is_followed_by_the_next_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    async with ScriptedServer(open_until_closed) as server:
        resolving_to(monkeypatch, unused_port(), server.port)
        sock = await within(tcp.connect_tcp("name", 80, stagger_s=3600))
        with sock:
            assert sock.getpeername() == ("127.0.0.1", server.port)


async def test_an_address_that_does_not_answer_is_overtaken_and_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    given_up = asyncio.Event()
    connect = tcp._connect

    async def connect_or_hang(address: tcp.AddressInfo) -> socket.socket:
        if address[4][1] != 1:
            return await connect(address)
        try:
            await asyncio.Event().wait()
        finally:
            given_up.set()
        raise AssertionError

    monkeypatch.setattr(tcp, "_connect", connect_or_hang)
    async with ScriptedServer(open_until_closed) as server:
        resolving_to(monkeypatch, 1, server.port)
        sock = await within(tcp.connect_tcp("name", 80, stagger_s=0.001))
        with sock:
            assert sock.getpeername() == ("127.0.0.1", server.port)
        assert given_up.is_set()


async def test_all_addresses_refused_is_the_error_of_the_last(monkeypatch: pytest.MonkeyPatch) -> None:
    resolving_to(monkeypatch, unused_port(), unused_port())
    with pytest.raises(ConnectionRefusedError):
        await within(tcp.connect_tcp("name", 80, stagger_s=3600))


async def test_cancelling_a_race_leaves_no_attempt_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    started, ended = asyncio.Event(), 0

    async def hang(address: tcp.AddressInfo) -> socket.socket:
        nonlocal ended
        started.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended += 1
        raise AssertionError

    monkeypatch.setattr(tcp, "_connect", hang)
    resolving_to(monkeypatch, 1, 2)
    racing = asyncio.create_task(tcp.connect_tcp("name", 80, stagger_s=3600), name="race")
    await within(started.wait())
    racing.cancel()
    await asyncio.wait([racing])
    assert racing.cancelled()
    assert ended == 1


async def test_address_families_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    six = [(socket.AF_INET6, socket.SOCK_STREAM, 6, "", (f"::{number}", 80, 0, 0)) for number in (1, 2, 3)]
    four = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", 80))]

    def getaddrinfo(*_: object, flags: int = 0, **__: object) -> list[tuple[object, ...]]:
        if flags & socket.AI_NUMERICHOST:
            raise socket.gaierror
        return [*six, *four]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    resolved = await within(tcp._resolve("name", 80))
    assert [info[4][0] for info in resolved] == ["::1", "127.0.0.1", "::2", "::3"]


async def test_sockets_send_at_once_and_probe_silent_peers() -> None:
    async with ScriptedServer(open_until_closed) as server:
        sock = await within(tcp.connect_tcp("127.0.0.1", server.port, stagger_s=1))
        with sock:
            assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
            assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
