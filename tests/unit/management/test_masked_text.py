"""The file is shown as it is written, with masks for its secrets: in place where that says the right thing."""

import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from host.config.load import ConfigError, to_plain
from host.config.tree import read_tree
from host.management.masked_text import masked_text
from host.management.masks import Masks, is_mask

CONFIG = """\
# the pool
api-keys: [client-one, "client-two"]   # two of them
claude-api-key:
  - api-key: sk-one # mine
    headers: {x-team: blue, 'x-key': "api-key"}
    priority: 3
  - {api-key: 'sk-two', base-url: https://user:word@two.test/v1}
  -
    api-key: "sk: three"
    weight:   2
proxy-url: http://u:p@proxy:1
"""
SECRETS = ("client-one", "client-two", "sk-one", "sk-two", "sk: three", "user:word", "u:p")
_MASK = re.compile(r"'?\*\*\*-[0-9a-f]{12}'?")


def masks() -> Masks:
    return Masks(lambda: b"k", plugin_secrets=lambda plugin_id, section: frozenset())


def masked(text: str) -> str | None:
    tree, makes = read_tree(text, "c.yaml"), masks()
    return masked_text(text, tree, list(makes.places(tree)), makes.mask)


def expected(text: str) -> Any:
    return masks().masked(to_plain(read_tree(text, "c.yaml")))


def test_only_the_secrets_of_a_text_are_replaced() -> None:
    shown = masked(CONFIG)
    assert shown is not None and not [secret for secret in SECRETS if secret in shown]
    assert to_plain(read_tree(shown, "c.yaml")) == expected(CONFIG)
    lines = zip(CONFIG.splitlines(), shown.splitlines(), strict=True)
    unlike = [was for was, now in lines if was != now]
    assert len(unlike) == 6
    assert shown.splitlines()[3].endswith("' # mine") and shown.splitlines()[9] == "    weight:   2"
    assert len(_MASK.findall(shown)) == len(SECRETS) + 2


@pytest.mark.parametrize(
    "text",
    [
        "api-keys:\n  - |\n    one\n",
        "api-keys:\n  - one\n    two\n",
        'api-keys: ["a\\x62c"]\n',
        "claude-api-key:\n  - api-key: &k sk-one\n  - api-key: *k\n",
        "claude-api-key:\n  - api-key: 0x1F\n",
        "claude-api-key:\n  - api-key: # below\n      sk-one\n",
    ],
    ids=["block", "two lines", "escapes", "alias", "number", "own line"],
)
def test_a_secret_that_is_not_written_as_it_is_cannot_be_replaced_in_place(text: str) -> None:
    assert masked(text) is None


@settings(max_examples=150, deadline=None, derandomize=True)
@given(
    st.lists(st.sampled_from(["sk-1", "api-key", "a", "k: v", "'", '"', "#", " # x", "1", "~", "***-0123456789ab"])),
    st.sampled_from(["{}", "'{}'", '"{}"']),
    st.sampled_from(["  - api-key: {}\n", "  - {{api-key: {}, weight: 1}}\n", "  - headers: {{api-key: {}, b: c}}\n"]),
)
def test_whatever_the_secrets_are_a_text_is_masked_right_or_not_at_all(
    secrets: list[str], quotes: str, item: str
) -> None:
    text = "claude-api-key:\n" + "".join(item.format(quotes.format(secret)) for secret in secrets)
    try:
        wanted = expected(text)
    except ConfigError:
        return
    shown = masked(text)
    assert shown is None or to_plain(read_tree(shown, "c.yaml")) == wanted


def test_a_mask_that_stands_in_the_file_is_shown_as_it_is() -> None:
    mask = masks().mask("sk-one")
    assert is_mask(mask) and masks().mask(mask) == mask
