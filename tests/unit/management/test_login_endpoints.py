"""Endpoints of logins, asked by anybody."""

import asyncio
from collections.abc import Mapping
from typing import Any

from aiohttp.test_utils import make_mocked_request

from host.credentials.login import LoginSessions
from host.management.calls import Call
from host.management.logins import ASKED_AT_ONCE, CALLBACK_PATH, LoginEndpoints
from host.management.peers import Answer
from host.tasks import TaskGroup
from pluginabi.immutable import freeze_headers
from tests.support.auth_plugins import ScriptedAuth
from tests.support.auth_site import Site


class CountedPeers:
    """Another worker that knows nothing, and how many ask it at once."""

    number = 1

    def __init__(self) -> None:
        self.asked: list[tuple[str, str]] = []
        self.most = self.now = 0

    async def ask(self, method: str, path: str, body: Any = None) -> list[Answer]:
        self.asked.append((method, path))
        self.now += 1
        self.most = max(self.most, self.now)
        await asyncio.sleep(0)
        self.now -= 1
        document: Mapping[str, Any] = {"status": "error", "error": "unknown or expired state"}
        return [Answer(2, 404, document)]


async def test_whoever_makes_states_up_keeps_the_other_workers_busy_with_a_few_questions_only(tmp_path) -> None:
    peers = CountedPeers()
    logins = LoginSessions(ScriptedAuth(), Site(tmp_path).editor, TaskGroup("test"))
    rows = LoginEndpoints(logins, peers, url=lambda: "http://127.0.0.1:1").endpoints()
    landing = next(row for row in rows if (row.method, row.path) == ("GET", CALLBACK_PATH))

    async def brought(state: str) -> int:
        path = f"{CALLBACK_PATH}?state={state}&code=c"
        query = freeze_headers([("state", state), ("code", "c")])
        request = make_mocked_request("GET", path)
        call = Call(method="GET", path=CALLBACK_PATH, request=request, request_id="m", caller="public", query=query)
        call._body = b""
        return (await landing.handler(call)).status

    async with asyncio.timeout(10):
        answers = await asyncio.gather(*(brought(f"made-up-{number}") for number in range(20)))
        malformed = await brought("a/../b")
    assert (set(answers), malformed) == ({404}, 400)
    assert peers.most == ASKED_AT_ONCE
    assert len(peers.asked) == 20 and peers.asked[0] == ("GET", f"{CALLBACK_PATH}?state=made-up-0&code=c")


class LatePeers:
    """Two other workers: one that does not answer in time, and the one that knows the login."""

    number = 1

    async def ask(self, method: str, path: str, body: Any = None) -> list[Answer]:
        return [Answer(2, 504, {"error": "late"}), Answer(3, 200, {"status": "ok", "cancelled": True})]


async def test_a_worker_that_does_not_answer_in_time_hides_nothing_that_another_one_knows(tmp_path) -> None:
    logins = LoginSessions(ScriptedAuth(), Site(tmp_path).editor, TaskGroup("test"))
    rows = LoginEndpoints(logins, LatePeers(), url=lambda: "http://127.0.0.1:1").endpoints()
    landing = next(row for row in rows if (row.method, row.path) == ("GET", CALLBACK_PATH))
    path = f"{CALLBACK_PATH}?state=elsewhere&code=c"
    query = freeze_headers([("state", "elsewhere"), ("code", "c")])
    request = make_mocked_request("GET", path)
    call = Call(method="GET", path=CALLBACK_PATH, request=request, request_id="m", caller="public", query=query)
    call._body = b""
    assert (await landing.handler(call)).status == 200
