"""host.auth.*: what plugins see and may change of credential files."""

import json
import stat
from pathlib import Path
from typing import Any

import pytest
from msgspec import UNSET, Raw

from host.credential_parts import PluginAuthFiles
from host.runtime.callbacks import HostCallbacks
from host.runtime.scope import CallScope
from pluginabi.errors import PluginError
from pluginabi.payloads.callbacks import AuthGetRequest, AuthListRequest, AuthSaveFileRequest
from tests.support.auth_site import Site
from tests.support.callbacks import refusal, scope

READS = frozenset({"auth.read"})
SEES = frozenset({"auth.read", "credential_secrets"})


@pytest.fixture
async def site(tmp_path: Path, callbacks: HostCallbacks) -> Site:
    site = Site(tmp_path)
    site.put("b.json", access_token="hidden", email="me@x.test")
    site.put("A.json", api_key="hidden")
    await site.opened()
    callbacks.auth.files = PluginAuthFiles(site.manager, site.directory, site.editor)
    return site


def index_of(site: Site, name: str) -> str:
    return site.manager.by_id[name].auth_index


async def get(callbacks: HostCallbacks, auth_index: str, permissions: frozenset[str]) -> Any:
    params = AuthGetRequest(auth_index=auth_index)
    return await callbacks.call(scope(permissions=permissions), "host.auth.get", params)


async def test_the_list_is_that_of_the_management_sorted_and_without_secrets(site, callbacks):
    answer = await callbacks.call(scope(permissions=READS), "host.auth.list", AuthListRequest())
    assert [entry["name"] for entry in answer.files] == ["A.json", "b.json"]
    assert "hidden" not in json.dumps(answer.files)


async def test_a_file_is_masked_for_a_plugin_that_may_only_read_and_whole_with_credential_secrets(site, callbacks):
    found = await get(callbacks, index_of(site, "b.json"), READS)
    assert (found.name, found.path) == ("b.json", str(site.path / "b.json"))
    assert json.loads(bytes(found.file)) == {"type": "claude", "access_token": "***", "email": "me@x.test"}
    whole = await get(callbacks, f" {index_of(site, 'b.json')} ", SEES)
    assert json.loads(bytes(whole.file))["access_token"] == "hidden"


async def test_without_a_parent_the_permissions_that_the_plugin_has_now_decide(site, callbacks):
    alone = CallScope(plugin_id="p", method="")
    params = AuthGetRequest(auth_index=index_of(site, "b.json"))
    callbacks.grants = {"p": SEES}
    assert b"hidden" in bytes((await callbacks.call(alone, "host.auth.get", params)).file)
    callbacks.grants = {"p": READS}
    assert b"hidden" not in bytes((await callbacks.call(alone, "host.auth.get", params)).file)


async def test_the_runtime_entry_is_that_of_the_list(site, callbacks):
    params = AuthGetRequest(auth_index=index_of(site, "b.json"))
    answer = await callbacks.call(scope(permissions=READS), "host.auth.get_runtime", params)
    assert (answer.auth["name"], answer.auth["status"]) == ("b.json", "active")


@pytest.mark.parametrize(
    ("auth_index", "expected"),
    [(" ", (400, "auth_index is required")), ("beef", (404, "auth not found for auth_index beef"))],
)
async def test_an_index_that_leads_nowhere_is_refused(site, callbacks, auth_index, expected):
    with pytest.raises(PluginError) as caught:
        await get(callbacks, auth_index, READS)
    assert (caught.value.body.http_status, caught.value.body.message) == expected


async def test_a_file_that_went_or_broke_meanwhile_is_an_error_with_the_reason(site, callbacks):
    auth_index = index_of(site, "b.json")
    for content, status in (("[]", 500), (None, 404)):
        path = site.path / "b.json"
        path.write_text(content) if content is not None else path.unlink()
        with pytest.raises(PluginError) as caught:
            await get(callbacks, auth_index, READS)
        assert caught.value.body.http_status == status


