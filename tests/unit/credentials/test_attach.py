"""Secrets go to the hosts bound to them, and to nobody else."""

from dataclasses import replace

import pytest

from host.config.model import CompatKey, CompatProvider, Config, ProviderKey
from host.credentials.attach import Signer, is_bound, sign
from host.credentials.configured import ConfiguredKeys
from host.credentials.pool import CredentialPool
from host.credentials.records import Credential, HandleMint
from host.credentials.secret import Secret
from host.pipeline.attach import PoolAttacher
from host.runtime.handle import PluginSnapshot, PluginView
from pluginabi.errors import PluginError


def credential(**config) -> Credential:
    (found,) = ConfiguredKeys(HandleMint()).read(Config(**config)).values()
    return found


ACME = credential(
    openai_compatibility=[
        CompatProvider(
            name="acme",
            base_url="https://acme.test/v1",
            headers={"X-Org": "org"},
            api_key_entries=[CompatKey(api_key="sk-acme", proxy_url="http://proxy:1")],
        )
    ]
)


def view(plugin_id: str, **fields) -> PluginView:
    return PluginView(plugin_id=plugin_id, version="1", priority=0, handle=None, capabilities=frozenset(), **fields)


EXECUTORS = PluginSnapshot(
    plugins={
        "looks-on": view("looks-on", providers=("openai-compatible-other",)),
        "executes": view("executes", providers=("openai-compatible-*",)),
        "keeps-tokens": view("keeps-tokens", auth_provider="openai-compatible-acme"),
    }
)


@pytest.mark.parametrize(
    ("config", "name", "value"),
    [
        ({"claude_api_key": [ProviderKey(api_key="sk-1")]}, "x-api-key", "sk-1"),
        ({"gemini_api_key": [ProviderKey(api_key="sk-2")]}, "x-goog-api-key", "sk-2"),
    ],
)
def test_each_provider_gets_its_secret_in_its_own_header(config, name, value):
    found = credential(**config)
    signed = sign(found, f"{found.base_url}/v1/x", [("accept", "a")])
    assert signed.headers == [("accept", "a"), (name, value)]


def test_a_compat_key_is_a_bearer_and_brings_configured_headers_and_proxy():
    signed = sign(ACME, "https://acme.test/v1/chat", [])
    assert signed.headers == [("x-org", "org"), ("authorization", "Bearer sk-acme")]
    assert signed.proxy_url == "http://proxy:1"


def test_what_the_plugin_set_itself_is_replaced():
    signed = sign(ACME, "https://acme.test/v1", [("Authorization", "Bearer mine"), ("X-ORG", "mine")])
    assert [value for _, value in signed.headers] == ["org", "Bearer sk-acme"]


def test_a_query_secret_replaces_the_parameter_of_that_name():
    found = Credential(
        id="q",
        provider="q",
        label="q",
        base_url="https://q.test",
        secret=Secret("s3"),
        secret_place="query",
        secret_name="key",
    )
    assert sign(found, "https://q.test/a?x=1&key=mine", []).url == "https://q.test/a?x=1&key=s3"


@pytest.mark.parametrize(
    "url",
    [
        "https://evil.test/v1",
        "http://acme.test/v1",
        "https://acme.test:8443/v1",
        "https://acme.test.evil.test/v1",
        "https://acme.test@evil.test/v1",
        "https://evil.test\\@acme.test/v1",
        "https://user@acme.test/v1",
        "ftp://acme.test/v1",
        "https:///v1",
        "acme.test/v1",
        "https://acme.test:99999/v1",
        "",
    ],
)
def test_a_secret_never_goes_to_another_origin(url):
    assert not is_bound(ACME, url)
    with pytest.raises(PluginError) as refused:
        sign(ACME, url, [])
    assert refused.value.code == "permission_denied"
    assert "sk-acme" not in str(refused.value)


@pytest.mark.parametrize("url", ["https://ACME.test/v1", "https://acme.test:443/x", "https://acme.test./x"])
def test_the_same_origin_in_another_spelling_is_bound(url):
    assert is_bound(ACME, url)


def test_a_credential_without_a_base_url_is_bound_to_nothing():
    assert not is_bound(Credential(id="x", provider="x", label="x", secret=Secret("s")), "https://any.test")


def test_a_signed_request_does_not_print_its_secret():
    assert "sk-acme" not in repr(sign(ACME, "https://acme.test/", []))


