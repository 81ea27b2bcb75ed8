"""Client authentication: configured keys, frontend-auth plugins, and when nobody is asked."""

import pytest

from host.config.model import ApiKey, Config
from host.observe.trace import DecisionTrace
from host.pipeline.access import Access, AccessDenied, anonymous_request_allowed, is_loopback_name
from host.pipeline.request import Principal
from host.pipeline.state import build_state
from host.runtime.handle import PluginState
from host.runtime.invoke import Invoker
from pluginabi.errors import PluginError, PluginTransportError
from pluginabi.immutable import freeze_headers
from pluginabi.payloads.credentials import FrontendAuthResponse
from pluginabi.payloads.lifecycle import FrontendAuthRegistration
from tests.support.pipeline import FakePlugin, snapshot

METHOD = "frontend_auth.authenticate"
KEYS = {"api_keys": [ApiKey(key="k-one", name="one"), ApiKey(key=" k-two ")]}
ALLOW = FrontendAuthResponse(decision="allow", principal="alice", metadata={"team": "red"})


def auth(name: str, answer, *, exclusive: bool = False, **fields) -> FakePlugin:
    return FakePlugin(
        id=name,
        hooks={METHOD: answer if callable(answer) else lambda _: answer},
        frontend_auth=FrontendAuthRegistration(id=f"{name}-id", exclusive=exclusive),
        **fields,
    )


def access(*plugins: FakePlugin, **config) -> Access:
    state = build_state(Config(**config), snapshot(*plugins))
    return Access(invoker=Invoker(), state=lambda: state, trace=DecisionTrace())


async def admit(gate: Access, headers=(), query=(), *, client_address="127.0.0.1", body=b"") -> Principal:
    async def read_body() -> bytes:
        return body

    return await gate.authenticate(
        request_id="r1",
        method="POST",
        path="/v1/x",
        headers=freeze_headers([("host", "localhost:8317"), *headers]),
        query=freeze_headers(query),
        client_address=client_address,
        read_body=read_body,
    )


async def refused(gate: Access, headers=(), query=(), **fields) -> tuple[int, str]:
    with pytest.raises(AccessDenied) as denied:
        await admit(gate, headers, query, **fields)
    return denied.value.body.http_status, denied.value.body.message


@pytest.mark.parametrize(
    ("vector", "headers", "query", "source"),
    [
        ("J26", [("Authorization", "Bearer k-one")], [], "authorization"),
        ("J26", [("Authorization", "bearer k-one")], [], "authorization"),
        ("J26", [("Authorization", "k-one")], [], "authorization"),
        ("J26", [("Authorization", "BEARER   k-one ")], [], "authorization"),
        ("order", [("X-Goog-Api-Key", "k-one")], [], "x-goog-api-key"),
        ("order", [("X-Api-Key", "k-one")], [], "x-api-key"),
        ("order", [], [("key", "k-one")], "query-key"),
        ("order", [], [("auth_token", "k-one")], "query-auth-token"),
        ("order", [("X-Api-Key", "k-two")], [("key", "k-one"), ("auth_token", "k-two")], "x-api-key"),
        ("J28", [("Authorization", "Bearer wrong")], [("key", "k-one")], "query-key"),
        ("mixed", [("Authorization", "Bearer wrong"), ("X-Api-Key", "k-one")], [], "x-api-key"),
    ],
)
async def test_any_place_may_hold_the_key_and_plugins_are_told_which_did(vector, headers, query, source):
    gate = access(**KEYS)
    for _ in range(2):
        principal = await admit(gate, headers, query)
        assert principal.provider == "config-api-key"
        assert principal.name == "one" or ("X-Api-Key", "k-two") in headers
        assert dict(principal.metadata) == {"source": source}


async def test_a_principal_never_shows_its_key_and_keeps_its_scope_over_restarts():
    gate = access(**KEYS)
    first = await admit(gate, [("Authorization", "Bearer k-one")])
    second = await admit(gate, [("Authorization", "Bearer k-two")])
    again = await admit(access(**KEYS), [("Authorization", "Bearer k-one")])
    assert first.scope == again.scope != second.scope
    assert "k-two" not in repr(second)
    assert second.name.startswith("key-")


async def test_F99_J27_without_a_key_it_is_missing_and_with_a_wrong_one_invalid():
    gate = access(auth("p", None), **KEYS)
    assert await refused(gate) == (401, "Missing API key")
    assert await refused(gate, [("Authorization", "Bearer wrong")]) == (401, "Invalid API key")
    assert await refused(gate, [("Authorization", "Bearer ")]) == (401, "Invalid API key")


async def test_a_plugin_allows_a_client_whom_no_key_knows():
    principal = await admit(access(auth("p", ALLOW), **KEYS), [("X-Token", "t")])
    assert (principal.name, principal.provider, dict(principal.metadata)) == (
        "alice",
        "plugin:p:p-id",
        {"team": "red"},
    )


