"""The whole configuration over HTTP: shown without secrets, replaced as a whole, checked before it is written."""

import asyncio
import errno
import os
import re
from pathlib import Path
from typing import Any

import pytest

from host.config.load import to_plain
from host.config.rewrite import rewrite
from host.config.tree import read_tree
from tests.support.management import Managed, managed_proxy

SECRETS = ("client-secret-1", "sk-ant-secret-2", "sk-compat-secret-3", "plugin-secret-4", "argon2id", "old-secret-5")
COMPAT = {"name": "acme", "base-url": "http://127.0.0.1:9/v1", "api-key-entries": [{"api-key": "sk-compat-secret-3"}]}


def full(**more: Any) -> dict[str, Any]:
    return {
        "api_keys": ["client-secret-1"],
        "claude_api_key": [{"api-key": "sk-ant-secret-2", "models": [{"name": "m"}]}],
        "openai_compatibility": [COMPAT],
        "sections": {"ghost": {"enabled": False, "api_key": "plugin-secret-4"}},
        **more,
    }


def comment(managed: Managed) -> None:
    """What an operator leaves in a file, an old key included."""
    text = re.sub(r"secret-key:\s+(\S+)", r'secret-key: "\1"', managed.file.read_text())
    managed.file.write_text(f"# My gateway. Not any more: sk-ant-secret-2 and api-key: old-secret-5\n{text}")


async def test_the_configuration_is_shown_without_a_secret_and_without_where_the_proxy_lives(directory: Path) -> None:
    async with managed_proxy(directory, **full()) as managed:
        comment(managed)
        shown = await managed.api.get("/config")
        raw = await managed.api.get("/config.yaml")
        for answer in (
            shown,
            raw,
            await managed.api.get("/config?reveal=true"),
            await managed.api.get("/config.yaml?reveal=1"),
        ):
            assert answer.status == 200
            assert not [secret for secret in SECRETS if secret.encode() in answer.body]
        assert not shown.json.keys() & {"host", "port", "auth-dir", "remote-management", "directory"}
        assert shown.json["plugins"]["configs"]["ghost"].keys() == {"enabled", "priority", "api_key"}
        assert shown.json["openai-compatibility"][0]["base-url"] == "http://127.0.0.1:9/v1"
        assert raw.headers["Content-Type"].startswith("application/yaml")
        assert raw.headers["Cache-Control"] == "no-store"
        assert raw.body.startswith(b"# My gateway.")


async def test_the_file_that_was_shown_can_be_sent_back_changed_and_keeps_its_secrets_and_comments(
    directory: Path,
) -> None:
    async with managed_proxy(directory, **full()) as managed:
        comment(managed)
        before = managed.file.read_text()
        shown = (await managed.api.get("/config.yaml")).body.decode()
        answer = await managed.api.call("PUT", "/config.yaml", data=shown + "# mine\nrequest-retry: 3\n")
        assert (answer.status, answer.json["ok"], answer.json["changed"]) == (200, True, ["config"])
        assert managed.file.read_text() == before + "# mine\nrequest-retry: 3\n"
        await managed.settled()
        assert managed.running.proxy.config.request_retry == 3
        assert (await managed.api.get("/config")).json["request-retry"] == 3


@pytest.mark.parametrize(
    ("change", "status", "error", "says"),
    [
        (lambda text: text + "a: [1\n", 400, "invalid_yaml", "line"),
        (lambda text: text + "reqest-retry: 3\n", 422, "invalid_config", "did you mean `request-retry`"),
        (lambda text: text + "request-retry: many\n", 422, "invalid_config", "request-retry"),
        (lambda text: text.replace("127.0.0.1:9", "evil.example"), 400, "invalid_config", "base-url"),
        (lambda text: text + "auth-dir: /etc\n", 403, "not_over_http", "auth-dir"),
        (lambda text: text.replace("    ghost:\n      enabled: false", "    ghost:\n      enabled: true"), 403, "", ""),
        (lambda text: text.replace("    ghost:", "    js-handler: {script: a.js}\n    ghost:"), 403, "", "files"),
        (lambda text: text.replace("  policy: {}", "  policy: {ghost: {permissions: [http]}}"), 403, "", "policy"),
        (lambda text: text + "proxy-url: ftp://x\n", 422, "invalid_config", "proxy-url"),
    ],
)
async def test_nothing_is_written_of_a_file_that_is_invalid_or_says_more_than_http_may(
    directory: Path, change: Any, status: int, error: str, says: str
) -> None:
    async with managed_proxy(directory, **full()) as managed:
        before = managed.file.read_text()
        shown = (await managed.api.get("/config.yaml")).body.decode()
        sent = change(shown)
        assert sent != shown
        answer = await managed.api.call("PUT", "/config.yaml", data=sent)
        assert answer.status == status and answer.json["error"] in (error or answer.json["error"])
        assert says in answer.json["message"]
        if status == 422:
            problem = answer.json["problems"][-1]
            assert problem["file"] == "config.yaml" and problem["line"] == len(sent.splitlines())
        assert managed.file.read_text() == before


