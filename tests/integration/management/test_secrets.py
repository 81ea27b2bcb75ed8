"""No answer and no log line has a secret, wherever the operator, a plugin or an upstream put one."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.support.fake_upstream import Behaviour, running_upstream
from tests.support.logged import logged_lines
from tests.support.management import KEY, Managed, managed_proxy

MARK = "zZ9LeAk"
ROUTER = """
class P(Plugin):
    async def model_route(self, request, ctx):
        ctx.log.info("the key is " + self.config["api_key"], api_key=self.config["api_key"])
        return None
"""
FIELDS = '[[config]]\nname = "api_key"\ntype = "string"\nsecret = true\n'


def secret(name: str) -> str:
    return f"sk-{name}-{MARK}-{name}-0123456789"


def planted(url: str) -> dict[str, Any]:
    """A configuration with a secret in every place that can have one."""
    proxy = f"http://user:{secret('proxy')}@127.0.0.1:1"
    key = {"headers": {"X-Extra": secret("header")}, "proxy-url": proxy, "models": [{"name": "m"}]}
    families = {
        f"{family}_api_key": [{"api-key": secret(family), "base-url": "http://127.0.0.1:9", **key}]
        for family in ("claude", "gemini", "codex", "vertex")
    }
    entries = [{"api-key": secret("compat")}]
    compat = {"name": "acme", "base-url": f"{url}/v1", "models": [{"name": "m-bad"}]}
    return {
        **families,
        "openai_compatibility": [{**compat, "headers": {"X-More": secret("more")}, "api-key-entries": entries}],
        "api_keys": [secret("client"), {"key": secret("named"), "name": "Bob"}],
        "proxy_url": "",
        "usage_statistics_enabled": True,
        "sections": {"router": {"api_key": secret("plugin")}, "ghost": {"enabled": False, "token": secret("ghost")}},
        "policy": {"ghost": {"environment": {"NAME": secret("environment")}}},
    }


def plant_files(directory: Path) -> None:
    """Files with a secret under every name that one goes by, in a broken and a disabled one too."""
    auths = directory / "auths"
    auths.mkdir()
    names = ("api_key", "access_token", "refresh_token", "id_token", "cookie", "session_key", "anything_else")
    document = {"type": "claude", "email": "a@b.c", **{name: secret(name) for name in names}}
    document["headers"] = {"X-File": secret("fileheader")}  # type: ignore[assignment]
    nested = {"token": {"access_token": secret("nested")}, "service_account": {"private_key": secret("pem")}}
    (auths / "whole.json").write_text(json.dumps(document))
    (auths / "nested.json").write_text(json.dumps({"type": "other", **nested}))
    (auths / "off.json").write_text(json.dumps({**document, "disabled": True}))
    (auths / "broken.json").write_text(f'{{"type": "claude", "api_key": "{secret("broken")}" ')


async def failing_chats(managed: Managed) -> None:
    """The upstream says the key it was called with, and so does a client in its address."""
    body = {"model": "m-bad", "messages": [{"role": "user", "content": "hi"}]}
    for query, headers in (
        ("", {"Authorization": f"Bearer {secret('client')}"}),
        (f"?key={secret('named')}", {}),
        (f"?key={secret('wrong')}", {"Authorization": f"Bearer {secret('wrong')}"}),
    ):
        path = f"/v1/chat/completions{query}"
        assert (await managed.api.call("POST", path, below="", json=body, headers=headers)).status in (401, 503)


def paths_to_read(managed: Managed) -> Iterator[str]:
    """Every GET there is but the one that hands out a file with its secrets, for whatever there is to ask for."""
    requests = [trace.request_id for trace in managed.running.proxy.trace.latest(10)]
    names = {"plugins": ("router", "ghost", "claude"), "requests": requests}
    for method, path in managed.endpoints():
        if method != "GET" or path == "/auth-files/download":
            continue
        yield path
        yield f"{path}?name=whole.json&count=100&limit=100"
        for name in names.get(path.split("/")[1], ("claude",)) if "{" in path else ():
            yield re.sub(r"\{\w+\}", name, path)


async def test_no_answer_and_no_line_of_the_log_has_a_secret(directory: Path) -> None:
    plant_files(directory)
    shown: dict[str, bytes] = {}
    with logged_lines() as log:
        async with running_upstream() as upstream:
            says = f"Incorrect API key provided: {secret('compat')}. Bearer {secret('compat')}"
            upstream.behave("m-bad", Behaviour(status=401, error={"error": {"message": says}}))
            async with managed_proxy(directory, {"router": (ROUTER, FIELDS)}, **planted(upstream.url)) as managed:
                comments = f"# an old one: {secret('comment')}\n# {secret('client')}\n"
                managed.file.write_text(managed.file.read_text() + comments)
                await failing_chats(managed)
                for path in (
                    f"/api-keys?value={secret('client')}",
                    f"/claude-api-key?api-key={secret('nobody')}",
                    f"/plugins/router?key={KEY}",
                ):
                    await managed.api.call("DELETE", path)
                for path in paths_to_read(managed):
                    answer = await managed.api.get(path)
                    assert answer.status < 500
                    shown[path] = answer.body + str(answer.headers).encode()
        shown["the log"] = log.getvalue().encode()
    assert b"management.write" in shown["the log"] and b"the key is [redacted]" in shown["the log"]
    assert len(shown) > 80
    leaks = {path: text for path, text in shown.items() if MARK.encode() in text or KEY.encode() in text}
    assert leaks == {}
