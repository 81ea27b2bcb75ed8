"""Credential files over HTTP, on a running proxy."""

import json
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from host.credentials import files
from host.credentials.editor import VIRTUAL_TEXT
from tests.support.management import Managed, managed_proxy

PARSER = """
from pluginapi import AuthRecordsResponse, CredentialRecord

class P(Plugin):
    async def auth_parse(self, request, ctx):
        return AuthRecordsResponse(records=[CredentialRecord(storage={"access_token": f"t{i}"}) for i in range(2)])
"""
MANIFEST = ""


def put(directory: Path, name: str, **members: Any) -> Path:
    folder = directory / "auths"
    folder.mkdir(exist_ok=True)
    file = folder / name
    file.write_text(json.dumps({"type": "claude", "api_key": "sk-ant-secret-0001", **members}))
    return file


def form(*files: tuple[str, bytes]) -> aiohttp.FormData:
    data = aiohttp.FormData()
    for name, content in files:
        data.add_field("file", content, filename=name, content_type="application/json")
    return data


async def names(managed: Managed) -> list[str]:
    return [entry["name"] for entry in (await managed.api.get("/auth-files")).json["files"]]


async def test_files_are_listed_uploaded_downloaded_and_deleted_and_only_a_download_has_secrets(directory):
    put(directory, "B.json", note="second")
    async with managed_proxy(directory) as managed:
        api = managed.api
        sent = b'{"type": "gemini",  "api_key": "AIza-secret-000000000000002"}'
        assert (await api.call("POST", "/auth-files?name=a.json", data=sent)).json == {"status": "ok"}
        listed = await api.get("/auth-files")
        assert [(it["name"], it["type"], it["source"]) for it in listed.json["files"]] == [
            ("a.json", "gemini", "file"),
            ("B.json", "claude", "file"),
        ]
        assert b"secret" not in listed.body
        entry = listed.json["files"][1]
        assert len(entry["auth_index"]) == 16 and entry["note"] == "second" and len(entry["recent_requests"]) == 20
        only = await api.get(f"/auth-files?auth_index={entry['auth_index']}")
        assert [it["name"] for it in only.json["files"]] == ["B.json"]
        assert (await api.get("/auth-files?name=A.JSON")).json["files"][0]["type"] == "gemini"
        got = await api.get("/auth-files/download?name=a.json")
        assert (got.status, got.body, got.headers["Cache-Control"]) == (200, sent, "no-store")
        assert (await api.get("/auth-files/download?name=a.json", headers={})).status == 401
        assert (await api.get("/auth-files/download?name=..%2Fconfig.yaml")).error == (400, "invalid name")
        assert (await api.get("/auth-files/download?name=c.json")).error == (404, "auth file not found")
        assert (await api.call("DELETE", "/auth-files", json={"names": ["a.json"]})).json == {"status": "ok"}
        assert await names(managed) == ["B.json"]
        assert (await api.call("DELETE", "/auth-files?all=*")).json == {"status": "ok", "deleted": 1}
        assert await names(managed) == [] and list((directory / "auths").iterdir()) == []


async def test_J8_of_an_upload_of_two_files_the_valid_one_is_registered_and_the_answer_says_partial(directory):
    async with managed_proxy(directory) as managed:
        good, bad = ("good.json", b'{"type": "claude", "api_key": "k"}'), ("bad.json", b"[1]")
        answer = await managed.api.call("POST", "/auth-files", data=form(good, bad))
        assert (answer.status, answer.json["status"], answer.json["files"]) == (207, "partial", ["good.json"])
        assert answer.json["failed"][0]["name"] == "bad.json"
        assert await names(managed) == ["good.json"]
        more = await managed.api.call("POST", "/auth-files", data=form(("x.json", good[1]), ("y.json", good[1])))
        assert more.json == {"status": "ok", "uploaded": 2, "files": ["x.json", "y.json"]}
        assert (await managed.api.call("POST", "/auth-files", data=form(("x.txt", b"{}")))).error == (
            400,
            "file must be .json",
        )
        assert (await managed.api.call("POST", "/auth-files?name=..%2Fx.json", data=b"{}")).error == (
            400,
            "invalid name",
        )


@pytest.mark.parametrize(
    ("vector", "query", "expected"),
    [
        ("J15", "?name=../x.json", (400, "invalid name")),
        ("empty", "?name=", (400, "invalid name")),
        ("drive", "?name=C:x.json", (400, "invalid name")),
        ("gone", "?name=gone.json", (404, "auth file not found")),
    ],
)
async def test_J15_a_name_that_is_none_is_refused(directory, vector, query, expected):
    async with managed_proxy(directory) as managed:
        assert (await managed.api.call("DELETE", f"/auth-files{query}")).error == expected


async def test_J16_of_two_names_the_one_that_is_missing_fails_and_the_other_is_deleted(directory):
    file = put(directory, "a.json")
    async with managed_proxy(directory) as managed:
        answer = await managed.api.call("DELETE", "/auth-files?name=a.json&name=missing.json")
        assert (answer.status, answer.json["deleted"], answer.json["files"]) == (207, 1, ["a.json"])
        assert answer.json["failed"] == [{"name": "missing.json", "error": "auth file not found"}]
        assert not file.exists()


