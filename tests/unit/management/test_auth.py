"""Who is admitted: the order of the checks, and that the slow hash cannot be used against the proxy."""

import asyncio
import threading
from collections.abc import AsyncIterator
from typing import Any

import pytest

from host.config.model import RemoteManagement
from host.management.auth import MAX_WAITING, Authenticator, Origin, offered_key
from host.management.calls import ManagementError
from host.tasks import TaskGroup
from host.web.clients import TrustedProxies
from pluginabi.immutable import freeze_headers

LOCAL = Origin("127.0.0.1", True, "localhost:1", "")
REMOTE = Origin("9.9.9.9", False, "gateway.example", "")


class Slow:
    """Counts verifications; the key is `right`. With `held` they wait for `go`."""

    def __init__(self) -> None:
        self.calls = 0
        self.running = 0
        self.most = 0
        self.go = threading.Event()
        self.go.set()

    def __call__(self, key: str, stored: str) -> bool:
        self.calls += 1
        self.running += 1
        self.most = max(self.most, self.running)
        assert self.go.wait(10)
        self.running -= 1
        return key == stored.removeprefix("hash of ")


@pytest.fixture
def slow() -> Slow:
    return Slow()


@pytest.fixture
async def tasks() -> AsyncIterator[TaskGroup]:
    group = TaskGroup("auth")
    yield group
    await group.stop()


def authenticator(slow: Slow, tasks: TaskGroup, *, environment_key: str = "", **fields: Any) -> Authenticator:
    settings = RemoteManagement(**{"secret_key": "hash of right", **fields})
    return Authenticator(settings=lambda: settings, tasks=tasks, environment_key=environment_key, matches=slow)


async def refused(auth: Authenticator, origin: Origin, key: str) -> tuple[int, str]:
    with pytest.raises(ManagementError) as caught:
        await auth.admit(origin, key)
    return caught.value.status, str(caught.value.document["error"])


@pytest.mark.parametrize(
    ("headers", "key"),
    [
        ({"Authorization": "Bearer k"}, "k"),
        ({"Authorization": "bearer  k "}, "k"),
        ({"Authorization": "k"}, "k"),
        ({"X-Management-Key": "k"}, "k"),
        ({"Authorization": "a", "X-Management-Key": "k"}, "a"),
        ({"X-Api-Key": "k"}, ""),
    ],
)
def test_the_key_may_come_in_three_ways(headers: dict[str, str], key: str) -> None:
    assert offered_key(freeze_headers(headers.items())) == key


async def test_the_checks_come_in_the_order_ban_address_key(slow: Slow, tasks: TaskGroup) -> None:
    auth = authenticator(slow, tasks)
    assert await refused(auth, REMOTE, "right") == (403, "remote management disabled")
    assert await refused(auth, LOCAL, "") == (401, "missing management key")
    assert await refused(auth, LOCAL, "wrong") == (401, "invalid management key")
    assert await auth.admit(LOCAL, "right") == "key"
    for _ in range(5):
        assert (await refused(auth, LOCAL, "wrong"))[0] == 401
    status, text = await refused(auth, LOCAL, "right")
    assert (status, text) == (403, "IP banned due to too many failed attempts. Try again in 30m0s")


async def test_J3_refusals_by_address_are_not_counted_as_failures(slow: Slow, tasks: TaskGroup) -> None:
    auth = authenticator(slow, tasks)
    for _ in range(6):
        assert await refused(auth, REMOTE, "right") == (403, "remote management disabled")
    page = Origin("127.0.0.1", True, "localhost:1", "https://evil.example")
    for _ in range(6):
        assert (await refused(auth, page, ""))[0] == 403
    assert await auth.admit(LOCAL, "right") == "key"


async def test_a_verified_key_is_not_hashed_again_until_the_configured_key_changes(tasks: TaskGroup) -> None:
    slow = Slow()
    settings = RemoteManagement(secret_key="hash of right")
    auth = Authenticator(settings=lambda: settings, tasks=tasks, matches=slow)
    for _ in range(3):
        await auth.admit(LOCAL, "right")
    assert slow.calls == 1
    settings = RemoteManagement(secret_key="hash of other")
    assert (await refused(auth, LOCAL, "right"))[0] == 401
    assert await auth.admit(LOCAL, "other") == "key"


