"""Switching configured keys off and on in the operator's file."""

import pytest

from host.config.load import parse_config
from host.credentials.config_keys import set_excluded
from host.credentials.manager import CredentialManager

TEXT = """\
# the operator's own words
claude-api-key:
  - api-key: twice # first
    base-url: https://a.test/
  - api-key: twice
    base-url: https://a.test
    prefix: team
    excluded-models: ["*", "x", " * "] # second
  - base-url: https://keyless.test
openai-compatibility:
  - name: acme
    base-url: https://acme.test
"""


def ids(text: str) -> list[str]:
    manager = CredentialManager()
    manager.apply_config(parse_config(text, file="c.yaml").config)
    return [record.id for record in manager.credentials]


def edited(text: str, credential_id: str, *, excluded: bool) -> str:
    return set_excluded(parse_config(text, file="c.yaml"), "c.yaml", credential_id, excluded=excluded).text


def test_switching_a_key_off_adds_the_pattern_to_that_entry_and_leaves_every_comment_alone():
    after = edited(TEXT, ids(TEXT)[0], excluded=True)
    assert "# the operator's own words" in after and "# first" in after and "# second" in after
    keys = parse_config(after, file="c.yaml").config.claude_api_key
    assert [list(key.excluded_models) for key in keys] == [["*"], ["*", "x"], []]
    assert ids(after) == ids(TEXT)


def test_switching_a_key_on_removes_every_such_pattern_and_keeps_the_rest():
    after = edited(TEXT, ids(TEXT)[1], excluded=False)
    keys = parse_config(after, file="c.yaml").config.claude_api_key
    assert [list(key.excluded_models) for key in keys] == [[], ["x"], []]


def test_switching_off_and_on_again_is_the_text_it_was():
    off = edited(TEXT, ids(TEXT)[2], excluded=True)
    assert off == TEXT.replace("keyless.test\n", "keyless.test\n    excluded-models:\n      - '*'\n")
    assert edited(off, ids(off)[2], excluded=False) == TEXT


def test_I15_a_compatible_provider_and_an_unknown_id_cannot_be_switched():
    for credential_id in (ids(TEXT)[-1], "claude:apikey:000000000000"):
        with pytest.raises(KeyError):
            edited(TEXT, credential_id, excluded=True)
