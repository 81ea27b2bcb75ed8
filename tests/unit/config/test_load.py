"""Loading the operator's file: strict, with file, line and nearest key (design decision 13; spec plugin-abi 1.1)."""

import pytest
from ruamel.yaml import YAML

from host.config.edit import set_value
from host.config.known_keys import DROPPED, NOT_YET
from host.config.load import ConfigError, load_config, parse_config, section_of
from host.config.model import Config


def parse(text: str) -> Config:
    return parse_config(text, file="config.yaml").config


def problems(text: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        parse_config(text, file="config.yaml")
    return [str(problem) for problem in caught.value.problems]


def test_an_empty_file_is_a_config_with_safe_defaults():
    config = parse("")
    assert (config.host, config.port, config.auth_dir) == ("127.0.0.1", 8317, "auths")
    assert config.api_keys == ()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("prot: 1\n", "config.yaml:1: unknown key `prot`; did you mean `port`?"),
        ("port: abc\n", "config.yaml:1: `port`: expected `int`, got `str`"),
        ("port: 99999\n", "config.yaml:1: `port`: expected `int` <= 65535"),
        ("port: 1\ntls:\n  enabl: true\n", "config.yaml:3: unknown key `tls.enabl`; did you mean `enable`?"),
        (
            "plugins:\n  configs:\n    x:\n      enabled: yes please\n",
            "config.yaml:4: `plugins.configs.x.enabled` must be true or false",
        ),
        (
            "plugins:\n  configs:\n    x:\n      priority: high\n",
            "config.yaml:4: `plugins.configs.x.priority` must be a whole number",
        ),
        (
            "plugins:\n  policy:\n    x:\n      permisions: [http]\n",
            "config.yaml:4: unknown key `plugins.policy.x.permisions`; did you mean `permissions`?",
        ),
        (
            "openai-compatibility:\n - name: x\n   base-url: 3\n",
            "config.yaml:3: `openai-compatibility[0].base-url`: expected `str`, got `int`",
        ),
        (
            "timeouts:\n  connect: 5x\n",
            "config.yaml:2: `timeouts.connect`: '5x' is no duration; write 500ms, 10s, 5m or 1h",
        ),
        (
            "openai-compatibility:\n - name: x\n   base-url: 127.0.0.1:8080/v1\n",
            "config.yaml:3: `openai-compatibility.base-url`: the URL is not an http or https URL; write it like "
            "https://api.example.com/v1",
        ),
        (
            "claude-api-key:\n - api-key: x\n   base-url: https://api.test/v1?key=1\n",
            "config.yaml:3: `claude-api-key.base-url`: paths are appended to it, so it ends before `?` and `#`; write "
            "it like https://api.example.com/v1",
        ),
        (
            "port: 1\nproxy-url: ftp://x\n",
            "config.yaml:2: `proxy-url`: the proxy URL is not an http, https, socks4, socks4a, socks5 or socks5h URL "
            "with a host",
        ),
        ("- a\n", "config.yaml:1: the file must be a mapping of keys to values, like `port: 8317`"),
    ],
)
def test_a_mistake_is_named_with_file_line_and_what_to_write(text, expected):
    assert problems(text) == [expected]


def test_all_mistakes_are_reported_at_once_in_the_order_of_their_lines():
    assert [line.split(":")[1] for line in problems("prot: 1\nhots: x\ntls:\n  certt: y\n")] == ["1", "2", "4"]


def test_broken_yaml_names_the_line():
    [problem] = problems("port: 1\na: [\n")
    assert problem.startswith(("config.yaml:3:", "config.yaml:2:"))
    assert "not valid YAML" in problem


@pytest.mark.parametrize("key", [*NOT_YET, *DROPPED])
def test_a_known_key_without_effect_gives_one_warning_and_no_error(key):
    parts = key.split(".")
    text = "\n".join("  " * depth + part + ":" for depth, part in enumerate(parts)) + " x\n"
    lists = ("claude-api-key", "gemini-api-key", "codex-api-key", "vertex-api-key")
    item = {"openai-compatibility": "name: n", **dict.fromkeys(lists, "api-key: k")}
    values = {"weight": "2", "websockets": "true", "cloak": "{}", "api-keys": "[]", "request-retry": "3"}
    value = values.get(parts[-1], "true" if "-signing" in key or "-message" in key else "x")
    if parts[0] in item and len(parts) == 3:
        text = (
            f"{parts[0]}:\n  - {item[parts[0]]}\n    base-url: http://u\n    {parts[1]}:\n      - {parts[2]}: {value}\n"
        )
    elif parts[0] in item and len(parts) == 2:
        text = f"{parts[0]}:\n  - {item[parts[0]]}\n    base-url: http://u\n    {parts[1]}: {value}\n"
    else:
        text = text.replace(" x\n", " 3\n" if value == "3" else " x\n")
    if key in ("remote-management",):
        text = text.replace(" x", "")
    loaded = parse_config(text, file="config.yaml")
    assert [f"`{key}`" in warning.message for warning in loaded.warnings].count(True) == 1


def test_api_keys_are_strings_or_key_and_name():
    config = parse("api-keys:\n  - ' one '\n  - {key: two, name: bob}\n  - one\n  - ''\n")
    assert [(key.key, key.name) for key in config.api_keys] == [("one", ""), ("two", "bob")]


