"""Whose option is whose, from manifests alone; and command lines with such options."""

from pathlib import Path
from typing import Any

import pytest

from host.config.model import Config, Plugins, PluginSection
from host.flags.parse import BadOption, CommandLine, UnknownOption, config_in, parse
from host.flags.table import FlagTable, flag_table
from host.runtime.discover import Discovery, PluginSource
from host.runtime.manifest import Flag, Manifest


def table_of(*, native: tuple[str, ...] = ("config",), **plugins: tuple[int, list[Flag]]) -> FlagTable:
    sources = [
        PluginSource(
            manifest=Manifest(id=plugin_id, version="1", command=("./x",), flags=flags),
            directory=Path(plugin_id),
            origin="directory",
        )
        for plugin_id, (_, flags) in plugins.items()
    ]
    sections = {
        plugin_id: PluginSection(enabled=True, priority=priority) for plugin_id, (priority, _) in plugins.items()
    }
    config = Config(plugins=Plugins(enabled=True, configs=sections))
    return flag_table(Discovery(found=tuple(sources)), config, native=native, needed=lambda config: frozenset())


def owners(table: FlagTable) -> dict[str, str]:
    return {flag.name: flag.plugin_id for flag in table.flags.values()}


def test_M108_a_native_option_wins_a_higher_priority_owns_and_a_weird_type_is_left_out():
    table = table_of(
        low=(1, [Flag(name="shared"), Flag(name="own")]),
        high=(2, [Flag(name="shared"), Flag(name="config"), Flag(name="odd", type="weird")]),
    )
    assert owners(table) == {"shared": "high", "own": "low"}
    left_out = {warning.split("--")[1].split(" ")[0]: warning for warning in table.warnings}
    assert sorted(left_out) == ["config", "odd", "shared"]
    assert "Jackfield itself" in left_out["config"]
    assert "'weird' is no type" in left_out["odd"]
    assert "the plugin high" in left_out["shared"] and "plugin low" in left_out["shared"]


def test_at_equal_priority_the_smaller_id_owns_an_option_and_comes_first():
    table = table_of(b=(0, [Flag(name="x"), Flag(name="only-b")]), a=(0, [Flag(name="x"), Flag(name="z")]))
    assert next(iter(table.flags)) == "x"
    assert owners(table) == {"x": "a", "z": "a", "only-b": "b"}


def test_a_plugin_that_names_an_option_twice_keeps_the_first():
    table = table_of(a=(0, [Flag(name="x", type="int"), Flag(name="x")]))
    assert (table.flags["x"].type, len(table.warnings)) == ("int", 1)


@pytest.mark.parametrize("name", ["", "-x", "--x", "a b", "a=b", "a\tb", "a\x1bb", "help", "h"])
def test_a_name_nobody_could_type_is_left_out(name):
    table = table_of(a=(0, [Flag(name=name)]), native=("help", "h"))
    assert (table.flags, len(table.warnings)) == ({}, 1)


@pytest.mark.parametrize(
    ("kind", "default", "text"),
    [
        ("bool", None, "false"),
        ("bool", True, "true"),
        ("string", " x ", " x "),
        ("int", 7, "7"),
        ("float", 1.0, "1"),
        ("duration", "60s", "1m0s"),
        ("duration", " ", "0s"),
    ],
)
def test_defaults_are_values_of_the_type(kind: str, default: Any, text: str):
    assert table_of(a=(0, [Flag(name="x", type=kind, default=default)])).flags["x"].default == text


def test_an_option_whose_default_is_no_value_is_left_out():
    table = table_of(a=(0, [Flag(name="x", type="int", default="many")]))
    assert table.flags == {}
    assert "its default cannot be used" in table.warnings[0]


def test_plugins_that_are_not_enabled_bring_nothing():
    source = PluginSource(
        manifest=Manifest(id="a", version="1", command=("./x",), flags=[Flag(name="x")]),
        directory=Path("a"),
        origin="directory",
    )
    for config in (Config(), Config(plugins=Plugins(configs={"a": PluginSection(enabled=True)}))):
        found = flag_table(Discovery(found=(source,)), config, native=(), needed=lambda config: frozenset())
        assert found.flags == {}


TABLE = table_of(
    a=(0, [Flag(name="go"), Flag(name="name", type="string"), Flag(name="wait", type="duration", default="1s")])
)


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--go"], CommandLine(given={"go": "true"})),
        (["--go=F"], CommandLine(given={"go": "false"})),
        (["--go", "false"], CommandLine(given={"go": "true"}, rest=("false",))),
        (["--name", "--go"], CommandLine(given={"name": "--go"})),
        (["--name="], CommandLine(given={"name": ""})),
        (["--name=a=b"], CommandLine(given={"name": "a=b"})),
        (["--wait=60s", "--wait", "90s"], CommandLine(given={"wait": "1m30s"})),
        (["--go", "x", "--config", "c.yaml", "y"], CommandLine(given={"go": "true"}, rest=("x", "y"))),
        (["--go", "--", "--name", "-x"], CommandLine(given={"go": "true"}, rest=("--name", "-x"))),
        (["--go", "-"], CommandLine(given={"go": "true"}, rest=("-",))),
        (["--go", "-h"], CommandLine(given={"go": "true"}, wants_help=True)),
    ],
)
def test_a_command_line_is_split_into_options_with_values_and_the_rest(arguments, line):
    assert parse(arguments, TABLE) == line


@pytest.mark.parametrize("word", ["--gone", "-go", "-x", "--gone=1"])
def test_an_option_of_nobody_is_named(word):
    with pytest.raises(UnknownOption) as caught:
        parse(["--go", word], TABLE)
    assert caught.value.name == word.partition("=")[0]


@pytest.mark.parametrize("arguments", [["--name"], ["--wait", "5"], ["--go=maybe"], ["--config"]])
def test_a_missing_or_wrong_value_is_refused_with_the_name(arguments):
    with pytest.raises(BadOption, match=arguments[0].split("=")[0]):
        parse(arguments, TABLE)


def test_the_configuration_is_found_before_anything_else_is_understood():
    assert config_in(["--x", "--config", "a", "--y"]) == "a"
    assert config_in(["--config=a", "--config=b"]) == "b"
    assert config_in(["--x", "--", "--config", "a"]) is None
    assert config_in(["--config"]) == ""
