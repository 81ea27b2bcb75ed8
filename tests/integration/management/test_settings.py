"""Values and lists of the configuration over HTTP: each change is one edit of the file, and no answer has a secret."""

import asyncio
from pathlib import Path
from typing import Any

from host.management.settings import SETTINGS
from tests.support.management import Managed, managed_proxy

CLAUDE = [
    {"api-key": "sk-ant-one-secret", "base-url": "http://127.0.0.1:9/a", "models": [{"name": "m"}]},
    {"api-key": "sk-ant-one-secret", "base-url": "http://127.0.0.1:9/b"},
    {"api-key": "sk-ant-two-secret"},
]
COMPAT = [
    {
        "name": "acme",
        "base-url": "http://127.0.0.1:9/v1",
        "api-key-entries": [{"api-key": "sk-c1-secret"}, {"api-key": "sk-c2-secret"}],
        "models": [{"name": "m"}],
    },
    {"name": "keyless", "base-url": "http://127.0.0.1:9/v2", "models": [{"name": "n"}]},
]


class Client:
    """Calls and what they answer, in short."""

    def __init__(self, managed: Managed) -> None:
        self.managed = managed

    async def __call__(self, method: str, path: str, body: Any = None) -> Any:
        fields = {} if body is None else {"json": body}
        answer = await self.managed.api.call(method, path, **fields)
        assert b"secret" not in answer.body, answer.body
        return answer.json if answer.status == 200 else answer.error

    async def saved(self, method: str, path: str, body: Any = None) -> None:
        answer = await self(method, path, body)
        assert isinstance(answer, dict) and answer["status"] == "ok", answer


async def test_single_values_are_read_written_and_applied(directory: Path) -> None:
    async with managed_proxy(directory, proxy_url="http://user:pw-secret@127.0.0.1:1") as managed:
        ask = Client(managed)
        for setting in SETTINGS:
            assert (await ask("GET", f"/{setting.path}")).keys() == {setting.keys[-1]}
        assert await ask("GET", "/routing/strategy") == {"strategy": "round-robin"}
        await ask.saved("PUT", "/routing/strategy", {"value": "ff"})
        assert await ask("GET", "/routing/strategy") == {"strategy": "fill-first"}
        assert await ask("PUT", "/routing/strategy", {"value": "random"}) == (400, "invalid strategy")
        await ask.saved("PATCH", "/max-retry-credentials", {"value": -4})
        await ask.saved("PUT", "/request-retry", {"value": 2})
        await ask.saved("PUT", "/max-retry-interval", {"value": "30s"})
        for body in ({"value": "2"}, {"value": True}, {}, {"value": 1, "more": 1}, []):
            assert await ask("PUT", "/request-retry", body) == (400, "invalid body")
        shown = (await ask("GET", "/proxy-url"))["proxy-url"]
        assert shown.startswith("***-")
        await ask.saved("PUT", "/proxy-url", {"value": shown})
        assert "user:pw-secret" in managed.file.read_text()
        assert await ask("PUT", "/proxy-url", {"value": "ftp://x"}) == (400, "invalid_config")
        await ask.saved("DELETE", "/proxy-url")
        assert await ask("GET", "/proxy-url") == {"proxy-url": ""}
        await managed.settled()
        config = managed.running.proxy.config
        assert (config.routing.strategy, config.max_retry_credentials, config.request_retry) == ("fill-first", 0, 2)
        assert (await ask("PUT", "/ws-auth", {"value": True})) == (404, "without_effect")


