"""Secrets of the configuration are shown as masks, and a mask keeps its secret where that was."""

from typing import Any

import pytest

from host.config.secret_names import sounds_secret
from host.management.calls import ManagementError
from host.management.masks import Masks, is_mask


def masks(key: bytes = b"k") -> Masks:
    return Masks(lambda: key, plugin_secrets=lambda plugin_id, section: frozenset({"token"}))


def config() -> dict[str, Any]:
    return {
        "port": 8317,
        "api-keys": ["client-one", {"key": "client-two", "name": "Bob"}],
        "claude-api-key": [{"api-key": "sk-1", "base-url": "https://one/", "headers": {"X-Team": "blue"}}],
        "openai-compatibility": [
            {"name": "acme", "base-url": "https://two", "api-key-entries": [{"api-key": "sk-2", "weight": 2}]}
        ],
        "max-retry-credentials": 3,
        "proxy-url": "http://user:word@proxy:1",
        "remote-management": {"secret-key": "$argon2id$x", "allow-remote": False},
        "plugins": {
            "configs": {"p": {"enabled": True, "token": "plugin-secret", "limit": 1}},
            "policy": {"p": {"environment": {"TOKEN": "from-host"}, "permissions": ["http"]}},
        },
    }


SECRETS = (*("client-one", "client-two", "sk-1", "blue", "sk-2", "word", "argon2id", "plugin-secret", "from-host"),)


def refused(new: Any) -> str:
    with pytest.raises(ManagementError) as caught:
        masks().unmasked(new, config())
    assert caught.value.status == 400
    return str(caught.value.document["message"])


def test_every_secret_is_masked_and_nothing_else() -> None:
    shown = masks().masked(config())
    assert not [secret for secret in SECRETS if secret in str(shown)]
    assert shown["plugins"]["configs"]["p"]["limit"] == 1
    assert (
        shown["openai-compatibility"][0] | {"name": "acme", "base-url": "https://two"}
        == (shown["openai-compatibility"][0])
    )
    assert shown["max-retry-credentials"] == 3
    assert is_mask(shown["api-keys"][0]) and is_mask(shown["api-keys"][1]["key"])
    assert masks(b"other").mask("sk-1") != masks().mask("sk-1") != masks().mask("sk-2")


def test_secrets_inside_of_a_plugins_section_are_masked_and_come_back() -> None:
    def nested() -> dict[str, Any]:
        section = {
            "token": ["one", {"any": "two"}, {"env": "NAME"}],
            "upstream": {"password": "three", "headers": {"X-A": "four"}, "region": "eu", "key-id": {"file": "k"}},
            "servers": [{"url": "https://a:five@host/", "weight": 2}],
            "tokens-per-minute": 6,
        }
        return {"plugins": {"configs": {"p": section}}}

    shown = masks().masked(nested())
    assert not [secret for secret in ("one", "two", "three", "four", "five") if secret in str(shown)]
    section = shown["plugins"]["configs"]["p"]
    assert section["token"][2] == {"env": "NAME"} and section["tokens-per-minute"] == 6
    assert (section["upstream"]["region"], section["upstream"]["key-id"]) == ("eu", {"file": "k"})
    assert masks().unmasked(shown, nested()) == nested()


def test_masks_that_come_back_stand_for_what_they_were_made_of_in_any_order() -> None:
    shown = masks().masked(config())
    assert masks().unmasked(shown, config()) == config()
    shown = masks().masked(config())
    shown["api-keys"].reverse()
    assert masks().unmasked(shown, config())["api-keys"] == [{"key": "client-two", "name": "Bob"}, "client-one"]
    shown = masks().masked(config())
    shown["api-keys"][0] = {"key": shown["api-keys"][0], "name": "Alice"}
    assert masks().unmasked(shown, config())["api-keys"][0] == {"key": "client-one", "name": "Alice"}


@pytest.mark.parametrize("family", ["claude-api-key", "openai-compatibility"])
def test_a_masked_key_is_never_sent_to_another_address(family: str) -> None:
    shown = masks().masked(config())
    shown[family][0]["base-url"] = "https://evil.example"
    assert "base-url" in refused(shown)


def test_a_mask_of_nothing_or_of_another_section_is_refused() -> None:
    shown = masks().masked(config())
    shown["api-keys"].append("***-000000000000")
    assert "nothing that is there" in refused(shown)
    shown = masks().masked(config())
    shown["claude-api-key"][0]["api-key"] = masks().mask("client-one")
    assert "nothing that is there" in refused(shown)
    shown = masks().masked(config())
    shown["claude-api-key"][0]["api-key"] = "***"
    assert "nothing that is there" in refused(shown)


def test_names_of_secrets_are_told_from_names_of_other_things() -> None:
    secret = ("api-key", "api_key", "apiKey", "secret-key", "password", "access_token", "private_key", "Authorization")
    plain = (
        "max-retry-credentials",
        "max-tokens",
        "models",
        "excluded-models",
        "allow-remote",
        "key",
        "tokens-per-day",
    )
    assert [name for name in secret if not sounds_secret(name)] == []
    assert [name for name in plain if sounds_secret(name)] == []


@pytest.mark.parametrize(
    "url",
    [
        *("redis://:hidden@h:6379/0", "rediss://user:hidden@h/1", "unix://user:hidden@/run/redis.sock?db=1"),
        *("redis://h/0?password=hidden", "rediss://:hid/den#hidden@h"),
    ],
)
def test_the_password_of_the_state_server_is_masked_wherever_it_stands_in_the_address(url: str) -> None:
    shown = masks().masked({"state": {"url": url, "prefix": "p"}})
    assert "hidden" not in str(shown)
    assert masks().unmasked(shown, {"state": {"url": url, "prefix": "p"}}) == {"state": {"url": url, "prefix": "p"}}


@pytest.mark.parametrize("url", ["redis://h:6379/0", "rediss://h:6379/0?ssl_cert_reqs=required", "unix:///run/r.sock"])
def test_an_address_without_a_password_is_shown(url: str) -> None:
    assert masks().masked({"state": {"url": url}}) == {"state": {"url": url}}
