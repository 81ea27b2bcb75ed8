"""A large file is edited by reading the parts with comments that the edit looks at, and no others."""

from typing import Any

import pytest

from host.config import editable
from host.config.editable import open_tree
from host.config.problems import ConfigError
from host.config.splice import spliced
from host.config.tree import UNREADABLE, parse_yaml, to_plain

TEXT = """\
# The head.
port:   8317   # spaces stay
request-retry: &three 3

claude-api-key:
  # A comment inside.
  - api-key: k  # the key
    priority: *three
# Between.
remote-management:
    secret-key:   s # wide
# The end.
"""


def test_an_edit_says_the_same_as_one_of_the_whole_tree(monkeypatch: pytest.MonkeyPatch):
    asked: list[str] = []

    def noting(text: str, file: str) -> Any:
        asked.append(text)
        return parse_yaml(text, file)

    monkeypatch.setattr(editable, "parse_yaml", noting)
    tree = open_tree(TEXT, "c.yaml")
    assert to_plain(tree) == to_plain(parse_yaml(TEXT, "c.yaml"))
    assert asked == []
    tree["remote-management"]["secret-key"] = "t"
    assert asked == ["remote-management:\n    secret-key:   s # wide\n# The end.\n"]
    assert tree.get("remote-management")["secret-key"] == "t"
    found = spliced(TEXT, tree)
    assert len(asked) == 1
    assert found == TEXT.replace("    secret-key:   s # wide", "  secret-key: t     # wide")


def test_a_part_that_refers_to_another_one_is_read_with_it():
    tree = open_tree(TEXT, "c.yaml")
    tree["claude-api-key"][0]["prefix"] = "p"
    found = to_plain(parse_yaml(spliced(TEXT, tree), "c.yaml"))
    assert found["claude-api-key"] == [{"api-key": "k", "priority": 3, "prefix": "p"}]


@pytest.mark.parametrize("text", ["{port: 1, tls: {enable: true}}\n", "", "%YAML 1.2\n---\ntls: {enable: true}\n"])
def test_whatever_is_not_written_in_lines_is_read_as_a_whole(text: str):
    tree = open_tree(text, "c.yaml")
    tree.setdefault("tls", {})["cert"] = "x"
    assert to_plain(parse_yaml(spliced(text, tree), "c.yaml"))["tls"]["cert"] == "x"


def test_a_part_whose_comments_cannot_be_read_is_no_missing_part():
    tree = open_tree("a: &a 1\nb:\n  c: # why\n    x\n\n  d: *a\n", "c.yaml")
    assert tree.get("b2", 7) == 7 and tree.get("a") == 1
    with pytest.raises(ConfigError, match=UNREADABLE):
        tree.get("b")
