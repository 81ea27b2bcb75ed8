"""A scheduler in a process of its own, as clients of every protocol notice it: its choice, its veto, its silence."""

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.support.fake_upstream import FakeUpstream
from tests.support.families import CLAUDE, FAMILIES, GEMINI, OPENAI, RESPONSES, Family
from tests.support.proxy import RunningProxy, running_proxy

PROGRAM = """
import json, os, sys

def send(frame):
    sys.stdout.write(json.dumps(frame) + "\\n")
    sys.stdout.flush()

for line in sys.stdin:
    frame = json.loads(line)
    if frame["kind"] == "hello":
        hello = {"kind": "hello", "abi": [1], "schema": 1, "plugin": "chooser", "version": "1.0.0"}
        send({**hello, "capabilities": ["scheduler.pick"], "limits": {"max_inflight": 8}})
    elif frame["kind"] == "call":
        params, answer = frame["params"], {}
        wish = params.get("headers", {}).get("x-wish", [""])[0]
        if wish == "last":
            answer = {"auth_id": params["candidates"][-1]["id"]}
        elif wish == "nobody":
            answer = {"auth_id": "somebody else"}
        elif wish == "silence":
            continue
        elif wish == "end":
            os._exit(3)
        if wish == "veto":
            error = {"message": "closed for today", "code": "closed", "http_status": 403}
            send({"kind": "result", "id": frame["id"], "ok": False, "error": error})
        else:
            send({"kind": "result", "id": frame["id"], "ok": True, "result": answer})
"""
TOML = """id = "chooser"
version = "1.0.0"
command = ["{python}", "-S", "main.py"]
"""


def model_of(family: Family) -> str:
    return f"m-{family.name}"


@pytest.fixture
async def proxy(upstream: FakeUpstream, tmp_path: Path, request: pytest.FixtureRequest) -> AsyncIterator[RunningProxy]:
    """`request.param`: how long the scheduler may take."""
    folder = tmp_path / "plugins" / "chooser"
    folder.mkdir(parents=True)
    (folder / "plugin.toml").write_text(TOML)
    (folder / "main.py").write_text(PROGRAM)
    config: dict[str, Any] = {"plugins": {"enabled": True, "configs": {"chooser": {"enabled": True}}}}
    if timeout := getattr(request, "param", None):
        config["plugins"]["policy"] = {"chooser": {"timeouts": {"scheduler.pick": timeout}}}
    for family in FAMILIES:
        entries = family.entries(upstream.url, ("k1", "k2", "k3"), models=[{"name": model_of(family)}])
        if family is RESPONSES:
            entries[0]["name"] = "responses"
        config.setdefault(family.section, []).extend(entries)
    async with running_proxy(json.dumps(config), directory=tmp_path) as running:
        yield running


async def ask(proxy: RunningProxy, family: Family, wish: str) -> tuple[int, Any, list[tuple[str, dict[str, Any]]]]:
    """Status, body, and what the decision trace says."""
    path, body = family.request(model=model_of(family))
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=60)) as client:
        headers = {"Content-Type": "application/json", "X-Wish": wish}
        async with client.post(proxy.url + path, data=body, headers=headers) as response:
            status, answer = response.status, json.loads(await response.read())
            trace = proxy.proxy.trace.get(response.headers["X-Request-Id"])
    assert trace is not None
    return status, answer, [(it.kind, dict(it.fields)) for it in trace.decisions]


def fields(decisions: list[tuple[str, dict[str, Any]]], kind: str) -> dict[str, Any]:
    return next(found for name, found in decisions if name == kind)


async def test_S93_the_veto_of_a_scheduler_reaches_every_client_with_its_status_and_no_upstream(
    proxy: RunningProxy, upstream: FakeUpstream
) -> None:
    for family in FAMILIES:
        status, body, _ = await ask(proxy, family, "veto")
        error = body["error"]
        assert (status, error["message"]) == (403, "closed for today")
        shown = error["type"] if family is CLAUDE else error["status"] if family is GEMINI else error["code"]
        assert shown == {"claude": "permission_error", "gemini": "PERMISSION_DENIED"}.get(family.name, "closed")
    assert upstream.requests == []
    assert proxy.proxy.gateway.state.pool.book.empty


async def test_the_choice_of_a_scheduler_is_used_and_shown_for_every_protocol(
    proxy: RunningProxy, upstream: FakeUpstream
) -> None:
    for family in FAMILIES:
        status, _, decisions = await ask(proxy, family, "last")
        picked = fields(decisions, "picked")
        assert (status, picked["by"], picked["credential"]) == (200, "chooser", picked["candidates"][-1])
        secret = proxy.proxy.gateway.state.pool.by_id[picked["credential"]].secret
        assert secret is not None
        name, value = family.secret(secret.reveal())
        sent = {key.lower(): text for key, text in upstream.requests[-1].headers.items()}
        assert sent[name] == value


@pytest.mark.parametrize("proxy", ["3s"], indirect=True, ids=["short"])
async def test_D20_S94_a_scheduler_that_names_nobody_says_nothing_or_dies_costs_no_request(proxy: RunningProxy) -> None:
    status, _, decisions = await ask(proxy, OPENAI, "nobody")
    assert (status, fields(decisions, "picked")["by"]) == (200, "round-robin")
    refused = fields(decisions, "pick_refused")
    assert (refused["why"], refused["answer"]) == ("unknown auth id", "somebody else")
    for wish, cause in (("silence", "timeout"), ("end", "fault")):
        status, _, decisions = await ask(proxy, OPENAI, wish)
        call = fields(decisions, "call")
        assert (status, call["outcome"], call["cause"]) == (200, "failed_open", cause)
        assert fields(decisions, "picked")["by"] == "round-robin"
