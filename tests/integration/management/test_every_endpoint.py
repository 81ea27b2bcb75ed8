"""What holds for all endpoints: they are there, want the key, refuse what they do not know, and are written down."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import structlog

from tests.support.management import managed_proxy

ONE_VALUE = (
    *("debug", "logging-to-file", "usage-statistics-enabled", "request-log", "ws-auth", "force-model-prefix"),
    *("logs-max-total-size-mb", "error-logs-max-files", "request-retry", "max-retry-interval", "max-retry-credentials"),
    *("proxy-url", "quota-exceeded/switch-project", "quota-exceeded/switch-preview-model", "routing/strategy"),
)
KEY_LISTS = ("gemini-api-key", "claude-api-key", "codex-api-key", "vertex-api-key", "openai-compatibility")
MAPS = ("oauth-excluded-models", "oauth-model-alias", "oauth-request-scoped-errors")
WANTED = """
GET config, GET config.yaml, PUT config.yaml, GET latest-version, DELETE proxy-url, POST reset-quota, POST api-call,
GET api-key-usage, GET logs, DELETE logs, GET request-error-logs, GET request-error-logs/x.log,
GET request-log-by-id/1, GET usage-queue, GET auth-files, GET auth-files/models, GET auth-files/download,
POST auth-files, DELETE auth-files, PATCH auth-files/status, PATCH auth-files/fields, GET model-definitions/claude,
POST vertex/import, GET anthropic-auth-url, GET xai-auth-url, GET any-plugin-auth-url, GET get-auth-status,
POST oauth-callback, GET oauth-callback, DELETE oauth-session, GET plugins, GET plugins/x/config, PUT plugins/x/config,
PATCH plugins/x/config, PATCH plugins/x/enabled, DELETE plugins/x, POST plugin-store/x/install
"""
PUBLIC = {("GET", "/oauth-callback"), ("GET", "/oauth-callback/x"), ("POST", "/oauth-callback")}
UNKNOWN = "zz-unknown"


def wanted() -> Iterator[tuple[str, str]]:
    """Every row of the table of endpoints (credentials 8.2, 12.8)."""
    for line in WANTED.replace("\n", " ").split(","):
        method, path = line.split()
        yield method, f"/{path}"
    for name in ONE_VALUE:
        yield from ((method, f"/{name}") for method in ("GET", "PUT", "PATCH"))
    for name in ("api-keys", *KEY_LISTS, *MAPS):
        yield from ((method, f"/{name}") for method in ("GET", "PUT", "PATCH", "DELETE"))


def filled(path: str) -> str:
    return re.sub(r"\{\w+\}", "x", path)


async def test_every_endpoint_is_there_and_wants_the_key(directory: Path) -> None:
    async with managed_proxy(directory) as managed:
        table = managed.running.proxy.management.app._table
        assert [each for each in wanted() if table.find(each[0], each[1].strip("/").split("/")) is None] == []
        asked = [(method, filled(path)) for method, path in managed.endpoints()]
        assert len(asked) > 100
        before = managed.file.read_text()
        for number, (method, path) in enumerate(asked):
            if number % 3 == 0:
                # The right key, so that the failures before are forgotten.
                assert (await managed.api.get("/debug")).status == 200
            refused = await managed.api.call(method, path, headers={}, data=b"{}")
            if (method, path) in PUBLIC:
                assert (refused.status, refused.json["status"]) == (400, "error")
            else:
                assert refused.error == (401, "missing management key"), path
            assert refused.headers["X-Jackfield-Version"] and refused.headers["Cache-Control"] == "no-store"
        assert managed.file.read_text() == before


def with_unknown_members() -> Iterator[tuple[str, str, Any]]:
    """Bodies in each of which one member, at some depth, is nobody's."""
    more = {UNKNOWN: 1}
    for name in ("debug", "request-retry", "proxy-url", "routing/strategy", "max-retry-interval"):
        yield "PUT", f"/{name}", {"value": "", **more}
    for name in KEY_LISTS:
        yield "PUT", f"/{name}", [{"api-key": "k", **more}]
        yield "PUT", f"/{name}", {"items": [{"api-key": "k"}], **more}
        yield "PATCH", f"/{name}", {"index": 0, "value": more}
        yield "PATCH", f"/{name}", {"index": 0, "value": {}, **more}
    yield "PUT", "/openai-compatibility", [{"name": "n", "api-key-entries": [{"api-key": "k", **more}]}]
    yield "PUT", "/api-keys", [{"key": "k", **more}]
    yield "PUT", "/api-keys", {"items": ["k"], **more}
    yield "PATCH", "/api-keys", {"old": "a", "new": "b", **more}
    yield "PATCH", "/api-keys", {"index": 0, "value": {"key": "k", **more}}
    yield "PATCH", "/oauth-excluded-models", {"provider": "p", "models": ["m"], **more}
    yield "PATCH", "/oauth-model-alias", {"channel": "p", "aliases": [{"name": "m", "alias": "n", **more}]}
    yield "PUT", "/oauth-request-scoped-errors", {"p": [{"status": 400, "action": "stop", **more}]}
    yield "DELETE", "/auth-files", {"name": "a.json", **more}
    yield "PATCH", "/auth-files/status", {"name": "a.json", "disabled": True, **more}
    yield "PATCH", "/auth-files/fields", {"name": "a.json", **more}
    yield "POST", "/reset-quota", {"auth_index": "0" * 16, **more}
    yield "POST", "/api-call", {"method": "GET", "url": "http://127.0.0.1:1", **more}
    yield "PATCH", "/plugins/router/enabled", {"enabled": True, **more}


