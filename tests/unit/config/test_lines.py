"""An edit changes the lines of what it changes, and no others, however the file is written."""

import copy
import random
from collections.abc import Callable
from typing import Any

import pytest

from host.config import editable, lines, splice
from host.config.align import same
from host.config.editable import EditRoot, open_tree
from host.config.problems import ConfigError
from host.config.splice import says, spliced
from host.config.tree import parse_yaml, read_tree, to_plain
from tests.support.yaml_texts import Writer, plain, put

TEXT = """\
# The head.
claude-api-key: # ours
  # The first one.
  - api-key: one # bought
    priority:   3   # high
    # of one

  # About two.
  - api-key: two
    models: [{name: m}]   # few
    headers:
      A: x # a
      B: y
  - {api-key: three}
# Between.
openai-compatibility:
- name: big
  base-url: https://big.test
  api-key-entries: # many
    - api-key: e1 # first
      weight: 0x10
    # About the second.
    - api-key: e2
    - api-key: e3 # third
  # Of big.
- name: small
api-keys: [a, b]
# The end.
"""


def changed(text: str, edit: Callable[[Any], object]) -> str:
    tree = open_tree(text, "c.yaml")
    assert isinstance(tree, EditRoot)
    edit(tree)
    found = spliced(text, tree)
    assert says(found, tree)
    return found


@pytest.fixture
def no_fallback(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object) -> str:
        raise AssertionError("written as a whole")

    for name in ("_by_keys", "_as_a_whole", "_without_comments"):
        monkeypatch.setattr(splice, name, refuse)


def set_entries(tree: Any) -> None:
    tree["openai-compatibility"][0]["api-key-entries"] = [
        {"api-key": "e1", "weight": 16},
        {"api-key": "e2", "weight": 2},
        {"api-key": "e3"},
        {"api-key": "e4"},
    ]


EDITS: dict[str, tuple[Callable[[Any], object], list[tuple[str, str]]]] = {
    "a value": (
        lambda tree: tree["claude-api-key"][0].__setitem__("priority", 4),
        [("    priority:   3   # high\n", "    priority:   4   # high\n")],
    ),
    "the value behind the dash": (
        lambda tree: tree["claude-api-key"][0].__setitem__("api-key", "uno"),
        [("- api-key: one # bought", "- api-key: uno # bought")],
    ),
    "a new member": (
        lambda tree: tree["claude-api-key"][0].__setitem__("prefix", "p"),
        [("   # high\n", "   # high\n    prefix: p\n")],
    ),
    "a value further in": (
        lambda tree: tree["claude-api-key"][1]["headers"].__setitem__("A", "z: 1"),
        [("A: x # a", "A: 'z: 1' # a")],
    ),
    "a value on one line": (
        lambda tree: tree["claude-api-key"][2].__setitem__("priority", 1),
        [("{api-key: three}", "{api-key: three, priority: 1}")],
    ),
    "the first member goes": (
        lambda tree: tree["claude-api-key"][0].pop("api-key"),
        [("  - api-key: one # bought\n    priority:   3", "  - priority:   3")],
    ),
    "an item goes with its own comments and no others": (
        lambda tree: tree["claude-api-key"].pop(0),
        [("  - api-key: one # bought\n    priority:   3   # high\n    # of one\n", "")],
    ),
    "the last item goes": (
        lambda tree: tree["claude-api-key"].pop(),
        [("  - {api-key: three}\n", "")],
    ),
    "an item comes last": (
        lambda tree: tree["claude-api-key"].append({"api-key": "four", "models": [{"name": "m"}]}),
        [("- {api-key: three}\n", "- {api-key: three}\n  - api-key: four\n    models:\n      - name: m\n")],
    ),
    "an item comes first": (
        lambda tree: tree["claude-api-key"].insert(0, {"api-key": "zero"}),
        [("  - api-key: one", "  - api-key: zero\n  - api-key: one")],
    ),
    "entries of a list that is sent as a whole": (
        set_entries,
        [
            ("    - api-key: e2\n", "    - api-key: e2\n      weight: 2\n"),
            ("# third\n", "# third\n    - api-key: e4\n"),
        ],
    ),
    "items change places with what stands above them": (
        lambda tree: tree["openai-compatibility"][0]["api-key-entries"].sort(key=lambda it: it["api-key"] == "e2"),
        [
            ("    # About the second.\n    - api-key: e2\n", ""),
            ("# third\n", "# third\n    # About the second.\n    - api-key: e2\n"),
        ],
    ),
    "a list that becomes empty": (
        lambda tree: tree.__setitem__("claude-api-key", []),
        [(TEXT[TEXT.index("claude-api-key") : TEXT.index("# Between.")], "claude-api-key: [] # ours\n")],
    ),
    "a key that goes and one that comes": (
        lambda tree: (tree.pop("api-keys"), tree.__setitem__("debug", True)),
        [("api-keys: [a, b]\n", ""), ("# The end.\n", "# The end.\ndebug: true\n")],
    ),
    "nothing": (lambda tree: tree["claude-api-key"][0].__setitem__("api-key", "one"), []),
}


