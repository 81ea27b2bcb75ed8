"""Which address is connected when a name has several."""

import asyncio
import socket

import pytest

from host.upstream import tcp
from tests.support.ports import reserved_port
from tests.support.upstream_servers import ScriptedServer, ServerConnection, within


def addresses(*ports: int) -> list[tcp.AddressInfo]:
    return [(socket.AF_INET, socket.SOCK_STREAM, 0, "", ("127.0.0.1", port)) for port in ports]


def resolving_to(monkeypatch: pytest.MonkeyPatch, *ports: int) -> None:
    async def resolve(host: str, port: int) -> list[tcp.AddressInfo]:
        return addresses(*ports)

    monkeypatch.setattr(tcp, "_resolve", resolve)


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("93.184.216.34", True),
        ("2606:2800:220:1:248:1893:25c8:1946", True),
        ("127.0.0.1", False),
        ("127.9.9.9", False),
        ("0.0.0.0", False),
        ("10.0.0.1", False),
        ("172.16.0.1", False),
        ("192.168.1.1", False),
        ("100.64.0.1", False),
        ("169.254.169.254", False),
        ("224.0.0.1", False),
        ("255.255.255.255", False),
        ("::1", False),
        ("::", False),
        ("fe80::1%eth0", False),
        ("fd00:ec2::254", False),
        ("ff02::1", False),
        ("::ffff:127.0.0.1", False),
        ("::ffff:93.184.216.34", True),
        ("64:ff9b::7f00:1", False),
        ("64:ff9b::5db8:d822", True),
        ("2002:7f00:1::", False),
        ("nonsense", False),
    ],
)
def test_public_is_what_leads_to_somebody_on_the_internet(address: str, public: bool) -> None:
    assert tcp.is_public(address) is public


async def test_a_name_that_leads_into_this_machine_is_not_connected_to(monkeypatch: pytest.MonkeyPatch) -> None:
    async with ScriptedServer(open_until_closed) as server:
        resolving_to(monkeypatch, server.port)
        with pytest.raises(tcp.NotPublic):
            await within(tcp.connect_tcp("name", 80, stagger_s=3600, public_only=True))
        assert server.accepted == 0


async def open_until_closed(connection: ServerConnection) -> None:
    await connection.closed_by_peer()


async def test_a_refused_address_is_followed_by_the_next_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    async with ScriptedServer(open_until_closed) as server:
        with reserved_port() as refusing:
            resolving_to(monkeypatch, refusing, server.port)
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
    with reserved_port() as one, reserved_port() as other:
        resolving_to(monkeypatch, one, other)
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