async def test_a_member_that_nobody_may_set_is_refused_by_its_name_and_each_write_is_a_line(directory: Path) -> None:
    key = {"api-key": "k", "base-url": "http://127.0.0.1:9", "models": [{"name": "m"}]}
    families = {name.replace("-", "_"): [key] for name in KEY_LISTS[:-1]}
    compat = {"name": "n", "base-url": "http://127.0.0.1:9", "models": [{"name": "m"}]}
    config: dict[str, Any] = {**families, "openai_compatibility": [compat], "api_keys": ["k"]}
    async with managed_proxy(directory, {"router": "class P(Plugin): ..."}, remote={"api-call": True}, **config) as it:
        before = it.file.read_text()
        sent = list(with_unknown_members())
        with structlog.testing.capture_logs() as lines:
            for method, path, body in sent:
                answer = await it.api.call(method, path, json=body)
                assert answer.status == 400 and UNKNOWN in answer.body.decode(), (method, path, answer.body)
        assert it.file.read_text() == before
        audit = [(line["method"], line["path"]) for line in lines if line["event"] == "management.write"]
        assert audit == [(method, path) for method, path, _ in sent]


async def test_what_others_serve_under_another_name_says_under_which(directory: Path) -> None:
    async with managed_proxy(directory) as managed:
        for path, says in (
            ("/latest-version", "X-Jackfield-Version"),
            ("/plugin-store", "jackfield plugins search"),
            ("/request-error-logs", "GET /request-errors"),
            ("/request-error-logs/error-1.log", "GET /request-errors"),
            ("/request-log-by-id/abc", "GET /requests/abc"),
            ("/xai-api-key", "openai-compatibility"),
            ("/ws-auth", "there is no WebSocket endpoint yet"),
        ):
            answer = await managed.api.get(path)
            assert answer.status == 404 and says in answer.json["message"]


async def test_a_call_without_a_key_is_written_down_as_public_and_has_a_small_body(directory: Path) -> None:
    async with managed_proxy(directory) as managed:
        with structlog.testing.capture_logs() as lines:
            await managed.api.call("POST", "/oauth-callback", json={"state": "s", "code": "c"}, headers={})
            large = await managed.api.call("POST", "/oauth-callback", data=b" " * 70_000, headers={})
        (first, second) = (line for line in lines if line["event"].startswith("management."))
        assert (first["event"], first["caller"], first["client"]) == ("management.write", "public", "127.0.0.1")
        assert (large.error[0], second["status"]) == (413, 413)
