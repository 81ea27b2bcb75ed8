"""Both ways to read a configuration agree: on values, on their types, on lines, and on what is not valid."""

import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from host.config import tree as config_tree
from host.config.load import ConfigError, load_config, parse_config
from host.config.tree import UNREADABLE, MapNode, SeqNode, parse_yaml, read_tree, slow_tree

ROOT = Path(__file__).resolve().parents[3]
TEXTS = {
    "empty": "",
    "comments only": "# nothing\n\n# here\n",
    "document markers": "---\nport: 1\n...\n",
    "words of YAML 1.1 are strings": "a: on\nb: yes\nc: no\nd: off\ne: y\nf: 1:30\n",
    "words of YAML 1.2": "a: true\nb: FALSE\nc: null\nd: ~\ne:\nf: Null\n",
    "numbers": "a: 017\nb: 0o17\nc: 0x1F\nd: 0b11\ne: 1_000\nf: -0\ng: +1\nh: 1e3\ni: .5\nj: 1.\nk: 00\n",
    "no numbers": "a: 1.2.3\nb: 127.0.0.1\nc: 10s\nd: 1h30m\ne: 3a7f\nf: 0x\ng: -\nh: sk-1\ni: 1e3x\n",
    "numbers without end": "a: .inf\nb: -.INF\nc: .nan\nd: inf\ne: 123456789012345678901234567890\n",
    "times": "a: 2020-01-01\nb: 2001-12-14t21:59:43.10-05:00\nc: 12:30:45\nd: 2020-13-45\n",
    "quoted": "a: '1'\n\"b\": \"x\\ty \\u00e9 \\/\"\n'c': 'it''s'\nd: ''\n",
    "strings of several lines": "a: one\n  two\n\n  three\nb: 'x\n  y'\nc: \"x\\\n  y\"\n",
    "blocks": "a: |\n  x\n   y\n\nb: >-\n  x\n  y\nc: |+\n  z\n\nd: |2\n    w\ne: 1\n",
    "lists": "a:\n- 1\n-\n- - x\n  - y\n- b: 1\n  c: 2\n-   d: 3\nz:\n  - 1\n",
    "flow": "a: [1, 'b', {c: d, e: [f]}, ]\nb: {x: , y}\nc: [a:b, http://x:1/y, {z: http://w}]\nd: {}\ne: [\n1,\n2]\n",
    "anchors": "a: &x true\nb: *x\nc: &list\n  - 1\nd: *list\ne: [*x , *x ]\n",
    "an odd anchor": "a: &x: 1\n",
    "a merge": "a: &x {b: 1}\nc:\n  <<: *x\n",
    "a tag": "a: !!str 1\nb: !t\nc: !t x\n",
    "a directive": "%YAML 1.1\n---\na: on\n",
    "two documents": "a: 1\n---\nb: 2\n",
    "a duplicate key": "a: 1\nb:\n  c: 1\n  c: 2\n",
    "keys that are equal": "1: a\ntrue: b\n1.0: c\n",
    "keys of other types": "1: a\ntrue: b\n~: c\n1.5: d\n2020-01-01: e\n",
    "a list": "- 1\n",
    "a word": "port\n",
    "tabs": "a:\t1\nb: x\ty\n",
    "line ends of Windows": "a: 1\r\nb:\r\n  - 2\r\n",
    "other line ends": "a: x\x85y\nb: x\u2028y\n",
    "a byte order mark": "\ufeffa: 1\n",
    "characters": "a: é\nb: 日本 # 語\n😀: 😀\n",
    "a comment without a blank": "a: |# x\n  y\n",
    "an alias that is not there": "a: *x\n",
    "an open quote": 'a: "x\nb: 1\n',
    "an open list": "a: [1\nb: 2\n",
    "a wrong indent": "a: 1\n b: 2\n",
    "a key without a blank": "a:1\n",
    "a key that is a list": "? [a]\n: 1\n",
    "a list below a question mark": "?\n  - a\n",
}
PIECES = [
    *("a", "b", "key", "- ", "-", ": ", ":", "\n", " ", "  ", "[", "]", "{", "}", ", ", ",", " # c", "'", '"', "\\"),
    *("|", "|-", ">", "2", "&x ", "*x", "!t ", "<<", "? ", "true", "yes", "null", "~", "1", "0o17", "017", "1e3", "."),
    *("2020-01-01", "=", "%", "@", "é", "http://x:1/y", "---", "...", "a: ", "  c: ", "- d: ", "\n  ", "\n- ", "\n\n"),
]


