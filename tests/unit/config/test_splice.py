"""A change of one key leaves the lines of all others alone."""

import pytest

from host.config.load import parse_yaml
from host.config.splice import says, spliced

TEXT = """\
# The head.
port:   8317   # spaces stay

api-keys:
- one  # first
- two
# Between the keys.

claude-api-key:
  # A comment inside.
  - api-key: k  # the key
    models: [{name: m}]

# The end.
"""


def changed(text, edit):
    tree = parse_yaml(text, "")
    edit(tree)
    found = spliced(text, tree)
    assert says(found, tree)
    return found


def test_only_the_lines_of_the_changed_key_change():
    assert changed(TEXT, lambda tree: tree["api-keys"].pop(1)) == TEXT.replace("- two\n", "")
    assert changed(TEXT, lambda tree: tree.__setitem__("api-keys", ["x"])) == TEXT.replace(
        "- one  # first\n- two\n", "- x\n"
    )
    found = changed(TEXT, lambda tree: tree["claude-api-key"][0].__setitem__("prefix", "p"))
    assert "# A comment inside." in found and "# the key" in found and found.endswith("\n# The end.\n")


def test_a_key_that_goes_leaves_the_comments_behind_it_and_a_new_one_comes_last():
    found = changed(TEXT, lambda tree: tree.pop("api-keys"))
    assert found == TEXT.replace("api-keys:\n- one  # first\n- two\n", "")
    assert changed(TEXT, lambda tree: tree.__setitem__("debug", True)) == TEXT + "debug: true\n"
    assert changed("", lambda tree: tree.__setitem__("debug", True)) == "debug: true\n"
    assert changed("port: 1", lambda tree: tree.__setitem__("debug", True)) == "port: 1\ndebug: true\n"


@pytest.mark.parametrize(
    "text", ["{port: 1, debug: true}\n", "port: 1\nnote: |\n  text\n  # no comment\n\ndebug: true\n"]
)
def test_a_style_whose_lines_cannot_be_told_apart_is_written_as_a_whole(text):
    assert says(changed(text, lambda tree: tree.__setitem__("port", 2)), parse_yaml(text.replace("1", "2"), ""))
    assert "debug" not in changed(text, lambda tree: tree.pop("debug"))


def test_a_value_of_another_type_is_a_change():
    for value, shown in ((True, "true"), (1.0, "1.0"), ("1", "'1'")):
        assert changed("a: 1\nb: 2\n", lambda tree, value=value: tree.__setitem__("a", value)) == f"a: {shown}\nb: 2\n"