def test_L1_empty_plugins_section_means_disabled_default_dir_and_an_empty_map():
    plugins = parse("plugins: {}\n").plugins
    assert (plugins.enabled, plugins.dir, plugins.configs) == (False, "plugins", {})


def test_L2_store_sources_are_trimmed_and_blank_ones_dropped():
    text = 'plugins:\n  store-sources: [" https://community.example/registry.json ", ""]\n'
    assert parse(text).plugins.store_sources == ("https://community.example/registry.json",)


def test_L3_an_empty_section_is_disabled_with_priority_zero_and_saving_adds_neither(tmp_path):
    file = tmp_path / "config.yaml"
    file.write_text("port: 1\nplugins:\n  configs:\n    sample: {}\n")
    section = load_config(file).config.plugins.configs["sample"]
    assert (section.enabled, section.priority) == (False, 0)
    set_value(file, ["port"], 2)
    assert "enabled" not in file.read_text() and "priority" not in file.read_text()


def test_L4_saving_does_not_write_a_plugins_section_that_was_not_there(tmp_path):
    file = tmp_path / "config.yaml"
    file.write_text("port: 1\n")
    set_value(file, ["port"], 2)
    assert file.read_text() == "port: 2\n"


def test_L5_host_keys_are_appended_to_the_section_text_only_when_absent():
    section = parse("plugins:\n  configs:\n    a:\n      greeting: hi # why\n").plugins.configs["a"]
    lines = section.config_yaml.splitlines()
    assert lines[0].startswith("greeting: hi") and lines[0].endswith("# why")
    assert lines[1:] == ["enabled: false", "priority: 0"]
    assert section_of(parse(""), "nobody").config_yaml == "enabled: false\npriority: 0\n"


def test_L6_host_keys_in_the_section_are_passed_once():
    section = parse("plugins:\n  configs:\n    a:\n      enabled: true\n      priority: 7\n").plugins.configs["a"]
    assert section.config_yaml.count("enabled:") == 1 and section.config_yaml.count("priority:") == 1
    assert (section.enabled, section.priority, section.config) == (True, 7, {})


def test_an_entry_that_cannot_work_is_dropped_with_a_warning():
    text = "openai-compatibility:\n  - name: a\ngemini-api-key:\n  - api-key: k\n  - api-key: k\n  - api-key: ''\n"
    loaded = parse_config(text, file="config.yaml")
    assert loaded.config.openai_compatibility == ()
    assert len(loaded.config.gemini_api_key) == 1
    assert sorted(warning.line for warning in loaded.warnings) == [2, 5, 6]


def test_editing_keeps_comments_order_and_mode(tmp_path):
    file = tmp_path / "config.yaml"
    file.write_text("# mine\nport: 1  # the port\nplugins:\n  enabled: true # on\n  configs:\n    a: {x: 1}\n")
    file.chmod(0o640)
    set_value(file, ["plugins", "configs", "b", "enabled"], True)
    text = file.read_text()
    assert text.startswith("# mine\nport: 1  # the port\n") and "enabled: true # on" in text and "a: {x: 1}" in text
    assert load_config(file).config.plugins.configs["b"].enabled
    assert file.stat().st_mode & 0o777 == 0o640


def test_an_edit_that_would_break_the_file_leaves_it_untouched(tmp_path):
    file = tmp_path / "config.yaml"
    file.write_text("port: 1\n")
    with pytest.raises(ConfigError):
        set_value(file, ["port"], "nonsense")
    assert file.read_text() == "port: 1\n"
    assert list(tmp_path.iterdir()) == [file]


def test_a_missing_file_says_how_to_get_one(tmp_path):
    with pytest.raises(ConfigError, match="jackfield init"):
        load_config(tmp_path / "config.yaml")


@pytest.mark.parametrize("indent", ["", "  "])
def test_editing_keeps_the_indentation_of_lists(tmp_path, indent):
    file = tmp_path / "config.yaml"
    text = f"port: 1\napi-keys:\n{indent}- key: k\n{indent}  name: n\n{indent}- other\n"
    file.write_text(text)
    set_value(file, ["port"], 2)
    assert file.read_text() == text.replace("port: 1", "port: 2")


def test_quoted_keys_and_json_are_yaml_too():
    text = '{"port": 9000, "plugins": {"configs": {"a": {"enabled": true, "x": [1, {"y": "z"}]}}, "policy": {"a": {}}}}'
    config = parse(text)
    assert config.port == 9000
    assert config.plugins.configs["a"].config == {"x": [1, {"y": "z"}]}


def test_a_section_on_one_line_is_still_yaml_when_the_host_adds_its_keys():
    section = parse("plugins:\n  configs:\n    a-b: {enabled: true, x: 1}\n").plugins.configs["a-b"]
    assert YAML(typ="safe").load(section.config_yaml) == {"enabled": True, "x": 1, "priority": 0}


def test_a_key_without_effect_in_several_list_items_gives_one_warning():
    text = "gemini-api-key:\n  - api-key: a\n    websockets: true\n  - api-key: b\n    websockets: true\n"
    assert [warning.line for warning in parse_config(text, file="config.yaml").warnings] == [3]


def test_an_address_may_stand_in_brackets():
    assert parse('host: "[::1]"\n').host == "::1"