def shape(node: Any) -> Any:
    """Everything that a tree says, types and lines included."""
    if isinstance(node, MapNode):
        return [(repr(key), node.lines[key], shape(value)) for key, value in node.items()]
    if isinstance(node, SeqNode):
        return list(zip(node.lines, map(shape, node), strict=True))
    assert type(node) in (str, int, float, bool, type(None))
    return repr(node)


def read(text: str, *, quickly: bool) -> Any:
    try:
        return shape(read_tree(text, "c.yaml") if quickly else slow_tree(parse_yaml(text, "c.yaml")))
    except ConfigError as error:
        return str(error)


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_a_text_means_the_same_in_both_ways(text: str):
    assert read(text, quickly=True) == read(text, quickly=False)


def test_the_configurations_of_the_documentation_mean_the_same_and_are_read_quickly():
    texts = [
        *(file.read_text() for file in ROOT.rglob("*.y*ml") if ".git" not in file.parts),
        *(
            found
            for file in (ROOT / "README.md", *(ROOT / "docs").rglob("*.md"))
            for found in re.findall(r"```yaml\n(.*?)```", file.read_text(), re.DOTALL)
        ),
    ]
    assert len(texts) > 10
    for text in texts:
        assert shape(config_tree.fast_tree(text)) == read(text, quickly=False)


@pytest.mark.filterwarnings("ignore::ruamel.yaml.error.ReusedAnchorWarning")
@settings(max_examples=400, deadline=None, derandomize=True)
@given(st.lists(st.sampled_from(PIECES), max_size=14).map("".join), st.booleans())
@example("k: &1:30%`no`|-#yes", False)
@example("k: \n&f: [1, 2]\n", False)
@example("k: &http://x:1/y00- ", False)
def test_whatever_is_written_means_the_same_in_both_ways(text: str, in_a_key: bool):
    text = f"k: {text}" if in_a_key else text
    expected = read(text, quickly=False)
    # The library has no place for some comments, although they are allowed there.
    assert read(text, quickly=True) == expected or UNREADABLE in expected


def test_thousands_of_keys_are_never_read_by_the_library_that_takes_seconds_for_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    asked: list[str] = []

    def noting(text: str, file: str) -> Any:
        asked.append(text)
        return parse_yaml(text, file)

    for module in ("host.config.tree", "host.config.editable", "host.config.load"):
        monkeypatch.setattr(f"{module}.parse_yaml", noting)
    section = "plugins:\n  configs:\n    sample:\n      enabled: true # for now\n      # why\n      size: 3\n\n"
    keys = "claude-api-key:\n" + "".join(f"  - api-key: k-{number}\n" for number in range(50))
    file = tmp_path / "config.yaml"
    file.write_text(f"# all\n{section}# the keys\n{keys}")
    loaded = load_config(file)
    assert len(loaded.config.claude_api_key) == 50
    assert asked == [f"{section}# the keys\n"]
    assert loaded.config.plugins.configs["sample"].config_yaml == (
        "enabled: true       # for now\n      # why\nsize: 3\n\n# the keys\npriority: 0\n"
    )


@pytest.mark.parametrize(
    "text",
    [
        "debug: &on true\nplugins:\n  configs:\n    p:\n      a: *on\n",
        "{debug: true, plugins: {configs: {p: {a: true}}}}",
        "plugins: {configs: {p: {a: true}}}\nport: 1\n",
    ],
)
def test_a_section_is_handed_over_however_it_is_written(text: str):
    section = parse_config(text, file="c.yaml").config.plugins.configs["p"]
    assert section.config == {"a": True}
    assert "a: " in section.config_yaml


def test_a_comment_that_the_slow_library_has_no_place_for_is_no_mistake():
    text = "plugins:\n  configs:\n    p:\n      a: # why\n        x\n\n      b: 1\nport: 12\n"
    with pytest.raises(ConfigError, match=UNREADABLE):
        parse_yaml(text, "c.yaml")
    config = parse_config(text, file="c.yaml").config
    assert config.port == 12
    assert config.plugins.configs["p"].config == {"a": "x", "b": 1}
    assert config.plugins.configs["p"].config_yaml == "a: x\nb: 1\nenabled: false\npriority: 0\n"


@pytest.mark.parametrize("text", ["since: 2020-13-45\n", "? [a]\n: 1\n"])
def test_what_the_library_gives_up_on_is_a_mistake_in_the_file_and_no_crash(text: str):
    with pytest.raises(ConfigError, match=r"c\.yaml:1"):
        parse_config(text, file="c.yaml")


def test_without_libyaml_everything_is_read_by_the_other_library(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(config_tree, "_LOADER", None)
    assert parse_config("port: 12\n", file="c.yaml").config.port == 12