async def test_a_plugin_sees_the_clients_secrets_and_no_body_unless_it_asks():
    plain = auth("p", ALLOW)
    curious = auth("q", ALLOW, inputs={METHOD: ["body"]})
    for plugin in (plain, curious):
        await admit(access(plugin), [("Authorization", "Bearer t")], [("key", "v")], body=b'{"a":1}')
    (seen,), (asked,) = plain.seen(METHOD), curious.seen(METHOD)
    assert (dict(seen.headers)["authorization"], dict(seen.query)) == (("Bearer t",), {"key": ("v",)})
    assert (seen.method, seen.path, seen.client_address) == ("POST", "/v1/x", "127.0.0.1")
    assert not seen.body
    assert asked.body.value() == {"a": 1}


async def test_a_body_above_one_mebibyte_is_not_shown():
    plugin = auth("p", ALLOW, inputs={METHOD: ["body"]})
    await admit(access(plugin), body=b'"' + b"x" * 1024 * 1024 + b'"')
    assert not plugin.seen(METHOD)[0].body


async def test_plugins_are_asked_in_order_until_one_decides():
    first, second, third = auth("a", None, priority=3), auth("b", ALLOW, priority=2), auth("c", ALLOW, priority=1)
    await admit(access(first, second, third))
    assert [len(plugin.seen(METHOD)) for plugin in (first, second, third)] == [1, 1, 0]


async def test_J30_a_key_that_is_wrong_outweighs_plugins_that_know_nothing_and_those_that_fail():
    gate = access(auth("a", None, priority=2), auth("c", PluginError("down", http_status=500)), **KEYS)
    assert await refused(gate, [("Authorization", "Bearer wrong")]) == (401, "Invalid API key")


async def test_a_denial_ends_the_chain_with_its_own_status_and_text():
    later = auth("b", ALLOW)
    deny = FrontendAuthResponse(decision="deny", status=402, message="pay first")
    assert await refused(access(auth("a", deny, priority=1), later)) == (402, "pay first")
    assert later.seen(METHOD) == []


async def test_a_key_that_is_configured_is_not_shown_to_plugins():
    plugin = auth("p", FrontendAuthResponse(decision="deny"))
    assert (await admit(access(plugin, **KEYS), [("X-Api-Key", "k-one")])).name == "one"
    assert plugin.seen(METHOD) == []


async def test_F101_of_several_exclusive_plugins_the_highest_priority_is_the_only_one_asked():
    low, high, plain = (
        auth("e1", ALLOW, exclusive=True, priority=1),
        auth("e2", ALLOW, exclusive=True, priority=5),
        auth("p", ALLOW, priority=9),
    )
    assert (await admit(access(low, high, plain, **KEYS))).provider == "plugin:e2:e2-id"
    assert (low.seen(METHOD), plain.seen(METHOD)) == ([], [])


async def test_F101_with_equal_priority_the_smaller_id_is_asked():
    assert (await admit(access(auth("b", ALLOW, exclusive=True), auth("a", ALLOW, exclusive=True)))).provider == (
        "plugin:a:a-id"
    )


async def test_F102_exclusive_without_the_method_is_ignored():
    plugin = FakePlugin(
        id="x", hooks={"model.route": lambda _: None}, frontend_auth=FrontendAuthRegistration(exclusive=True)
    )
    assert (await admit(access(plugin, **KEYS), [("X-Api-Key", "k-one")])).name == "one"


async def test_J32_an_exclusive_plugin_that_declines_shuts_out_valid_keys():
    gate = access(auth("e", None, exclusive=True), **KEYS)
    assert await refused(gate, [("X-Api-Key", "k-one")]) == (401, "Missing API key")


async def test_J31_when_the_operator_takes_the_exclusive_plugin_away_all_the_others_decide_again():
    exclusive, other = auth("e", None, exclusive=True), auth("p", ALLOW)
    states = [build_state(Config(**KEYS), snapshot(exclusive, other))]
    gate = Access(invoker=Invoker(), state=lambda: states[-1])
    key = [("X-Api-Key", "k-one")]
    assert await refused(gate, key) == (401, "Missing API key")
    states.append(build_state(Config(**KEYS), snapshot(other)))
    assert (await admit(gate, key)).name == "one"
    assert (await admit(gate)).provider == "plugin:p:p-id"


BROKEN = PluginTransportError("p", METHOD, phase="exit", cause="gone")


@pytest.mark.parametrize("state", [PluginState.FAILED, PluginState.BACKOFF, PluginState.STARTING])
@pytest.mark.parametrize("exclusive", [True, False])
async def test_J31_a_plugin_that_is_down_never_opens_the_proxy(state, exclusive):
    plugin = auth("p", ALLOW, exclusive=exclusive)
    plugin.handle.state = state
    status, _ = await refused(access(plugin))
    assert status == 503
    assert plugin.seen(METHOD) == []


