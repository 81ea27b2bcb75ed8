"""Removing a value from the operator's file leaves everything else as it was written."""

from pathlib import Path

import pytest

from host.config.edit import remove_value
from host.config.load import ConfigError, load_config

TEXT = """\
port: 8317   # ours
plugins:
  enabled: true
  configs:
    one:
      enabled: true
      # inside of one
      words:
      - a

    # about two
    two: {enabled: false}
  # after all of them
  policy:
    one:
      permissions: [http]

# the end
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "config.yaml"
    path.write_text(TEXT)
    return path


def test_a_section_goes_with_its_own_comments_and_no_others(file):
    assert remove_value(file, ["plugins", "configs", "one"]) is True
    before, after = "    one:\n      enabled: true\n      # inside of one\n      words:\n      - a\n", ""
    assert file.read_text() == TEXT.replace(before, after)
    assert set(load_config(file).config.plugins.configs) == {"two"}


def test_the_last_section_may_go(file):
    assert remove_value(file, ["plugins", "policy", "one"]) is True
    assert "# the end" in file.read_text() and "permissions" not in file.read_text()
    assert load_config(file).config.plugins.policy == {}


@pytest.mark.parametrize(
    "keys", [["plugins", "configs", "three"], ["plugins", "nothing", "x"], ["port", "x"], ["plugins", "configs", "on"]]
)
def test_what_is_not_there_is_not_removed(file, keys):
    assert remove_value(file, keys) is False
    assert file.read_text() == TEXT


def test_members_written_on_one_line_go_as_well(file):
    file.write_text("plugins: {enabled: true, configs: {one: {enabled: true}, two: {enabled: true}}}\n")
    assert remove_value(file, ["plugins", "configs", "one"]) is True
    assert set(load_config(file).config.plugins.configs) == {"two"}


def test_a_list_that_is_not_indented_goes_whole(file):
    file.write_text("api-keys:\n- one\n- two\nport: 1\n")
    assert remove_value(file, ["api-keys"]) is True
    assert load_config(file).config.api_keys == ()


def test_a_file_that_was_broken_before_is_not_touched(file):
    file.write_text("prot: 1\nport: 2\n")
    with pytest.raises(ConfigError, match="did you mean `port`"):
        remove_value(file, ["port"])
    assert file.read_text() == "prot: 1\nport: 2\n"