@pytest.mark.usefixtures("no_fallback")
@pytest.mark.parametrize(("edit", "replaced"), EDITS.values(), ids=EDITS)
def test_only_the_lines_of_what_changed_change(edit: Callable[[Any], object], replaced: list[tuple[str, str]]) -> None:
    expected = TEXT
    for before, after in replaced:
        assert expected.count(before) == 1
        expected = expected.replace(before, after)
    assert changed(TEXT, edit) == expected


@pytest.mark.usefixtures("no_fallback")
def test_a_file_keeps_the_missing_end_of_its_last_line():
    assert changed("port: 1\nhost: x", lambda tree: tree.__setitem__("port", 2)) == "port: 2\nhost: x"
    assert changed("port: 1\nhost: x", lambda tree: tree.__setitem__("debug", 2)) == "port: 1\nhost: x\ndebug: 2\n"


def test_only_the_item_that_changes_is_read_with_its_comments(monkeypatch: pytest.MonkeyPatch):
    asked: list[str] = []

    def noting(text: str, file: str) -> Any:
        asked.append(text)
        return parse_yaml(text, file)

    for module in (editable, lines, splice):
        monkeypatch.setattr(module, "parse_yaml", noting)
    text = "claude-api-key:\n" + "".join(f"  - api-key: k{number} # {number}\n" for number in range(500))
    found = changed(text, lambda tree: tree["claude-api-key"][77].__setitem__("prefix", "p"))
    assert found == text.replace("# 77\n", "# 77\n    prefix: p\n")
    changed(found, lambda tree: tree["claude-api-key"][77].__setitem__("prefix", "q # r"))
    assert asked == ["prefix: p\n"]


@pytest.mark.parametrize(
    "text",
    [
        "a:\n  headers:\n    x: 1\nlist: # mine\n  - k: 1\n    l: 2\n",
        "list: # mine\n  -\n    k: 1\n    l: 2\n",
        "list:\n  - # why\n    k: 1\n    l: 2\n",
        "list:\n-   k: 1\n    l: 2\n",
        "list:\n  - k: # why\n\n     1\n    l: 2\n",
        "list:\n  - k: 1\n    l: 2\n    m: |\n      text\n      # no comment\n",
    ],
)
def test_a_list_is_edited_in_every_style(text: str):
    expected = to_plain(read_tree(text, ""))
    expected["list"][0]["l"] = 3
    expected["list"].append({"k": 2, "n": [{"o": 1}]})

    def edit(tree: Any) -> None:
        tree["list"][0]["l"] = 3
        tree["list"].append({"k": 2, "n": [{"o": 1}]})

    assert same(to_plain(read_tree(changed(text, edit), "")), expected)


@pytest.mark.parametrize("written", ["1", "x", "true", "'x'", "a b", "x#y", "[1]", "~", "0x10 # c", "|\n  text"])
@pytest.mark.parametrize(
    "value", ["on", "null", "a: b", "x:", "12", "1e3", "-", "é", "https://x.test/v1", 7, True, None, 1.5]
)
def test_a_value_is_read_as_the_one_that_was_set(written: str, value: Any):
    text = f"a: {written}\nlist:\n  - k: {written if '|' not in written else 1}\n"

    def edit(tree: Any) -> None:
        tree["a"] = value
        tree["list"][0]["k"] = value
        tree["list"] += [value, {"k": value}]

    found = read_tree(changed(text, edit), "")
    assert same(found, {"a": value, "list": [{"k": value}, value, {"k": value}]})


@pytest.mark.usefixtures("no_fallback")
def test_a_list_of_which_nothing_stays_keeps_the_comments_around_it():
    found = changed(TEXT, lambda tree: tree.__setitem__("claude-api-key", [{"name": "x"}]))
    assert found == TEXT.replace(
        TEXT[TEXT.index("  - api-key: one") : TEXT.index("# Between.")],
        "  - name: x\n\n  # About two.\n",
    )


@pytest.mark.parametrize("value", [{}, []])
def test_what_becomes_empty_below_a_comment_can_be_read(value: Any):
    text = "a: # why\n  b:\n    - 1\nc:\n  - d: # why\n      e: 1\n"
    found = changed(text, lambda tree: (tree.__setitem__("a", value), tree["c"][0].__setitem__("d", value)))
    assert found == f"a: {value} # why\nc:\n  - d: {value} # why\n"


@pytest.mark.parametrize("seeds", range(0, 800, 100))
def test_whatever_is_edited_means_what_it_should_and_other_keys_keep_their_lines(seeds: int):
    for seed in range(seeds, seeds + 100):
        writer = Writer(random.Random(seed))
        text = writer.document()
        try:
            tree = open_tree(text, "")
        except ConfigError:
            continue
        expected = plain(tree)
        path, change = writer.edit(expected)
        put(expected, path, change)
        put(tree, path, copy.deepcopy(change))
        found = spliced(text, tree)
        assert says(found, expected), (seed, text, found)
        touched = path[0] if path else change[1]
        old, new = read_tree(text, ""), read_tree(found, "")
        for key in old.keys() - {touched}:
            assert block(text, old.lines, key) == block(found, new.lines, key), (seed, text, found)


def block(text: str, starts: dict[Any, int], key: Any) -> list[str]:
    """The lines of a key without the comments and blank lines behind it."""
    after = [line for line in starts.values() if line > starts[key]]
    found = text.splitlines()[starts[key] : min(after, default=None)]
    while found and (not found[-1].strip() or found[-1].lstrip().startswith("#")):
        found.pop()
    return found