async def test_a_plugin_that_breaks_while_it_is_asked_is_one_that_is_down():
    assert (await refused(access(auth("p", BROKEN))))[0] == 503
    assert (await refused(access(auth("p", BROKEN, exclusive=True), **KEYS)))[0] == 503


async def test_a_plugin_that_is_down_beside_others_abstains():
    down = auth("p", ALLOW)
    down.handle.state = PluginState.BACKOFF
    assert (await admit(access(down, **KEYS), [("X-Api-Key", "k-one")])).name == "one"
    assert await refused(access(down, auth("q", BROKEN), **KEYS)) == (401, "Missing API key")


async def test_a_plugins_own_error_is_an_abstention_unless_the_operator_says_fail():
    error = PluginError("ldap said no", http_status=502)
    assert await refused(access(auth("p", error), **KEYS)) == (401, "Missing API key")
    assert await refused(access(auth("p", error, on_error={METHOD: "fail"}), **KEYS)) == (502, "ldap said no")


async def test_a_denial_is_written_down():
    state = build_state(Config(), snapshot(auth("p", FrontendAuthResponse(decision="deny"))))
    trace = DecisionTrace()
    await refused(Access(invoker=Invoker(), state=lambda: state, trace=trace))
    recorded = trace.get("r1")
    assert recorded is not None
    assert [decision.kind for decision in recorded.decisions] == ["call", "access_denied"]
    assert recorded.finished and recorded.decisions[0].fields["duration_ms"] >= 0


async def test_who_was_let_in_by_whom_is_written_down_and_the_request_goes_on_with_it():
    plugins = (auth("a", FrontendAuthResponse(), priority=1), auth("p", ALLOW))
    state = build_state(Config(), snapshot(*plugins))
    trace = DecisionTrace()
    await admit(Access(invoker=Invoker(), state=lambda: state, trace=trace))
    recorded = trace.begin("r1")
    found = [(decision.kind, decision.fields["plugin_id"]) for decision in recorded.decisions]
    assert found == [("call", "a"), ("no_opinion", "a"), ("call", "p"), ("access_allowed", "p")]
    assert recorded.finished is False


async def test_with_neither_keys_nor_plugins_local_clients_are_anonymous():
    assert (await admit(access())).provider == "anonymous"
    assert (await admit(access(), client_address="")).provider == "anonymous"
    assert (await admit(access(), client_address="::1")).provider == "anonymous"


async def test_anonymous_access_is_refused_from_elsewhere_and_on_a_public_address():
    assert (await refused(access(), client_address="10.0.0.5"))[0] == 401
    assert (await refused(access(host="0.0.0.0")))[0] == 401


@pytest.mark.parametrize("headers", [[("Origin", "https://evil.test")], [("Origin", "null")]])
async def test_anonymous_access_is_refused_to_web_pages(headers):
    assert (await refused(access(), headers))[0] == 403


@pytest.mark.parametrize(
    ("host", "origin", "allowed"),
    [
        ("localhost:8317", "", True),
        ("127.0.0.1:8317", "", True),
        ("[::1]:8317", "", True),
        ("localhost", "http://localhost:3000", True),
        ("127.0.0.1", "http://127.0.0.1", True),
        ("app.localhost:8317", "", True),
        ("evil.test:8317", "", False),
        ("127.0.0.1.evil.test", "", False),
        ("localhost.evil.test", "", False),
        ("", "", False),
        ("localhost", "https://evil.test", False),
        ("localhost", "null", False),
        ("localhost", "file://", False),
        ("localhost", "chrome-extension://abc", False),
        ("192.168.0.2:8317", "", False),
        ("localhost", "http://[", False),
    ],
)
def test_an_anonymous_request_must_be_of_this_machine_by_host_and_origin(host, origin, allowed):
    assert anonymous_request_allowed(host, origin) is allowed


@pytest.mark.parametrize(
    ("name", "expected"), [("127.1.2.3", True), ("::1", True), ("LOCALHOST.", True), ("0.0.0.0", False), ("", False)]
)
def test_what_counts_as_loopback(name, expected):
    assert is_loopback_name(name) is expected


async def test_keys_that_are_removed_stop_working_at_once():
    states = [build_state(Config(**KEYS), snapshot())]
    gate = Access(invoker=Invoker(), state=lambda: states[-1])
    await admit(gate, [("X-Api-Key", "k-one")])
    states.append(build_state(Config(api_keys=[ApiKey(key="other")]), snapshot()))
    assert (await refused(gate, [("X-Api-Key", "k-one")]))[0] == 401
