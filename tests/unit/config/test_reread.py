"""Reading an edited configuration with the help of the one before says what reading all of it says."""

import dataclasses
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from host.config import reread as module
from host.config.load import ConfigError, LoadedConfig, parse_config
from host.config.reread import Source, read_source, reread
from host.config.tree import MapNode, SeqNode, read_tree

CONFIG = """\
# The pool.
port: 8317 # local
api-keys:
- one
- {key: two, name: Two}
claude-api-key:
  # the first
  - api-key: sk-1
    base-url: https://a.test
    models:
      - name: m-1
        alias: a

  - api-key: 'sk-2'
    headers: {x-a: b,
      x-c: d}
    excluded-models:
    - "*-old"
  -
    api-key: sk-3
openai-compatibility:
  - name: big
    base-url: https://big.test/v1
    api-key-entries:
      - api-key: key-1
      - api-key: key-2
        weight: 2
    models:
      - {name: model-1, alias: m}
      - name: model-2

# Plugins.
plugins:
  enabled: true
  configs:
    limits:
      enabled: false # for now
      text: |
        - api-key: none
          # no comment
    other:
      list:
        - - a
          - b
        - c
"""
TREES = {
    "configuration": CONFIG,
    "strings of several lines": "a:\n  - |+\n    x\n\n  - >-\n    y\n  - 'q\n    r'\n  - p\n    q\nb: |\n  x\n#\nc: 1",
    "lists at the column of their key": "a:\n- b: 1\n  c:\n  - 1\n  -\n  - - 2\n    - 3\n-\n  d: 4\ne:\n- 5\n",
    "odd keys": "? a\n: 1\n'b': 2\n\"c\":\n  -d: 3\n  e: -1\nf: {g: [1,\n  2]}\n",
    "no last line end": "a:\n  b: 1\n  c: [1]",
}
LINES = [
    *("# c\n", "\n", "  # c\n", "---\n", "...\n", "- x\n", "  - x\n", "    - x\n", "      - x\n", "k: v\n", "  k: v\n"),
    *("    k: v\n", "? z\n", ": y\n", "  x\n", "        deep\n", "'\n", "]\n", "&a x\n", "- &a x\n", "*a\n", "%F x\n"),
    *(
        "port: 1\n",
        "    weight: 3\n",
        "    weight: x\n",
        "  - api-key: sk-9\n",
        "    pirority: 1\n",
        "    - api-key: k\n",
    ),
    *(
        "--- a\n",
        "  |\n",
        "\tx\n",
        "  -\n",
        "-\n",
        "    api-key: sk-1\n",
        "  - {api-key: sk-8}\n",
        "    websockets: 7\n",
    ),
]
CHARACTERS = [
    "",
    ":",
    " ",
    "-",
    "'",
    '"',
    "[",
    "]",
    "{",
    "}",
    "#",
    "|",
    ">",
    "x",
    "\n",
    "?",
    ",",
    "&",
    "*",
    "!",
    "%",
    ": ",
]
EDITS = st.lists(
    st.tuples(
        st.sampled_from(["delete", "copy", "insert", "indent", "dedent", "character", "character"]),
        st.integers(0, 60),
        st.integers(0, 60),
        st.sampled_from(LINES),
        st.sampled_from(CHARACTERS),
    ),
    min_size=1,
    max_size=3,
)


def edited(text: str, edits: list[tuple[str, int, int, str, str]]) -> str:
    lines = text.splitlines(keepends=True)
    for kind, at, other, line, character in edits:
        at %= len(lines) + 1
        if kind == "insert":
            lines[at:at] = [line]
        elif kind == "copy":
            lines[at:at] = lines[other : other + 1 + other % 3]
        elif at == len(lines):
            continue
        elif kind == "delete":
            del lines[at : at + 1 + other % 3]
        elif kind == "indent":
            lines[at] = " " + lines[at]
        elif kind == "dedent":
            lines[at] = lines[at][1:]
        else:
            place = other % len(lines[at])
            lines[at] = lines[at][:place] + character + lines[at][place + other % 2 :]
    return "".join(lines)


def shape(node: Any) -> Any:
    if isinstance(node, MapNode):
        pairs = [(repr(key), node.lines[key], shape(value)) for key, value in node.items()]
        return node.is_flow, node.column, pairs
    if isinstance(node, SeqNode):
        return node.is_flow, node.column, list(zip(node.lines, map(shape, node), strict=True))
    return repr(node)


def whole(text: str) -> Any:
    try:
        return shape(read_tree(text, "c.yaml"))
    except ConfigError as error:
        return str(error)


def outcome(text: str, before: LoadedConfig | None = None) -> Any:
    try:
        return dataclasses.replace(parse_config(text, file="c.yaml", before=before), source=None)
    except ConfigError as error:
        return str(error)


@pytest.fixture(autouse=True)
def parts_of_any_size(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "_SMALL", 1_000)


@pytest.mark.filterwarnings("ignore::ruamel.yaml.error.ReusedAnchorWarning")
@settings(max_examples=400, deadline=None, derandomize=True)
@given(st.sampled_from(list(TREES.values())), EDITS)
@example("a:\n  -\n    # c\n    -\n\n      b: 1\n    - c\n", [("insert", 4, 0, "# c\n", "")])
@example("a:\n  - 1\n", [("insert", 1, 0, "---\n", "")])
@example("a:\n  - |\n    x\n  - y\n", [("insert", 3, 0, "    # c\n", "")])
def test_the_tree_of_an_edited_text_is_that_of_the_whole_text(text: str, edits: list[Any]):
    before = read_source(text, "c.yaml")
    assert before.is_plain
    changed = edited(text, edits)
    found = reread(text, before.tree, changed)
    assert found is None or shape(found) == whole(changed)
    assert shape(before.tree) == whole(text)


