"""`workers: 2`: a login that one worker began goes on with whichever worker is asked."""

import json
import tempfile
from pathlib import Path

import aiohttp
import pytest

from host.control import ask, socket_path
from tests.support.management import KEY, STORED
from tests.support.proxy import runtime_dir, serve_process
from tests.support.runtime import plugin_folder

PLUGIN = """
from pluginapi import AuthLoginPollResponse, AuthLoginStartResponse, CredentialRecord, RegisterResponse

class P(Plugin):
    count = 0

    async def plugin_register(self, request, ctx):
        return RegisterResponse(auth_provider="acme")

    async def auth_login_start(self, request, ctx):
        self.count += 1
        return AuthLoginStartResponse(url="https://login.example/", state=f"state-{self.count}")

    async def auth_login_poll(self, request, ctx):
        if not request.code:
            return AuthLoginPollResponse(status="wait")
        record = CredentialRecord(file_name=f"{request.state}.json", storage={"access_token": f"at-{request.code}"})
        return AuthLoginPollResponse(status="success", records=[record])
"""
CONFIG = f"""
port: 0
workers: 2
remote-management: {{secret-key: '{STORED}'}}
plugins:
  enabled: true
  configs: {{acme: {{enabled: true}}}}
  policy: {{acme: {{runtime: inprocess}}}}
"""


async def test_a_callback_that_reaches_another_worker_completes_the_login_and_so_does_giving_it_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with tempfile.TemporaryDirectory(prefix="jf-") as made:
        config = Path(made) / "config.yaml"
        config.write_text(CONFIG)
        monkeypatch.setenv("XDG_RUNTIME_DIR", runtime_dir(config))
        plugin_folder(Path(made) / "plugins", "acme", PLUGIN)
        async with serve_process(config, wait_ready=False) as served:
            url = str((await served.event("workers.ready"))["url"])
            for _ in range(2):
                begun = ask(config, "GET", "/acme-auth-url", worker=1)
                assert begun is not None and begun[1]["status"] == "ok", begun
            other = aiohttp.UnixConnector(path=str(socket_path(config, 2)))
            async with aiohttp.ClientSession(connector=other, base_url="http://worker") as second:
                async with second.get("/oauth-callback/acme?state=state-1&code=c1") as answer:
                    assert (answer.status, await answer.json()) == (200, {"status": "ok"})
                async with second.get("/get-auth-status?state=state-1") as answer:
                    assert await answer.json() == {"status": "ok", "credentials": ["state-1.json"]}
                async with second.delete("/oauth-session?state=state-2") as answer:
                    assert await answer.json() == {"status": "ok", "cancelled": True}
                async with second.post("/oauth-callback", json={"state": "state-2", "code": "c"}) as answer:
                    assert (answer.status, (await answer.json())["error"]) == (404, "unknown or expired state")
            stored = json.loads((Path(made) / "auths" / "state-1.json").read_text())
            assert stored == {"access_token": "at-c1", "type": "acme"}

            # Over the port it is chance who answers; the browser's own address works with both.
            begun = ask(config, "GET", "/acme-auth-url", worker=1)
            assert begun is not None and begun[1]["state"] == "state-3"
            headers = {"Authorization": f"Bearer {KEY}"}
            for _ in range(6):
                async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(force_close=True)) as browser:
                    async with browser.get(f"{url}/acme/callback?state=state-3&code=c3") as answer:
                        assert answer.status == 200
            async with aiohttp.ClientSession(headers=headers) as operator:
                async with operator.get(f"{url}/v0/management/get-auth-status?state=state-3") as answer:
                    assert (await answer.json())["status"] == "ok"