async def save(callbacks: HostCallbacks, name: str, file: bytes | None) -> Any:
    params = AuthSaveFileRequest(name=name, file=UNSET if file is None else Raw(file))
    return await callbacks.call(scope(permissions=frozenset({"auth.write"})), "host.auth.save", params)


@pytest.mark.parametrize(
    ("name", "file", "message"),
    [
        ("../x.json", b"{}", "invalid auth file name"),
        ("x.txt", b"{}", "auth file name must end with .json"),
        ("x.json", None, "json is required"),
        ("x.json", b"[1]", "invalid auth json"),
        ("x.json", b'{"proxy_url": "ftp://x"}', "invalid auth json"),
        ("x.json", b'{"access_token": "***"}', "invalid auth json"),
        ("x.json", b'{"note": "\xff"}', "invalid auth json"),
    ],
)
async def test_H123_what_cannot_be_stored_is_refused(site, callbacks, name, file, message):
    with pytest.raises(PluginError) as caught:
        await save(callbacks, name, file)
    assert caught.value.body.http_status == 400
    assert message in caught.value.body.message


async def test_H123_a_stored_file_is_private_and_its_record_is_there_at_once(site, callbacks):
    answer = await save(callbacks, "new.json", b'{"type": "acme", "access_token": "t"}')
    assert (answer.name, answer.path) == ("new.json", str(site.path / "new.json"))
    assert stat.S_IMODE((site.path / "new.json").stat().st_mode) == 0o600
    assert site.manager.by_id["new.json"].provider == "acme"


async def test_a_plugin_that_changes_what_it_was_shown_keeps_the_secrets_it_never_saw(site, callbacks):
    shown = json.loads(bytes((await get(callbacks, index_of(site, "b.json"), READS)).file))
    await save(callbacks, "b.json", json.dumps(shown | {"note": "n"}).encode())
    assert site.read("b.json") == {"type": "claude", "access_token": "hidden", "email": "me@x.test", "note": "n"}


@pytest.mark.parametrize(
    "change",
    [
        {"base_url": "https://evil.test"},
        {"base-url": "https://evil.test"},
        {"type": "openai-compatible-evil"},
        {"token_uri": "https://evil.test"},
        {"proxy_url": "http://evil.test:1"},
        {"headers": {"x": "y"}},
    ],
)
async def test_a_plugin_that_sees_no_secret_cannot_have_it_sent_elsewhere(site, callbacks, change):
    shown = json.loads(bytes((await get(callbacks, index_of(site, "b.json"), READS)).file))
    before = site.read("b.json")
    with pytest.raises(PluginError) as caught:
        await save(callbacks, "b.json", json.dumps(shown | change).encode())
    assert caught.value.body.http_status == 403
    assert site.read("b.json") == before
    await save(callbacks, "b.json", json.dumps({"type": "claude", "access_token": "own"} | change).encode())


async def test_H124_a_plugin_that_registers_sees_the_files_before_there_are_records(tmp_path, callbacks):
    site = Site(tmp_path)
    site.put("b.json", access_token="hidden")
    callbacks.auth.files = PluginAuthFiles(site.manager, site.directory, site.editor)
    await site.directory.scan()
    answer = await callbacks.call(scope(permissions=READS), "host.auth.list", AuthListRequest())
    assert [(entry["name"], entry["source"]) for entry in answer.files] == [("b.json", "file")]
    for method in ("host.auth.get", "host.auth.get_runtime"):
        with pytest.raises(PluginError) as caught:
            await callbacks.call(scope(permissions=READS), method, AuthGetRequest(auth_index="x"))
        assert (caught.value.body.http_status, caught.value.body.code) == (503, "auth_unavailable")
    await site.opened()
    assert (await get(callbacks, index_of(site, "b.json"), READS)).name == "b.json"


async def test_a_host_without_credentials_says_so(callbacks):
    with pytest.raises(PluginError) as caught:
        await callbacks.call(scope(permissions=READS), "host.auth.list", AuthListRequest())
    assert refusal(caught) == ("auth_unavailable", 503)