async def test_J10_J11_J12_J13_fields_are_patched_in_the_file_and_secrets_and_addresses_are_not(directory):
    file = put(directory, "a.json", headers={"A": "1"}, region={"zone": {"n": 1}}, session={"key": "hidden"})
    async with managed_proxy(directory) as managed:

        async def patched(**fields: Any) -> tuple[int, Any]:
            answer = await managed.api.call("PATCH", "/auth-files/fields", json={"name": "a.json", **fields})
            return answer.status, answer.json.get("error", answer.json["status"] if answer.status == 200 else "")

        assert await patched(headers={}) == (200, "ok"), "J11"
        assert json.loads(file.read_text())["headers"] == {"A": "1"}
        assert await patched(headers={"A": "", "B": "x"}) == (200, "ok"), "J10"
        assert json.loads(file.read_text())["headers"] == {"B": "x"}
        assert await patched(websockets=False) == (200, "ok"), "J12"
        assert json.loads(file.read_text())["websockets"] is False
        assert await patched() == (400, "no fields to update"), "J13"
        body = b'{"name": "a.json", "region.zone.n": 1.10, "priority": 7}'
        assert (await managed.api.call("PATCH", "/auth-files/fields", data=body)).status == 200
        assert '"n": 1.10' in file.read_text()
        assert (await managed.api.get("/auth-files")).json["files"][0]["priority"] == 7
        before = file.read_bytes()
        for field in ("type", "api_key", "base_url", "access_token", "session.key", "region.api_key", "unheard_of"):
            assert await patched(**{field: "x"}) == (400, "field cannot be set here"), field
        assert await patched(**{"region..n": 1}) == (400, "invalid field path: region..n")
        assert file.read_bytes() == before
        gone = await managed.api.call("PATCH", "/auth-files/fields", json={"name": "b.json", "note": "x"})
        assert gone.error == (404, "auth file not found")


async def test_a_file_is_switched_by_its_flag_and_a_key_of_the_configuration_by_its_excluded_models(directory):
    file = put(directory, "a.json")
    async with managed_proxy(
        directory, claude_api_key=[{"api-key": "sk-conf-1", "models": [{"name": "m"}]}]
    ) as managed:
        api = managed.api

        async def switch(**fields: Any) -> Any:
            answer = await api.call("PATCH", "/auth-files/status", json=fields)
            return answer.json if answer.status == 200 else answer.error

        assert await switch(name="a.json", disabled=True) == {"status": "ok", "disabled": True}
        entry = (await api.get("/auth-files")).json["files"][0]
        assert (entry["status"], entry["status_message"]) == ("disabled", "disabled via management API")
        assert json.loads(file.read_text())["disabled"] is True
        assert await switch(name="a.json", disabled=False, auth_index="0" * 16) == (
            409,
            "auth_index belongs to another credential",
        )
        assert await switch(name="a.json", disabled=False, auth_index=entry["auth_index"]) == {
            "status": "ok",
            "disabled": False,
        }
        key = next(it for it in managed.running.proxy.credentials.credentials if it.source_kind == "config")
        expected = {"status": "ok", "disabled": True, "via": "config:excluded-models", "excluded_pattern": "*"}
        assert await switch(auth_index=key.auth_index, disabled=True) == expected
        assert "'*'" in managed.file.read_text()
        assert await switch(disabled=True) == (400, "name is required")
        assert await switch(name="a.json") == (400, "disabled is required")
        assert await switch(name="a.json", disabled="yes") == (400, "invalid request body")
        assert await switch(name="b.json", disabled=True) == (404, "auth file not found")


async def test_models_of_a_credential_and_the_reset_of_its_quota_by_index_only(directory):
    put(directory, "a.json", models=["m-1", {"name": "m-2", "alias": "two"}])
    async with managed_proxy(directory) as managed:
        api = managed.api
        models = (await api.get("/auth-files/models?name=a.json")).json["models"]
        assert sorted(model["id"] for model in models) == ["m-1", "two"]
        index = (await api.get("/auth-files")).json["files"][0]["auth_index"]
        answer = await api.call("POST", "/reset-quota", json={"auth_index": index})
        assert (answer.json["status"], sorted(answer.json["models"])) == ("ok", ["m-1", "m-2"])
        for body, expected in (
            ({"auth_index": ""}, (400, "auth_index is required")),
            ({"auth_index": "a.json"}, (404, "auth not found")),
        ):
            assert (await api.call("POST", "/reset-quota", json=body)).error == expected
        assert (await api.call("POST", "/reset-quota", data=b"nonsense")).error == (400, "invalid request body")


async def test_one_credential_of_several_in_a_file_cannot_be_changed_or_deleted_alone(directory):
    put(directory, "multi.json", type="acme")
    async with managed_proxy(directory, {"acme": (PARSER, MANIFEST)}) as managed:
        api = managed.api
        ids = [entry["id"] for entry in (await api.get("/auth-files")).json["files"]]
        assert len(ids) == 2
        for method, path, fields in (
            ("PATCH", "/auth-files/status", {"name": ids[0], "disabled": True}),
            ("PATCH", "/auth-files/fields", {"name": ids[0], "note": "x"}),
            ("DELETE", "/auth-files", {"name": ids[0]}),
        ):
            assert (await api.call(method, path, json=fields)).error == (409, VIRTUAL_TEXT)
        assert (await api.call("DELETE", "/auth-files?name=MULTI.json")).json == {"status": "ok"}
        assert await names(managed) == []


async def test_a_file_that_cannot_be_read_as_a_whole_is_not_downloaded_in_part(directory):
    put(directory, "large.json", note="x" * files.MAX_FILE_BYTES)
    (directory / "auths" / "loop.json").symlink_to("loop.json")
    async with managed_proxy(directory) as managed:
        for name in ("large.json", "loop.json"):
            got = await managed.api.get(f"/auth-files/download?name={name}")
            assert (got.status, list(got.json)) == (500, ["error"])
            assert "the auth file" in got.json["error"]