@pytest.mark.filterwarnings("ignore::ruamel.yaml.error.ReusedAnchorWarning")
@settings(max_examples=150, deadline=None, derandomize=True)
@given(st.lists(EDITS, min_size=1, max_size=3))
def test_a_configuration_read_after_another_one_is_what_it_is_alone(versions: list[list[Any]]):
    text = CONFIG
    before = parse_config(text, file="c.yaml")
    for edits in versions:
        text = edited(text, edits)
        found = outcome(text, before)
        assert found == outcome(text)
        if isinstance(found, LoadedConfig):
            before = parse_config(text, file="c.yaml", before=before)


@pytest.mark.parametrize(
    ("was", "now"),
    [
        ("api-key: key-2", "api-key: key-3"),
        ("  - api-key: sk-1\n", "  - api-key: sk-0\n  - api-key: sk-1\n"),
        ("      - api-key: key-1\n", ""),
        ("    headers: {x-a: b,\n", "    headers: {x-a: e,\n"),
        ("port: 8317", "port: 8318"),
        ("# for now", "# for ever"),
        ("      - name: model-2\n", "      - name: model-2\n      - name: model-3\n"),
        ("api-key: key-2", 'api-key: "key-3"\n        proxy-url: direct'),
    ],
)
def test_only_the_part_that_was_edited_is_read(was: str, now: str, monkeypatch: pytest.MonkeyPatch):
    before = parse_config(CONFIG, file="c.yaml")
    read, text = [], CONFIG.replace(was, now, 1)
    fast_node = module.fast_node
    monkeypatch.setattr(module, "fast_node", lambda part: read.append(part) or fast_node(part))
    found = outcome(text, before)
    assert sum(map(len, read)) < len(CONFIG) / 3
    assert found == outcome(text)
    assert read[-1] == text


def test_several_edits_are_read_one_by_one():
    before = parse_config(CONFIG, file="c.yaml")
    text = CONFIG.replace("sk-1", "sk-4").replace("alias: a", "alias: b").replace("# for now", "").replace("sk-3", "s")
    after = parse_config(text, file="c.yaml", before=before)
    assert after.source is not None and before.source is not None
    assert reread(CONFIG, before.source.tree, text) is not None
    assert outcome(text, before) == outcome(text)
    entries = before.config.openai_compatibility[0].api_key_entries
    assert after.config.openai_compatibility[0].api_key_entries[1] is entries[1]


def test_entries_that_did_not_change_stay_the_same_objects_wherever_they_move():
    before = parse_config(CONFIG, file="c.yaml")
    text = CONFIG.replace("  - api-key: sk-1\n", "  - api-key: sk-0\n  # the same\n  - api-key: sk-1\n")
    after = parse_config(text, file="c.yaml", before=before)
    assert [key.api_key for key in after.config.claude_api_key] == ["sk-0", "sk-1", "sk-2", "sk-3"]
    assert after.config.claude_api_key[3] is before.config.claude_api_key[2]
    one, other = before.config.openai_compatibility[0], after.config.openai_compatibility[0]
    assert all(was is now for was, now in zip(one.api_key_entries, other.api_key_entries, strict=True))


def test_mistakes_and_warnings_name_the_lines_of_the_new_text():
    text = CONFIG.replace("    weight: 2", "    weight: 2\n        weigth: 3")
    before = parse_config(CONFIG, file="c.yaml")
    with pytest.raises(ConfigError, match=r"c\.yaml:28: unknown key `openai-compatibility.api-key-entries.weigth`"):
        parse_config(text, file="c.yaml", before=before)
    moved = CONFIG.replace("# The pool.\n", "# The pool.\n#\n").replace("base-url: https://a.test", "base-url: [1]")
    with pytest.raises(ConfigError, match=r"c\.yaml:10: "):
        parse_config(moved, file="c.yaml", before=before)
    warned = CONFIG.replace("    base-url: https://big.test/v1\n", "")
    first = parse_config(warned, file="c.yaml", before=before)
    second = parse_config(f"#\n#\n{warned}", file="c.yaml", before=first)
    assert [problem.line for problem in second.warnings] == [problem.line + 2 for problem in first.warnings] != []


def test_a_comment_in_a_section_of_a_plugin_is_seen():
    before = parse_config(CONFIG, file="c.yaml")
    after = parse_config(CONFIG.replace("# for now", "# for good"), file="c.yaml", before=before)
    assert "# for good" in after.config.plugins.configs["limits"].config_yaml
    assert after.config.claude_api_key[0] is before.config.claude_api_key[0]


@pytest.mark.parametrize("text", ["a: &x 1\nb: *x\n", "a: !!str 1\n", "<<: {a: 1}\n", ""], ids=repr)
def test_a_text_whose_parts_refer_to_others_is_read_as_a_whole(text: str):
    before = read_source(text, "c.yaml")
    assert not before.is_plain
    changed = f"{text}c: 2\n"
    after = read_source(changed, "c.yaml", before)
    assert shape(after.tree) == whole(changed)


def test_a_reading_that_was_refused_leaves_the_one_before_as_it_was():
    texts = [CONFIG, CONFIG.replace("sk-1", "sk-4"), CONFIG.replace("sk-1", "sk-5\n  broken")]
    first, second = (parse_config(text, file="c.yaml") for text in texts[:2])
    for one, other in pairwise(texts):
        source = read_source(one, "c.yaml")
        with pytest.raises(ConfigError) if other == texts[2] else pytest.MonkeyPatch.context():
            parse_config(other, file="c.yaml", before=LoadedConfig(first.config, (), one, source))
        assert source == Source(one, source.tree, True) and shape(source.tree) == whole(one)
    assert outcome(texts[1], first) == dataclasses.replace(second, source=None)