async def test_client_keys_are_named_by_place_or_by_the_mask_they_are_shown_as(directory: Path) -> None:
    async with managed_proxy(directory, api_keys=["one-secret", {"key": "two-secret", "name": "Bob"}]) as managed:
        ask = Client(managed)
        first, second = (await ask("GET", "/api-keys"))["api-keys"]
        assert first.startswith("***-") and second["name"] == "Bob"
        await ask.saved("PUT", "/api-keys", {"items": [second, "three-secret", first]})
        assert [key.key for key in await keys(managed)] == ["two-secret", "three-secret", "one-secret"]
        await ask.saved("PATCH", "/api-keys", {"old": "three-secret", "new": {"key": "3-secret", "name": "Eve"}})
        await ask.saved("PATCH", "/api-keys", {"old": "unheard-of", "new": "four-secret"})
        await ask.saved("PATCH", "/api-keys", {"index": 0, "value": "0-secret"})
        await ask.saved("DELETE", f"/api-keys?value={first}")
        assert [key.key for key in await keys(managed)] == ["0-secret", "3-secret", "four-secret"]
        await ask.saved("DELETE", "/api-keys?index=2")
        for method, path, body, expected in (
            ("PATCH", "/api-keys", {"old": "a"}, (400, "missing fields")),
            ("DELETE", "/api-keys", None, (400, "missing index or value")),
            ("DELETE", "/api-keys?index=9", None, (404, "item not found")),
            ("PUT", "/api-keys", {"items": []}, (400, "invalid body")),
            ("PUT", "/api-keys", ["***-000000000000"], (400, "invalid_config")),
            ("PUT", "/api-keys", [{"key": "k", "admin": True}], (400, "invalid body")),
        ):
            assert await ask(method, path, body) == expected
        await ask.saved("PUT", "/api-keys", [])
        assert await keys(managed) == ()


async def keys(managed: Managed) -> Any:
    await managed.settled()
    return managed.running.proxy.config.api_keys


async def test_J17_provider_keys_are_listed_with_their_index_and_changed_one_by_one(directory: Path) -> None:
    async with managed_proxy(directory, claude_api_key=CLAUDE) as managed:
        ask, path = Client(managed), "/claude-api-key"
        listed = (await ask("GET", path))["claude-api-key"]
        records = managed.running.proxy.credentials.credentials
        assert [item["auth-index"] for item in listed] == [record.auth_index for record in records]
        assert (await ask("DELETE", f"{path}?api-key=sk-ant-one-secret")) == (
            400,
            "multiple items match api-key; base-url is required",
        )
        await ask.saved("DELETE", f"{path}?api-key={listed[1]['api-key']}&base-url=http://127.0.0.1:9/b/")
        await ask.saved("PATCH", path, {"index": 0, "value": {"priority": 7, "models": None}})
        await ask.saved("PATCH", path, {"auth-index": listed[2]["auth-index"], "value": {"prefix": "two"}})
        await ask.saved("PATCH", path, {"match": listed[2]["api-key"], "value": {"weight": 3}})
        await managed.settled()
        first, second = managed.running.proxy.config.claude_api_key
        assert (first.api_key, first.priority, first.models) == ("sk-ant-one-secret", 7, ())
        assert (second.api_key, second.prefix, second.weight) == ("sk-ant-two-secret", "two", 3)
        elsewhere = {"base-url": "http://evil.example"}
        assert await ask("PATCH", path, {"index": 0, "value": elsewhere}) == (400, "invalid_config")
        await ask.saved("PATCH", path, {"index": 0, "value": {**elsewhere, "api-key": "sk-new-secret"}})
        for body, expected in (
            ({"index": 9, "value": {}}, (404, "item not found")),
            ({"match": "sk-none", "value": {}}, (404, "item not found")),
            ({"index": 0, "value": {"cloak": {}}}, (400, "invalid body")),
            ({"index": 0}, (400, "invalid body")),
        ):
            assert await ask("PATCH", path, body) == expected
        shown = (await ask("GET", path))["claude-api-key"]
        await ask.saved("PUT", path, [*reversed(shown), {"api-key": "sk-third-secret"}])
        await managed.settled()
        found = [key.api_key for key in managed.running.proxy.config.claude_api_key]
        assert found == ["sk-ant-two-secret", "sk-new-secret", "sk-third-secret"]
        assert await ask("DELETE", path) == (400, "missing api-key or index")