async def test_a_file_that_somebody_changed_after_it_was_read_is_not_replaced(directory: Path) -> None:
    async with managed_proxy(directory, **full()) as managed:
        api, shown = managed.api, await managed.api.get("/config.yaml")
        match = {**api.headers, "If-Match": shown.headers["ETag"]}
        sent = shown.body.decode() + "request-retry: 3\n"
        managed.file.write_text(managed.file.read_text() + "# by hand\n")
        refused = await api.call("PUT", "/config.yaml", data=sent, headers=match)
        assert refused.error == (412, "changed_meanwhile")
        assert managed.file.read_text().endswith("# by hand\n")
        match["If-Match"] = (await api.get("/config.yaml")).headers["ETag"]
        assert (await api.call("PUT", "/config.yaml", data=sent, headers=match)).status == 200
        assert "request-retry: 3" in managed.file.read_text()


async def test_a_full_disk_changes_nothing_and_is_told_to_whoever_wrote(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with managed_proxy(directory, **full()) as managed:
        api, before, there = managed.api, managed.file.read_text(), sorted(directory.iterdir())

        def full_disk(descriptor: int) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", full_disk)
            for method, path, body, error in (
                ("PUT", "/request-retry", {"value": 9}, "failed to save config: No space left on device"),
                ("PATCH", "/plugins/ghost/config", {"priority": 9}, "failed to save config"),
                ("PUT", "/config.yaml", "request-retry: 9\n" + before, "write_failed"),
                ("POST", "/auth-files?name=a.json", {"type": "claude", "api_key": "k"}, ""),
            ):
                fields = {"data": body} if isinstance(body, str) else {"json": body}
                answer = await api.call(method, path, **fields)
                assert answer.status == 500 and answer.json["error"].startswith(error), (path, answer.body)
        assert managed.file.read_text() == before and sorted(directory.iterdir()) == there
        assert not [*(directory / "auths").glob("*")]
        assert managed.running.proxy.config.request_retry == 0
        assert (await api.call("PUT", "/request-retry", json={"value": 9})).status == 200


async def test_changes_over_http_and_by_hand_at_the_same_time_are_all_there(directory: Path) -> None:
    async with managed_proxy(directory, **full()) as managed:
        changes = [
            ("PUT", "/request-retry", {"value": 4}),
            ("PATCH", "/api-keys", {"old": "none", "new": "client-secret-9"}),
            ("PATCH", "/oauth-excluded-models", {"provider": "claude", "models": ["m"]}),
            ("PATCH", "/plugins/ghost/config", {"priority": 7}),
            ("PUT", "/max-retry-credentials", {"value": 2}),
        ]
        calls = [asyncio.create_task(managed.api.call(how, where, json=body)) for how, where, body in changes]
        await asyncio.wait(calls, return_when=asyncio.FIRST_COMPLETED)
        await asyncio.to_thread(rewrite, str(managed.file), lambda text: (text + "# by hand\n", None))
        answers = [await call for call in calls]
        assert [answer.status for answer in answers] == [200] * len(changes)
        generations = [answer.json["generation"] for answer in answers]
        assert len({*generations}) == len(changes)
        await managed.settled()
        await managed.running.reload()
        config = managed.running.proxy.config
        assert (config.request_retry, config.max_retry_credentials, config.plugins.configs["ghost"].priority) == (
            4,
            2,
            7,
        )
        assert "client-secret-9" in {key.key for key in config.api_keys} and config.oauth_excluded_models["claude"]
        assert "# by hand" in managed.file.read_text()


async def test_secrets_that_are_written_in_any_way_are_shown_masked_and_come_back(directory: Path) -> None:
    written = (
        "claude-api-key:\n  - api-key: &key sk-ant-one\n  - {api-key: *key, base-url: https://b.test}\n"
        "codex-api-key:\n  - base-url: https://c.test # was sk-ant-one\n    api-key: |-\n      sk-codex-two\n"
    )
    async with managed_proxy(directory) as managed:
        managed.file.write_text(managed.file.read_text() + written)
        before = to_plain(read_tree(managed.file.read_text(), ""))
        shown = await managed.api.get("/config.yaml")
        assert shown.status == 200
        assert b"sk-ant-one" not in shown.body and b"sk-codex-two" not in shown.body
        assert (await managed.api.call("PUT", "/config.yaml", data=shown.body)).status == 200
        assert to_plain(read_tree(managed.file.read_text(), "")) == before
