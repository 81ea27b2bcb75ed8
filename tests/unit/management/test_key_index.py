"""The index that a list of keys shows is the one of the credential that the configuration makes of the entry."""

from pathlib import Path
from typing import Any

import pytest

from host.config.load import parse_config
from host.config.model import Config
from host.credentials.configured import ConfiguredKeys
from host.credentials.records import HandleMint
from host.management.applier import ConfigApplier
from host.management.config_file import ConfigFile, FileView
from host.management.key_index import KeyIndex, KeyIndexes
from host.tasks import TaskGroup

CLAUDE = """\
claude-api-key:
  - api-key: one
    base-url: https://a.test
  -
  - base-url: https://keyless.test
    headers: {X-Team: a}
  - api-key: one
    base-url: https://a.test
    proxy-url: http://127.0.0.1:1
  - api-key: " one "
    base-url: https://a.test/
    prefix:
    cloak: {mode: auto}
  - priority: 3
  - api-key: two
    excluded-models: ["*"]
  - base-url: https://keyless.test
    headers: {x-team: a}
    weight: -1
"""
VERTEX = """\
vertex-api-key:
  - base-url: https://v.test
  - api-key: v
    base-url: https://v.test
  - api-key: v
    base-url: https://v.test
    headers: {a: b}
  - api-key: v
    base-url: https://v.test
"""
COMPAT = """\
openai-compatibility:
  - name: lost
    api-key-entries: [{api-key: l}]
  - name: acme
    base-url: https://one.test/v1
    api-key-entries:
      - api-key: a
      - api-key: a
      - {weight: 0}
  - name: off
    base-url: https://off.test/v1
    disabled: true
    api-key-entries: [{api-key: o}]
  - name: Acme
    base-url: https://one.test/v1
    api-key-entries: [{api-key: a}]
  - name: keyless
    base-url: https://two.test/v1
"""
USED: dict[str, list[tuple[int, ...]]] = {
    "claude-api-key": [(0,), (), (1,), (2,), (0,), (), (3,), (1,)],
    "vertex-api-key": [(), (4,), (5,), (4,)],
    "openai-compatibility": [(), (6, 7, 8), (), (9,), (10,)],
}
"""Which credentials of the configuration each entry is, in the order of the sections below."""


def view_of(text: str) -> FileView:
    loaded = parse_config(text, file="config.yaml")
    assert loaded.source is not None
    return FileView(loaded.source.tree, loaded.config, loaded.dropped)


def shown(index: KeyIndex, view: FileView) -> dict[str, list[tuple[str, ...]]]:
    found = {section: index.of(section, view.tree[section], view) for section in USED if section in view.tree}
    return {section: [_indexes(item) for item in items] for section, items in found.items()}


def _indexes(found: KeyIndexes) -> tuple[str, ...]:
    return found.entries or ((found.own,) if found.own else ())


def expected(config: Config) -> dict[str, list[tuple[str, ...]]]:
    records = ConfiguredKeys(HandleMint()).read(config).values()
    order = {"claude": 0, "vertex": 1}
    indexes = [it.auth_index for it in sorted(records, key=lambda record: order.get(record.provider, 2))]
    return {section: [tuple(indexes[it] for it in item) for item in items] for section, items in USED.items()}


def test_every_entry_has_the_index_of_the_credential_it_makes_or_repeats() -> None:
    view = view_of(CLAUDE + VERTEX + COMPAT)
    found = shown(KeyIndex(), view)
    assert found == expected(view.config)
    # Three entries share key and address, and so do the three of one compatible provider's.
    assert len({it for items in found.values() for item in items for it in item}) == 8


def test_indexes_of_the_next_configuration_are_as_if_nothing_had_been_known() -> None:
    index = KeyIndex()
    text = CLAUDE + VERTEX + COMPAT
    for edit in (
        ("  - api-key: two\n", "  - api-key: two\n    base-url: https://two.test\n"),
        ("  - api-key: one\n    base-url: https://a.test\n  -\n", ""),
        ("      - api-key: a\n      - api-key: a\n", "      - api-key: a\n"),
        ("    disabled: true\n", ""),
        ("  - name: Acme\n", "  - name: other\n"),
        ("  - base-url: https://v.test\n  - api-key: v\n", "  - api-key: v\n"),
        ("base-url: https://one.test/v1", "base-url: https://three.test/v1"),
    ):
        shown(index, view_of(text))
        assert edit[0] in text
        text = text.replace(*edit)
        view = view_of(text)
        assert shown(index, view) == shown(KeyIndex(), view)


async def test_an_invalid_file_shows_the_indexes_of_what_is_in_force(tmp_path: Path) -> None:
    valid = parse_config(CLAUDE + VERTEX + COMPAT, file="config.yaml").config
    file = tmp_path / "config.yaml"
    file.write_text(CLAUDE + VERTEX + COMPAT + "port: none\n")

    async def applied(loaded: object) -> None:
        return None

    config_file = ConfigFile(file, ConfigApplier(applied, TaskGroup("test")), lambda: valid)
    view = await config_file.view()
    assert (view.dropped, view.config) == (None, valid)
    assert shown(KeyIndex(), view) == expected(valid)


@pytest.mark.parametrize("section", list(USED))
def test_an_invalid_list_has_no_indexes(section: str) -> None:
    items: list[Any] = [None, 3, "text", [], {"api-key": {}}, {"base-url": 3, "headers": 3}, {}]
    found = KeyIndex().of(section, items, FileView({section: items}, Config(), None))
    assert found == [KeyIndexes()] * len(items)
