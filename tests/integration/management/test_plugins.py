"""Plugins over HTTP: the list, their sections, switching, starting again."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from tests.support.management import Managed, managed_proxy
from tests.support.runtime import plugin_folder

ROUTER = """
class P(Plugin):
    async def plugin_register(self, request, ctx):
        ctx.log.info("registered", limit=request.config.get("limit"), api_key="sk-0123456789abcdef")
        if request.config.get("limit") == 13:
            raise PluginError("13 is no limit", http_status=400)
        return None

    async def model_route(self, request, ctx):
        return None
"""
FIELDS = """
name = "<x>"
permissions = ["http", "kv"]
[[config]]
name = "token"
description = "a & b"
secret = true
[[config]]
name = "limit"
type = "integer"
"""


def with_router(**section: Any) -> dict[str, Any]:
    return {
        "plugins": {"router": (ROUTER, FIELDS)},
        "sections": {"router": {"token": "hidden", "limit": 1, **section}},
        "policy": {"router": {"permissions": ["kv"]}},
    }


async def test_M138_the_list_says_everything_about_a_plugin_and_escapes_what_it_says_itself(directory: Path) -> None:
    async with managed_proxy(directory, **with_router(priority=3)) as managed:
        listed = (await managed.api.get("/plugins")).json
        assert (listed["plugins_enabled"], listed["plugins_dir"], listed["config"]["state"]) == (
            True,
            "plugins",
            "applied",
        )
        row = await managed.api.row("router")
        assert row["metadata"]["name"] == row["name"] == "&lt;x&gt;"
        assert (
            row["config_fields"][0] | {"name": "token", "description": "a &amp; b", "secret": True}
            == (row["config_fields"][0])
        )
        expected = {
            "state": "ready",
            "version": "1.0.0",
            "carrier": "inprocess",
            "host_rights": True,
            "priority": 3,
            "enabled": True,
            "effective_enabled": True,
            "registered": True,
            "configured": True,
            "permissions_wanted": ["http", "kv"],
            "permissions_granted": ["kv"],
            "config": {"token": "***", "limit": 1},
            "menus": [],
            "restarts": 0,
        }
        assert row | expected == row
        assert "model.route" in row["capabilities"]
        assert (await managed.api.get("/plugins/router")).json == row
        bundled = await managed.api.row("echo")
        assert (bundled["state"], bundled["enabled"], bundled["metadata"]) == ("discovered", False, None)


async def test_calls_errors_and_latencies_are_counted_per_hook(directory: Path) -> None:
    async with managed_proxy(directory, **with_router(), demo=True) as managed:
        chat = {"model": "echo", "messages": [{"role": "user", "content": "hi"}]}
        for _ in range(3):
            assert (await managed.api.call("POST", "/v1/chat/completions", below="", json=chat)).status == 200
        row = await managed.api.row("router")
        hook = row["hooks"]["model.route"]
        assert (hook["calls"], hook["errors"], hook["outcomes"]) == (3, 0, {"ok": 3})
        assert 0 < hook["p50_ms"] <= hook["p95_ms"] <= hook["p99_ms"]
        assert (row["calls"], row["errors"]) == (3, 0)


async def test_a_plugin_that_is_configured_and_not_there_is_listed_as_missing(directory: Path) -> None:
    async with managed_proxy(directory, sections={"ghost": {"enabled": False, "api_key": "sk-1"}}) as managed:
        row = await managed.api.row("ghost")
        assert (row["state"], row["configured"], row["registered"]) == ("missing", True, False)
        assert (await managed.api.get("/plugins/ghost/config")).json == {"enabled": False, "api_key": "***"}


async def test_M136_a_section_is_read_replaced_and_merged(directory: Path) -> None:
    async with managed_proxy(directory, **with_router()) as managed:
        api, path = managed.api, "/plugins/router/config"
        assert (await api.get(path)).json == {"enabled": True, "token": "***", "limit": 1}
        answer = await api.call("PATCH", path, json={"limit": None, "b": {"c": 1}, "token": "***"})
        assert (answer.status, answer.json["status"]) == (200, "ok")
        await managed.settled()
        assert (await api.get(path)).json == {"enabled": True, "token": "***", "b": {"c": 1}}
        assert "token: hidden" in managed.file.read_text()
        answer = await api.call("PUT", path, json={"limit": 9223372036854775807, "f": 2.0, "enabled": True})
        await managed.settled()
        assert (await api.get(path)).body == b'{"enabled":true,"f":2.0,"limit":9223372036854775807}'
        refused = await api.call("PATCH", path, json={"enabled": "yes please"})
        assert refused.error == (400, "invalid_config")
        assert "plugins.configs.router.enabled" in refused.json["message"]
        # The row shows what the plugin runs with, so the change has arrived.
        assert (await api.row("router"))["config"] == {"f": 2.0, "limit": 9223372036854775807}


@pytest.mark.parametrize(
    ("method", "path", "error"),
    [
        ("GET", "/plugins/nobody/config", (404, "plugin_not_found")),
        ("GET", "/plugins/a%20b/config", (400, "invalid_plugin_id")),
        ("PUT", "/plugins/a%20b/config", (400, "invalid_plugin_id")),
        ("GET", "/plugins/nobody", (404, "plugin_not_found")),
        ("GET", "/plugins/nobody/logs", (404, "plugin_not_found")),
        ("POST", "/plugins/nobody/reset", (404, "plugin_not_found")),
        ("POST", "/plugins/nobody/reload", (404, "plugin_not_found")),
        ("POST", "/plugins/echo/reload", (409, "plugin_not_running")),
        ("POST", "/plugins/echo/enable", (409, "plugin_is_bundled")),
        ("DELETE", "/plugins/router", (405, "not_over_http")),
        ("POST", "/plugin-store/router/install", (405, "not_over_http")),
        ("POST", "/plugins", (405, "method_not_allowed")),
        ("GET", "/plugins/router/logs?limit=x", (400, "invalid_query")),
    ],
)
async def test_what_cannot_be_done_says_why(
    managed_router: Managed, method: str, path: str, error: tuple[int, str]
) -> None:
    answer = await managed_router.api.call(method, path, json={} if method == "PUT" else None)
    assert answer.error == error
    if error[1] == "not_over_http":
        assert answer.json["command"].startswith("jackfield plugins ")
        assert "Allow" in answer.headers


async def test_only_what_was_enabled_on_this_machine_before_is_enabled_over_http(directory: Path) -> None:
    plugin_folder(directory / "plugins", "stranger", ROUTER)
    async with managed_proxy(directory, **with_router()) as managed:
        api = managed.api
        for method, path, body in (
            ("PATCH", "/plugins/stranger/enabled", {"enabled": True}),
            ("POST", "/plugins/stranger/enable", None),
            ("PUT", "/plugins/stranger/config", {"enabled": True}),
            ("PATCH", "/plugins/stranger/config", {"enabled": True, "limit": 1}),
        ):
            answer = await api.call(method, path, json=body)
            assert answer.error == (403, "not_enabled_locally")
            assert "jackfield plugins enable stranger" in answer.json["message"]
        assert "stranger" not in managed.file.read_text()
        # Settings may be prepared, and what is enabled may be switched off and on again.
        assert (await api.call("PATCH", "/plugins/stranger/config", json={"limit": 1})).status == 200
        assert (await api.call("PATCH", "/plugins/router/enabled", json={"enabled": False})).status == 200
        await managed.settled()
        assert (await api.row("router"))["state"] == "discovered"
        assert (await api.call("PATCH", "/plugins/router/enabled", json={"enabled": True})).status == 200
        await managed.settled()
        assert (await api.row("router"))["state"] == "ready"


async def test_the_policy_and_the_switch_for_all_cannot_be_written_over_http(directory: Path) -> None:
    async with managed_proxy(directory, **with_router()) as managed:
        section = {"policy": {"router": {"permissions": ["http"]}}, "plugins": {"enabled": False}}
        assert (await managed.api.call("PATCH", "/plugins/router/config", json=section)).status == 200
        await managed.settled()
        assert (await managed.api.row("router"))["permissions_granted"] == ["kv"]
        assert (await managed.api.get("/plugins")).json["plugins_enabled"] is True
        reference = await managed.api.call("PATCH", "/plugins/router/config", json={"x": {"file": "/etc/passwd"}})
        assert reference.error == (400, "invalid_config")
        # What a bundled plugin reads and runs: no file of this machine becomes its script over HTTP.
        script = {"script": "config.yaml"}
        assert (await managed.api.call("PATCH", "/plugins/js-handler/config", json=script)).error[0] == 400
        assert (await managed.api.call("PUT", "/plugins/js-handler/config", json=script)).error[0] == 400


async def test_a_change_that_the_plugin_refuses_shows_and_the_old_one_goes_on(directory: Path) -> None:
    async with managed_proxy(directory, **with_router()) as managed:
        assert (await managed.api.call("PATCH", "/plugins/router/config", json={"limit": 13})).status == 200
        await managed.settled()
        row = await managed.api.row("router")
        assert (row["state"], row["registered"]) == ("ready", True)
        assert "13 is no limit" in row["reason"]


async def test_a_file_that_is_broken_shows_in_the_list_and_is_not_written(directory: Path) -> None:
    async with managed_proxy(directory, **with_router()) as managed:
        text = managed.file.read_text()
        managed.file.write_text(text + "prot: 1\n")
        assert await managed.running.proxy.reload_config() is False
        status = (await managed.api.get("/plugins")).json["config"]
        assert status["state"] == "failed" and status["applied_generation"] < status["generation"]
        assert "unknown key `prot`" in status["problems"][0]
        answer = await managed.api.call("PATCH", "/plugins/router/config", json={"limit": 2})
        assert answer.status == 500 and answer.json["error"].startswith("failed to save config: ")
        managed.file.write_text(text)
        assert (await managed.api.call("PATCH", "/plugins/router/config", json={"limit": 2})).status == 200
        await managed.settled()
        async with asyncio.timeout(60):
            # The file is watched, too: what was saved may just be read once more.
            while (found := (await managed.api.get("/plugins")).json["config"]["state"]) == "applying":
                pass
        assert found == "applied"


async def test_what_a_plugin_said_is_remembered_without_its_secrets(directory: Path) -> None:
    async with managed_proxy(directory, **with_router()) as managed:
        said = (await managed.api.get("/plugins/router/logs")).json
        assert (said["id"], said["stderr"]) == ("router", [])
        [line] = said["lines"]
        assert (line["event"], line["level"], line["fields"]["limit"]) == ("registered", "info", 1)
        assert "0123456789" not in str(said)


async def test_a_plugin_is_loaded_anew_and_a_broken_version_leaves_the_old_one(directory: Path) -> None:
    async with managed_proxy(directory, **with_router()) as managed:
        plugin_folder(directory / "plugins", "router", "raise ValueError('no more')\n" + ROUTER, manifest=FIELDS)
        answer = await managed.api.call("POST", "/plugins/router/reload")
        assert (answer.status, answer.json["status"], answer.json["loaded"]) == (200, "unchanged", False)
        assert "no more" in answer.json["outcome"]
        plugin_folder(directory / "plugins", "router", ROUTER, manifest=FIELDS)
        answer = await managed.api.call("POST", "/plugins/router/reload")
        assert (answer.json["status"], answer.json["loaded"]) == ("ok", True)
        assert (await managed.api.row("router"))["generation"] > 1


async def test_a_plugin_that_failed_is_started_again_by_a_reset(directory: Path) -> None:
    async with managed_proxy(directory, **with_router(limit=13)) as managed:
        assert (await managed.api.row("router"))["state"] == "failed"
        answer = await managed.api.call("POST", "/plugins/router/reset")
        assert (answer.json["status"], answer.json["ready"]) == ("not_ready", False)
        assert "13 is no limit" in answer.json["reason"]
        fixed = ROUTER.replace("== 13", "== 14")
        plugin_folder(directory / "plugins", "router", fixed, manifest=FIELDS)
        answer = await managed.api.call("POST", "/plugins/router/reset")
        assert (answer.json["status"], answer.json["state"]) == ("ok", "ready")
