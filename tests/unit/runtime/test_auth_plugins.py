"""Which plugin is asked about which credential."""

from typing import Any

import msgspec
import pytest

from host.runtime.auth_plugins import AuthProviders
from host.runtime.invoke import Invoker
from pluginabi.errors import ErrorBody, PluginError, PluginTransportError
from pluginabi.payloads.common import CredentialRecord, HostSummary
from pluginabi.payloads.credentials import (
    AuthLoginPollRequest,
    AuthLoginStartRequest,
    AuthLoginStartResponse,
    AuthParseRequest,
    AuthRecordsResponse,
    AuthRefreshRequest,
    AuthRefreshResponse,
    AuthSaveRequest,
    AuthSaveResponse,
)
from tests.support.pipeline import FakePlugin, snapshot

PARSE = "auth.parse"


def providers(*plugins: FakePlugin) -> AuthProviders:
    found = snapshot(*plugins)
    return AuthProviders(Invoker(), snapshot=lambda: found, host=lambda: HostSummary(auth_dir="/auths"))


def claiming(*labels: str) -> Any:
    return lambda request: AuthRecordsResponse(records=[CredentialRecord(label=label) for label in labels])


def failing(**error: Any) -> Any:
    return lambda request: PluginError(ErrorBody(message="no", **error))


AWAY = PluginTransportError("p", PARSE, phase="unavailable", cause="gone")


async def labels_of(auth: AuthProviders, provider: str) -> list[str] | None:
    claimed = await auth.parse(AuthParseRequest(provider=provider))
    return [record.label for record in claimed.records] if claimed is not None else None


async def test_only_the_first_plugin_of_the_name_is_asked_about_a_file():
    first = FakePlugin(id="first", hooks={PARSE: claiming("one")}, auth_provider="acme", priority=2)
    second = FakePlugin(id="second", hooks={PARSE: claiming("two")}, auth_provider="acme", priority=1)
    auth = providers(first, second)
    assert await labels_of(auth, "acme") == ["one"]
    assert await labels_of(auth, "other") is None
    assert (auth.parses("acme"), auth.parses("other")) == (True, False)
    assert (first.seen(PARSE)[0].host.auth_dir, second.seen(PARSE)) == ("/auths", [])


async def test_about_a_file_of_nobody_all_are_asked_in_order_until_one_claims_it():
    plugins = [
        FakePlugin(id="a", hooks={PARSE: claiming()}, priority=3),
        FakePlugin(id="b", hooks={PARSE: claiming("b")}, providers=["x-*", "beta"], priority=2),
        FakePlugin(id="c", hooks={PARSE: claiming("c")}, priority=1),
    ]
    claimed = await providers(*plugins).parse(AuthParseRequest())
    assert (claimed.plugin_id, claimed.provider) == ("b", "beta")
    assert [len(plugin.seen(PARSE)) for plugin in plugins] == [1, 1, 0]


async def test_B1_a_null_among_the_records_is_left_out_whichever_way_it_comes():
    wire = msgspec.json.decode(b'{"records": [{"label": "a"}, null, {"label": "b"}]}', type=AuthRecordsResponse)
    assert await labels_of(providers(FakePlugin(id="p", hooks={PARSE: lambda request: wire})), "p") == ["a", "b"]
    nothing = AuthRecordsResponse(records=[None])
    assert await labels_of(providers(FakePlugin(id="p", hooks={PARSE: lambda request: nothing})), "p") is None


async def test_a_plugin_that_answers_an_error_does_not_claim_the_file_and_ends_the_asking():
    plugins = [
        FakePlugin(id="a", hooks={PARSE: failing()}, priority=2),
        FakePlugin(id="b", hooks={PARSE: claiming("b")}),
    ]
    assert await labels_of(providers(*plugins), "") is None


async def test_a_plugin_that_cannot_be_asked_is_a_fault():
    with pytest.raises(PluginTransportError):
        await labels_of(providers(FakePlugin(id="p", hooks={PARSE: lambda request: AWAY})), "p")


@pytest.mark.parametrize(
    ("fields", "names"),
    [
        ({"auth_provider": "acme", "providers": ["x"]}, ["acme"]),
        ({"providers": ["x", "y-*", "z"]}, ["x", "z"]),
        ({"providers": ["y-*"]}, ["p"]),
        ({}, ["p"]),
    ],
)
async def test_a_plugin_is_called_what_it_says_else_what_it_executes_else_its_id(fields, names):
    start = FakePlugin(id="p", hooks={"auth.login.start": lambda request: AuthLoginStartResponse()}, **fields)
    assert list(providers(start).login_providers()) == names


async def test_refresh_save_and_login_go_to_the_plugin_of_the_provider():
    hooks = {
        "auth.refresh": lambda request: AuthRefreshResponse(next_refresh_after="2030-01-01T00:00:00Z"),
        "auth.save": lambda request: AuthSaveResponse(record=request.record if request.record.label else None),
        "auth.login.start": lambda request: AuthLoginStartResponse(state=request.provider),
        "auth.login.poll": failing(http_status=418),
    }
    auth = providers(FakePlugin(id="p", hooks=hooks, auth_provider="acme"))
    refresh = AuthRefreshRequest(credential=CredentialRecord())
    assert (auth.refreshes("acme"), auth.refreshes("other"), auth.refreshes("")) == (True, False, False)
    assert (await auth.refresh("acme", refresh)).next_refresh_after is not None
    assert await auth.save("acme", AuthSaveRequest(record=CredentialRecord())) is None
    assert (await auth.save("acme", AuthSaveRequest(record=CredentialRecord(label="l")))).record.label == "l"
    assert await auth.save("other", AuthSaveRequest(record=CredentialRecord())) is None
    assert (await auth.login_start(AuthLoginStartRequest(provider="acme"))).state == "acme"
    with pytest.raises(PluginError) as caught:
        await auth.login_poll(AuthLoginPollRequest(provider="acme"))
    assert caught.value.body.http_status == 418
    for missing in (auth.refresh("other", refresh), auth.login_start(AuthLoginStartRequest(provider="other"))):
        with pytest.raises(KeyError):
            await missing