async def test_verifications_run_one_by_one_beside_the_event_loop_and_too_many_are_turned_away(
    slow: Slow, tasks: TaskGroup
) -> None:
    auth = authenticator(slow, tasks, allow_remote=True)
    slow.go.clear()
    origins = [Origin(f"10.0.{number}.1", False, "gateway.example", "") for number in range(MAX_WAITING)]
    asked = [asyncio.create_task(refused(auth, origin, "wrong")) for origin in origins]
    await asyncio.sleep(0)
    status, _ = await refused(auth, REMOTE, "wrong")
    assert status == 503
    slow.go.set()
    async with asyncio.timeout(10):
        assert {found[0] for found in await asyncio.gather(*asked)} == {401}
    assert slow.most == 1


async def test_a_burst_of_wrong_keys_from_one_address_costs_five_verifications(slow: Slow, tasks: TaskGroup) -> None:
    auth = authenticator(slow, tasks)
    async with asyncio.timeout(10):
        await asyncio.gather(*(refused(auth, LOCAL, f"wrong-{number}") for number in range(20)))
    assert slow.calls == 5
    assert (await refused(auth, LOCAL, "right"))[0] == 403


async def test_hanging_up_saves_nobody_from_the_failure(slow: Slow, tasks: TaskGroup) -> None:
    auth = authenticator(slow, tasks)
    slow.go.clear()
    for number in range(5):
        asked = asyncio.create_task(auth.admit(LOCAL, f"wrong-{number}"))
        await asyncio.sleep(0)
        asked.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asked
    slow.go.set()
    async with asyncio.timeout(10):
        await tasks.join()
    assert (slow.calls, (await refused(auth, LOCAL, "right"))[0]) == (5, 403)


async def test_a_key_of_the_environment_is_taken_from_anywhere_without_a_hash(slow: Slow, tasks: TaskGroup) -> None:
    auth = authenticator(slow, tasks, environment_key=" from-the-environment ", secret_key="")
    assert await auth.admit(REMOTE, "from-the-environment") == "environment key"
    assert (await refused(auth, REMOTE, "right"))[0] == 401
    assert slow.calls == 0


async def test_without_any_key_it_is_off(slow: Slow, tasks: TaskGroup) -> None:
    assert authenticator(slow, tasks, secret_key="").enabled is False
    assert authenticator(slow, tasks).enabled is True


@pytest.mark.parametrize(
    ("peer", "headers", "trusted", "local"),
    [
        ("127.0.0.1", {}, (), True),
        ("::1", {}, (), True),
        ("", {}, (), True),
        ("10.0.0.1", {}, (), False),
        ("127.0.0.1", {"X-Forwarded-For": "9.9.9.9"}, (), False),
        ("127.0.0.1", {"X-Real-IP": "9.9.9.9"}, (), False),
        ("127.0.0.1", {"X-Forwarded-For": "127.0.0.1"}, ("127.0.0.1",), False),
        ("10.0.0.1", {"X-Forwarded-For": "127.0.0.1"}, ("10.0.0.1",), False),
    ],
)
def test_only_an_unforwarded_request_of_this_machine_is_local(
    peer: str, headers: dict[str, str], trusted: tuple[str, ...], local: bool
) -> None:
    assert Origin.of(peer, freeze_headers(headers.items()), TrustedProxies(trusted)).on_this_machine is local


def test_bans_go_by_the_client_behind_a_trusted_proxy_and_by_the_peer_otherwise() -> None:
    headers = freeze_headers([("X-Forwarded-For", "9.9.9.9")])
    assert Origin.of("127.0.0.1", headers, TrustedProxies(("127.0.0.1",))).address == "9.9.9.9"
    assert Origin.of("127.0.0.1", headers, TrustedProxies(())).address == "127.0.0.1"


@pytest.mark.parametrize(
    ("remote", "host", "origin", "status"),
    [
        (False, "localhost:1", "", 200),
        (False, "127.0.0.1", "http://localhost:3000", 200),
        (False, "evil.example", "", 403),
        (False, "localhost:1", "https://evil.example", 403),
        (False, "localhost:1", "null", 403),
        (True, "gateway.example", "", 200),
        (True, "gateway.example", "https://gateway.example", 200),
        (True, "gateway.example", "https://evil.example", 403),
        (True, "gateway.example", "null", 403),
    ],
)
async def test_no_web_page_of_another_host_gets_in(
    slow: Slow, tasks: TaskGroup, remote: bool, host: str, origin: str, status: int
) -> None:
    auth = authenticator(slow, tasks, allow_remote=remote)
    caller = Origin("127.0.0.1", True, host, origin)
    if status == 200:
        assert await auth.admit(caller, "right") == "key"
    else:
        assert (await refused(auth, caller, "right"))[0] == status
