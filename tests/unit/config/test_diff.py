"""What the log says about a change of the configuration."""

import pytest

from host.config.diff import MAX_CHANGES, changes
from host.config.load import parse_config
from host.config.model import ApiKey, CompatKey, CompatProvider, Config, ProviderKey


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        ("port: 1", "port: 2", ["port: 1 -> 2"]),
        ("debug: false", "debug: true", ["debug: false -> true"]),
        ("routing: {strategy: fill-first}", "", ["routing.strategy: fill-first -> round-robin"]),
        ("api-keys: [a]", "api-keys: [b]", ["api-keys: changed"]),
        (
            "claude-api-key: [{api-key: one}]",
            "claude-api-key: [{api-key: two, priority: 3}]",
            ["claude-api-key[0].api-key: changed", "claude-api-key[0].priority: 0 -> 3"],
        ),
        (
            "claude-api-key: [{api-key: one}]",
            "claude-api-key: [{api-key: one}, {api-key: two}]",
            ["claude-api-key: 1 -> 2 entries"],
        ),
        (
            "oauth-excluded-models: {a: [x], b: [x]}",
            "oauth-excluded-models: {b: [y], c: [z]}",
            [
                "oauth-excluded-models.a: removed",
                "oauth-excluded-models.b[0]: x -> y",
                "oauth-excluded-models.c: added",
            ],
        ),
        (
            "plugins: {configs: {p: {token: one, priority: 1}}}",
            "plugins: {configs: {p: {token: two, priority: 2}}}",
            ["plugins.configs.p.priority: 1 -> 2", "plugins.configs.p.config: changed"],
        ),
        ("port: 1", "port: 1 # touched", []),
    ],
)
def test_a_change_is_named_by_its_path_and_a_secret_never_shown(before, after, expected):
    assert changes(*(parse_config(text, file="c.yaml").config for text in (before, after))) == expected


def test_no_secret_of_any_section_is_in_the_text():
    def config(secret: str) -> Config:
        return Config(
            api_keys=[ApiKey(key=secret)],
            proxy_url=f"http://u:{secret}@proxy",
            claude_api_key=[ProviderKey(api_key=secret, proxy_url=secret, headers={"x": secret})],
            openai_compatibility=[CompatProvider(name="a", api_key_entries=[CompatKey(api_key=secret)])],
        )

    found = changes(config("hidden-1"), config("hidden-2"))
    assert len(found) == 6
    assert "hidden" not in str(found)


def test_of_many_changes_the_first_are_named():
    before = Config(claude_api_key=[ProviderKey(api_key="k", priority=0)] * 100)
    after = Config(claude_api_key=[ProviderKey(api_key="k", priority=1)] * 100)
    assert len(changes(before, after)) == MAX_CHANGES + 1
