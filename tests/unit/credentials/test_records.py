"""Credential records made from the configuration."""

import pickle

import msgspec
import pytest

from host.config.model import CompatKey, CompatProvider, Config, ProviderKey
from host.credentials.configured import ConfiguredKeys
from host.credentials.ids import auth_index, compat_provider_key
from host.credentials.records import Credential, HandleMint
from host.credentials.secret import Secret


def records(**config) -> tuple[Credential, ...]:
    return tuple(ConfiguredKeys(HandleMint()).read(Config(**config)).values())


@pytest.mark.parametrize(
    ("vector", "config", "expected"),
    [
        (
            "A1",
            {"gemini_api_key": [ProviderKey(api_key="k1")]},
            ("gemini:apikey:a0ff00d2ace0", "gemini", "gemini-apikey", "config:gemini[a0ff00d2ace0]"),
        ),
        (
            "A2",
            {"gemini_api_key": [ProviderKey(api_key="k1", base_url="https://example.com")]},
            ("gemini:apikey:c0e07a2ff58a", "gemini", "gemini-apikey", "config:gemini[c0e07a2ff58a]"),
        ),
        (
            "A4",
            {"claude_api_key": [ProviderKey(api_key="sk-test", base_url="https://api.example.com")]},
            ("claude:apikey:51ef97c55499", "claude", "claude-apikey", "config:claude[51ef97c55499]"),
        ),
        (
            "A6",
            {"vertex_api_key": [ProviderKey(api_key="vk", base_url="https://v.example.com")]},
            ("vertex:apikey:a8dfeb799cee", "vertex", "vertex-apikey", "config:vertex-apikey[a8dfeb799cee]"),
        ),
        (
            "A7",
            {
                "openai_compatibility": [
                    CompatProvider(
                        name="Acme", base_url="https://acme.test/v1", api_key_entries=[CompatKey(api_key="k1")]
                    )
                ]
            },
            ("openai-compatibility:acme:30eab11067fb", "openai-compatible-acme", "Acme", "config:acme[30eab11067fb]"),
        ),
        (
            "A8",
            {"openai_compatibility": [CompatProvider(name="Acme", base_url="https://acme.test/v1")]},
            ("openai-compatibility:acme:28da5afd8e21", "openai-compatible-acme", "Acme", "config:acme[28da5afd8e21]"),
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_configured_key_has_its_stable_id(vector, config, expected):
    (found,) = records(**config)
    assert (found.id, found.provider, found.label, found.attributes["source"]) == expected


def test_A3_the_same_key_twice_gets_a_second_id_and_shares_the_index():
    first, second = records(gemini_api_key=[ProviderKey(api_key="k1"), ProviderKey(api_key="k1")])
    assert second.id == "gemini:apikey:a0ff00d2ace0-1"
    assert first.auth_index == second.auth_index


def test_A7_a_compat_credential_says_its_name_and_A8_a_keyless_one_has_no_secret():
    (found,) = records(openai_compatibility=[CompatProvider(name="Acme", base_url="https://acme.test/v1")])
    assert (found.attributes["compat_name"], found.attributes["provider_key"]) == ("Acme", "openai-compatible-acme")
    assert (found.secret, found.secret_place) == (None, "none")


def test_A9_two_keyless_entries_are_two_credentials():
    entries = [CompatKey(api_key=""), CompatKey(api_key="   ")]
    first, second = records(openai_compatibility=[CompatProvider(name="A", api_key_entries=entries)])
    assert (first.secret, second.secret) == (None, None)
    assert second.id == f"{first.id}-1"


@pytest.mark.parametrize(
    ("vector", "family", "base_url", "expected"),
    [
        ("A11", "gemini-api-key", "", "e2edf27623e5a1bf"),
        ("A12", "gemini-api-key", "https://alt.example.com", "b7f3850707a6b1da"),
        ("A13", "openai-compatibility", "", "60951f7d6732afdf"),
    ],
)
def test_the_index_of_a_key(vector, family, base_url, expected):
    assert auth_index(family, base_url=base_url, api_key="shared-key", credential_id="x") == expected


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("", "openai-compatibility"),
        ("openai-compatibility", "openai-compatibility"),
        ("OpenAI-Compatible-X", "openai-compatible-x"),
        ("Kimi", "openai-compatible-kimi"),
    ],
)
def test_A23_a_compat_name_becomes_a_provider_key(name, key):
    assert compat_provider_key(name) == key


def test_attributes_hold_the_default_base_url_and_never_a_secret_or_custom_header():
    (claude,) = records(claude_api_key=[ProviderKey(api_key="sk-1", headers={"X-Org": "o1"}, priority=3)])
    assert claude.attributes == {
        "base_url": "https://api.anthropic.com",
        "auth_kind": "apikey",
        "source": claude.attributes["source"],
        "priority": "3",
    }
    assert claude.headers == (("x-org", "o1"),)
    assert "sk-1" not in repr(claude)


def test_a_compat_provider_without_responses_cannot_take_responses_bodies():
    plain, rich = records(openai_compatibility=[CompatProvider(name="a"), CompatProvider(name="b", responses=True)])
    assert plain.unsupported_formats == {"openai-response"}
    assert rich.unsupported_formats == frozenset()
    assert rich.attributes["responses"] == "true"


def test_a_disabled_compat_provider_and_a_blank_key_make_no_credential():
    assert (
        records(
            openai_compatibility=[CompatProvider(name="a", disabled=True)], gemini_api_key=[ProviderKey(api_key=" ")]
        )
        == ()
    )


@pytest.mark.parametrize(("prefix", "expected"), [(" /team/ ", "team"), ("a/b", ""), ("", "")])
def test_A18_a_prefix_is_one_path_segment(prefix, expected):
    (found,) = records(gemini_api_key=[ProviderKey(api_key="k", prefix=prefix)])
    assert found.prefix == expected


def test_I13_one_entry_of_each_kind_makes_five_credentials_in_order():
    key = ProviderKey(api_key="k", base_url="https://a.test")
    found = records(
        gemini_api_key=[key],
        claude_api_key=[key],
        codex_api_key=[key],
        vertex_api_key=[key],
        openai_compatibility=[CompatProvider(name="compat", base_url="https://a.test")],
    )
    assert [it.provider for it in found] == ["gemini", "claude", "codex", "openai-compatible-compat", "vertex"]


def test_entries_that_differ_only_in_prefix_proxy_or_headers_have_ids_of_their_own_whatever_their_order():
    keys = [
        ProviderKey(api_key="k"),
        ProviderKey(api_key="k", prefix="team"),
        ProviderKey(api_key="k", proxy_url="http://p:1"),
        ProviderKey(api_key="k", headers={"X-A": "1", "X-B": "2"}),
    ]
    ids = {it.id: (it.prefix, it.proxy_url, it.headers) for it in records(claude_api_key=keys)}
    assert len(ids) == 4
    keys[3] = ProviderKey(api_key="k", headers={"x-b": "2", "x-a": "1"})
    turned = records(claude_api_key=keys[::-1])
    assert {it.id for it in turned} == ids.keys()


def test_a_keyless_entry_with_a_base_url_is_a_credential_without_a_secret():
    (found,) = records(claude_api_key=[ProviderKey(base_url="https://claude.test")])
    assert (found.secret, found.secret_place, found.base_url) == (None, "none", "https://claude.test")


def test_handles_are_stable_in_one_process_and_say_nothing_about_the_credential():
    mint = HandleMint()
    assert mint.handle("a") == mint.handle("a") != mint.handle("b")
    assert mint.handle("a") != HandleMint().handle("a")


def test_a_secret_is_masked_however_it_is_shown():
    secret = Secret("sk-hidden")
    assert "sk-hidden" not in f"{secret} {secret!r} {secret:>20} {[secret]}"
    assert secret.reveal() == "sk-hidden"
    assert secret == Secret("sk-hidden") != Secret("other")
    with pytest.raises(TypeError):
        pickle.dumps(secret)
    with pytest.raises(TypeError):
        msgspec.json.encode({"secret": secret})