async def test_a_key_that_is_there_twice_is_named_with_its_address(directory: Path) -> None:
    async with managed_proxy(directory, claude_api_key=CLAUDE) as managed:
        ask = Client(managed)
        named = {"match": "sk-ant-one-secret", "value": {"priority": 7}}
        assert await ask("PATCH", "/claude-api-key", named) == (
            400,
            "multiple items match api-key; base-url is required",
        )
        await ask.saved("PATCH", "/claude-api-key", {**named, "base-url": "http://127.0.0.1:9/b"})
        items = (await ask("GET", "/claude-api-key"))["claude-api-key"]
        assert [item.get("priority") for item in items] == [None, 7, None]


async def test_an_index_means_the_same_key_when_the_list_changes_before_the_edit_has_its_turn(directory: Path) -> None:
    async with managed_proxy(directory, openai_compatibility=COMPAT) as managed, asyncio.timeout(60):
        ask = Client(managed)
        listed = (await ask("GET", "/openai-compatibility"))["openai-compatibility"]
        editing = managed.running.proxy.applier.editing
        async with editing:
            waiting = asyncio.create_task(
                ask("PATCH", "/openai-compatibility", {"auth-index": listed[1]["auth-index"], "value": {"prefix": "p"}})
            )
            while True:
                if editing._waiters:
                    break
                await asyncio.sleep(0)
            text = managed.file.read_text()
            start = text.index("- name: acme")
            end = text.index("- name: keyless")
            managed.file.write_text(text[:start] + text[end:])
        assert (await waiting)["status"] == "ok"
        (item,) = (await ask("GET", "/openai-compatibility"))["openai-compatibility"]
        assert (item["name"], item["prefix"]) == ("keyless", "p")


async def test_what_is_saved_shows_and_takes_its_indexes_before_it_is_in_force(directory: Path) -> None:
    async with managed_proxy(directory, claude_api_key=CLAUDE) as managed, asyncio.timeout(60):
        ask, path, applier = Client(managed), "/claude-api-key", managed.running.proxy.applier
        listed = (await ask("GET", path))[path[1:]]
        async with applier._lock:  # nothing is applied meanwhile
            value = {"base-url": None, "api-key": "sk-ant-new-secret"}
            await ask.saved("PATCH", path, {"auth-index": listed[1]["auth-index"], "value": value})
            await ask.saved("DELETE", f"{path}?auth-index={listed[0]['auth-index']}")
            assert (await ask("DELETE", f"{path}?auth-index={listed[1]['auth-index']}")) == (404, "item not found")
            saved = (await ask("GET", path))[path[1:]]
            await ask.saved("PATCH", path, {"auth-index": saved[0]["auth-index"], "value": {"priority": 3}})
            in_force = [it.auth_index for it in managed.running.proxy.credentials.credentials]
            assert in_force == [it["auth-index"] for it in listed]
        await managed.settled()
        records = managed.running.proxy.credentials.credentials
        assert [it.auth_index for it in records] == [it["auth-index"] for it in saved]
        assert [it.priority for it in records] == [3, 0]


async def test_compatible_providers_are_named_by_name_and_go_with_their_address(directory: Path) -> None:
    async with managed_proxy(directory, openai_compatibility=COMPAT) as managed:
        ask, path = Client(managed), "/openai-compatibility"
        acme, keyless = (await ask("GET", path))["openai-compatibility"]
        records = [record.auth_index for record in managed.running.proxy.credentials.credentials]
        assert [*(entry["auth-index"] for entry in acme["api-key-entries"]), keyless["auth-index"]] == records
        entries = [acme["api-key-entries"][1], {"api-key": "sk-c3-secret", "weight": 2}]
        await ask.saved("PATCH", path, {"name": "acme", "value": {"api-key-entries": entries, "priority": 1}})
        await managed.settled()
        found = managed.running.proxy.config.openai_compatibility[0]
        assert [key.api_key for key in found.api_key_entries] == ["sk-c2-secret", "sk-c3-secret"]
        await ask.saved("PATCH", path, {"name": "acme", "value": {"base-url": ""}})
        await ask.saved("DELETE", f"{path}?name=keyless")
        assert await ask("GET", path) == {"openai-compatibility": []}
        assert "openai-compatibility" not in managed.file.read_text()
        assert await ask("DELETE", f"{path}?name=keyless") == (404, "item not found")


