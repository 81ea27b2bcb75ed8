"""`plugin.toml`: every field, every refusal with its line."""

from pathlib import Path

import pytest

from host.runtime.manifest import ConfigField, Flag, ManifestError, is_plugin_id, load_manifest, parse_manifest

EVERYTHING = """\
id = "cheap-first"
version = "1.2.0"
name = "Cheap first"
runtime = "process"
protocol = "json"
command = ["./cheap-first"]
permissions = ["http"]
http_hosts = ["api.example.com"]
environment = ["EXAMPLE_REGION"]
[inputs]
"model.route" = ["body:/tools"]
[limits]
memory_mb = 256
[timeouts]
"model.route" = "300ms"
[on_error]
"request.intercept_before" = "fail"
[[config]]
name = "threshold"
type = "integer"
default = 100
[[config]]
name = "token"
secret = true
[[flags]]
name = "cheap-report"
"""


def refusal(text: str) -> ManifestError:
    with pytest.raises(ManifestError) as caught:
        parse_manifest(text)
    return caught.value


def test_every_field_of_the_contract_is_read():
    manifest = parse_manifest(EVERYTHING)
    assert (manifest.id, manifest.version, manifest.name) == ("cheap-first", "1.2.0", "Cheap first")
    assert (manifest.runtime, manifest.protocol, manifest.transport) == ("process", "json", "stdio")
    assert manifest.command == ["./cheap-first"]
    assert (manifest.permissions, manifest.http_hosts) == (["http"], ["api.example.com"])
    assert manifest.environment == ["EXAMPLE_REGION"]
    assert manifest.inputs == {"model.route": ["body:/tools"]}
    assert manifest.limits.memory_mb == 256
    assert manifest.timeouts == {"model.route": "300ms"}
    assert manifest.on_error == {"request.intercept_before": "fail"}
    assert manifest.config[0] == ConfigField(name="threshold", type="integer", default=100)
    assert manifest.flags == [Flag(name="cheap-report")]
    assert manifest.secret_fields == {"token"}
    assert manifest.methods == ("model.route", "request.intercept_before")


def test_id_version_and_something_to_start_are_enough():
    manifest = parse_manifest('id = "a"\nversion = "1"\nentry = "plugin:P"')
    assert manifest.runtime == "process"
    assert manifest.methods == ()


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ('id = "a"\nversion = "1"\ncomand = ["x"]', 3, ["comand", "did you mean 'command'"]),
        ('id = "a"\nversion = "1"\ncommand = ["x"]\n[limits]\n# a comment\nmemory = 1', 6, ["memory", "memory_mb"]),
        ('id = "a"\nversion = "1"\ncommand = ["x"]\n[[config]]\nname = "b"\n[[config]]\nnmae = "c"', 7, ["nmae"]),
        ('id = "a"\nversion = "1"\ncommand = ["x"]\n[[flags]]\nname = "b"\nkind = "c"', 6, ["kind"]),
        (
            'id = "a"\nversion = "1"\ncommand = ["x"]\n[timeouts]\n"model.rout" = "1s"',
            5,
            ["did you mean 'model.route'"],
        ),
        ('id = "a"\nversion = "1"\ncommand = ["x"]\non_error."model.route" = "ignore"', 4, ["on_error"]),
        ('id = "a"\nversion = "1"\ncommand = ["x"]\n[timeouts]\n"model.route" = "soon"', 5, ["soon"]),
        ('id = "a"\nversion = "1"\ncommand = ["x"]\n[timeouts]\n"model.route" = 0', 5, ["fail every call"]),
        ('id = "a"\nversion = "1"\ncommand = ["x"]\n[inputs]\n"model.route" = ["headers"]', 5, ["headers"]),
        ('id = "a"\nversion = "1"\ncommand = ["x"]\npermissions = [\n  "htpp",\n]', 4, ["did you mean 'http'"]),
        ('id = "a"\nversion = 1\ncommand = ["x"]', 2, ["version", "Expected `str`"]),
        ('id = "a b"\nversion = "1"\ncommand = ["x"]', 1, ["no plugin id"]),
        ('id = "a"\nversion = " "\ncommand = ["x"]', 2, ["blank"]),
        ('id = "a"\nversion = "1"\nentry = "plugin.P"', 3, ["module:Class"]),
        ('id = "a"\nversion = "1"\nruntime = "inprocess"\ncommand = ["x"]', 3, ["entry"]),
        ('id = "a"\nversion = "1"\ncommand = ["x"]\nenvironment = ["A-B"]', 4, ["A-B"]),
        ('id = "a"\nversion = "1"\ncommand = ["x"]\n[[config]]\nname = "m"\ntype = "enum"', 4, ["no values"]),
        ('id = "a"\nversion = "1"\ncommand = ["x"]\n[limits]\nmemory_mb = 0', 5, ["at least 1"]),
        ('id = "a"\nversion = "1"\ncommand = ["x"]\nprotocol = "grpc"\ntransport = "stdio"', 5, ["socket"]),
        ('id = "a"\nversion = "1"\ncommand = [" "]', 3, ["blank"]),
        ('id = "a"\nversion = "1', 2, ["TOML"]),
        ('id = "a"\nversion = "1"\nversion = "2"', 3, ["TOML"]),
    ],
)
def test_a_mistake_is_refused_with_its_line_and_what_would_be_right(text: str, line: int, words: list[str]):
    error = refusal(text)
    assert error.line == line, str(error)
    assert all(word in str(error) for word in words), str(error)
    assert str(error).startswith(f"plugin.toml:{line}: ")


def test_a_key_inside_a_text_of_several_lines_is_not_mistaken_for_the_key():
    text = 'id = "a"\nversion = "1"\ncommand = ["x"]\ndescription = """\nlogoo = 1\n"""\nlogoo = 2'
    assert refusal(text).line == 7


@pytest.mark.parametrize(("text", "missing"), [('version = "1"', "'id'"), ('id = "a"', "'version'"), ("", "'id'")])
def test_a_missing_required_key_is_named(text: str, missing: str):
    error = refusal(text)
    assert error.line is None
    assert missing in str(error)


def test_a_plugin_with_nothing_to_start_is_refused():
    assert "neither a command nor an entry" in str(refusal('id = "a"\nversion = "1"'))


def test_bytes_that_are_no_text_are_refused_with_the_path(tmp_path: Path):
    (tmp_path / "plugin.toml").write_bytes(b'id = "\xff"')
    with pytest.raises(ManifestError, match=r"plugin\.toml: is not UTF-8"):
        load_manifest(tmp_path)


@pytest.mark.parametrize(
    ("plugin_id", "valid"),
    [
        pytest.param("a" * 128, True, id="L13-128"),
        pytest.param("a" * 129, False, id="L13-129"),
        pytest.param("", False, id="L13-empty"),
        pytest.param("-a", False, id="L13-dash"),
        pytest.param(".a", False, id="L13-dot"),
        pytest.param("_a", False, id="underscore-first"),
        pytest.param("a._-Z9", True, id="all-kinds"),
        pytest.param("a\n", False, id="line-break"),
        pytest.param("ä", False, id="not-ascii"),
    ],
)
def test_an_id_has_1_to_128_of_the_allowed_characters(plugin_id: str, valid: bool):
    assert is_plugin_id(plugin_id) is valid