def test_a_handle_that_nobody_gave_out_attaches_nothing():
    attacher = PoolAttacher(CredentialPool([ACME]), lambda handle: None, plugins=EXECUTORS)
    signed = attacher.attach(ACME.handle, "https://acme.test/v1", [], plugin_id="executes")
    assert signed.proxy_url == "http://proxy:1"
    for handle in ("", ACME.id, "cred-0"):
        with pytest.raises(PluginError):
            attacher.attach(handle, "https://acme.test/v1", [], plugin_id="executes")


@pytest.mark.parametrize(("plugin_id", "may"), [("executes", True), ("keeps-tokens", True), ("looks-on", False)])
def test_only_who_executes_a_provider_or_keeps_its_tokens_may_use_its_credentials(plugin_id, may):
    attacher = PoolAttacher(CredentialPool([ACME]), lambda handle: None, plugins=EXECUTORS)
    if may:
        assert attacher.attach(ACME.handle, "https://acme.test/v1", [], plugin_id=plugin_id).headers
        return
    with pytest.raises(PluginError, match="not the business of plugin 'looks-on'") as caught:
        attacher.attach(ACME.handle, "https://acme.test/v1", [], plugin_id=plugin_id)
    assert caught.value.code == "permission_denied"


@pytest.mark.parametrize(
    ("base_url", "auth_plugin", "chosen_by"),
    [
        ("https://acme.test/other", "keeps-tokens", ""),
        ("https://api.anthropic.com", "keeps-tokens", ""),
        ("https://evil.test", "keeps-tokens", "keeps-tokens"),
        ("https://evil.test", "", ""),
    ],
)
def test_where_a_credential_leads_is_a_plugins_word_unless_the_operator_leads_there_too(
    base_url, auth_plugin, chosen_by
):
    made = replace(ACME, base_url=base_url, auth_plugin=auth_plugin, handle="cred-made")
    attacher = PoolAttacher(CredentialPool([ACME]), lambda handle: made, plugins=EXECUTORS)
    assert attacher.attach("cred-made", base_url, [], plugin_id="executes").chosen_by == chosen_by


COPYING = credential(
    claude_api_key=[
        ProviderKey(api_key="k", headers={"X-User": "$X-Client-User", "X-Cost": "$$5", "X-Api-Key": "$authorization"})
    ]
)
COPYING_SIGNER = Signer(COPYING)


@pytest.mark.parametrize(
    ("client", "expected"),
    [({"x-client-user": ("ann", "bob")}, ["ann", "bob"]), ({"other": ("x",)}, [])],
)
def test_a_header_that_copies_one_of_the_clients_is_left_out_when_the_client_did_not_send_it(client, expected):
    signed = COPYING_SIGNER.sign("https://api.anthropic.com/v1", [("x-user", "forged")], client_headers=client)
    assert [value for name, value in signed.headers if name == "x-user"] == expected


def test_a_value_with_two_dollar_signs_begins_with_one_and_a_copy_never_takes_the_secrets_place():
    signed = COPYING_SIGNER.sign("https://api.anthropic.com/v1", [], client_headers={"authorization": ("Bearer mine",)})
    assert signed.headers == [("x-cost", "$5"), ("x-api-key", "k")]


def test_what_plugins_hand_out_is_not_remembered_for_ever():
    made = {f"h{number}": replace(ACME, id=f"h{number}", handle=f"h{number}") for number in range(30)}
    attacher = PoolAttacher(CredentialPool([ACME]), lambda handle: None, made.get, plugins=EXECUTORS, max_signers=10)
    for handle in made:
        attached = attacher.attach(handle, "https://acme.test/v1/x", [], plugin_id="executes")
        assert ("authorization", "Bearer sk-acme") in attached.headers
        assert len(attacher._signers) <= 10


def test_requests_that_started_with_a_credential_go_on_with_its_newest_token_and_after_it_was_removed():
    renewed = replace(ACME, secret=Secret("sk-new"))
    now: list[Credential | None] = [renewed]
    attacher = PoolAttacher(CredentialPool([ACME]), lambda handle: now[0], plugins=EXECUTORS)

    def sent() -> str:
        return dict(attacher.attach(ACME.handle, "https://acme.test/v1", [], plugin_id="executes").headers)[
            "authorization"
        ]

    assert sent() == "Bearer sk-new"
    now[0] = replace(renewed, base_url="https://elsewhere.test")
    assert sent() == "Bearer sk-acme"
    now[0] = replace(renewed, disabled=True)
    assert sent() == "Bearer sk-acme"
    now[0] = None
    assert sent() == "Bearer sk-acme"