async def test_maps_of_providers_are_replaced_and_changed_one_by_one(directory: Path) -> None:
    async with managed_proxy(directory) as managed:
        ask = Client(managed)
        path = "/oauth-excluded-models"
        await ask.saved("PUT", path, {"items": {"Claude": ["A-*", "a-*"]}})
        await ask.saved("PATCH", path, {"provider": "gemini", "models": ["b"]})
        assert await ask("GET", path) == {"oauth-excluded-models": {"claude": ["a-*"], "gemini": ["b"]}}
        await ask.saved("PATCH", path, {"provider": "CLAUDE", "models": []})
        await ask.saved("DELETE", f"{path}?provider=gemini")
        assert "oauth-excluded-models" not in managed.file.read_text()
        assert await ask("DELETE", path) == (400, "missing provider")
        assert await ask("DELETE", f"{path}?provider=x") == (404, "provider not found")
        assert await ask("PATCH", path, {"models": ["x"]}) == (400, "invalid provider")
        path = "/oauth-model-alias"
        alias = {"name": "m", "alias": "n", "fork": True, "display-name": "N", "force-mapping": True}
        await ask.saved("PATCH", path, {"channel": "claude", "aliases": [alias]})
        assert (await ask("GET", path))["oauth-model-alias"]["claude"][0]["alias"] == "n"
        assert await ask("PATCH", path, {"channel": "claude", "aliases": [{"x": 1}]}) == (400, "invalid body")
        await ask.saved("DELETE", f"{path}?channel=claude")
        assert (
            await ask("GET", path) == {"oauth-model-alias": {}} and "oauth-model-alias: {}" in managed.file.read_text()
        )
        path = "/oauth-request-scoped-errors"
        await ask.saved("PUT", path, {"claude": [{"status": 418, "action": "stop"}]})
        assert await ask("PUT", path, {"claude": [{"status": 418, "action": "no"}]}) == (400, "invalid_config")
        await managed.settled()
        assert managed.running.proxy.config.oauth_request_scoped_errors["claude"][0].status == 418


async def test_a_change_that_would_open_a_public_proxy_is_not_written(directory: Path) -> None:
    async with managed_proxy(directory, api_keys=["one-secret"], host="0.0.0.0") as managed:
        ask, before = Client(managed), managed.file.read_text()
        assert await ask("PUT", "/api-keys", []) == (400, "invalid_config")
        assert managed.file.read_text() == before


async def test_what_could_have_no_effect_is_left_out_of_a_list_that_is_replaced_and_named(directory: Path) -> None:
    address = "http://127.0.0.1:9"
    async with managed_proxy(directory, request_retry=-3, logs_max_total_size_mb=-1) as managed:
        ask = Client(managed)
        assert await ask("GET", "/request-retry") == {"request-retry": 0}
        assert await ask("GET", "/logs-max-total-size-mb") == {"logs-max-total-size-mb": 0}
        sent = [{"api-key": "x1", "base-url": address}, {"api-key": "x2"}, {"api-key": "x1", "base-url": address}]
        answer = await ask("PUT", "/codex-api-key", sent)
        assert answer["ignored"] == [
            "`codex-api-key` entry without `base-url` is ignored",
            "`codex-api-key` entry repeats an earlier one and is ignored",
        ]
        assert len((await ask("GET", "/codex-api-key"))["codex-api-key"]) == 1
        answer = await ask("PUT", "/codex-api-key", [{"api-key": "x3", "base-url": address, "weight": "much"}])
        assert answer == (400, "invalid_config")
        aliases = [
            {"name": "a", "alias": "b"},
            {"name": "c", "alias": "B"},
            {"name": "D", "alias": "d"},
            {"name": "", "alias": "e"},
        ]
        await ask.saved("PUT", "/oauth-model-alias", {"Codex": aliases})
        assert await ask("GET", "/oauth-model-alias") == {"oauth-model-alias": {"codex": aliases[:1]}}
