"""The record of plugins that were enabled on this machine."""

from pathlib import Path

from host.config.model import Config, Plugins, PluginSection
from host.management.enabled import EnabledRecord, any_of, enabled_plugins, locally_enabled


def test_what_was_enabled_once_stays_known_across_restarts_until_it_is_removed(tmp_path: Path) -> None:
    config = Config(directory=str(tmp_path))
    EnabledRecord.of(config).note(["a", "b"])
    record = EnabledRecord.of(config)
    assert ("a" in record, "c" in record) == (True, False)
    record.forget("a")
    assert EnabledRecord.of(config).read() == {"b"}


def test_a_record_that_cannot_be_read_allows_nothing(tmp_path: Path) -> None:
    config = Config(directory=str(tmp_path))
    EnabledRecord.of(config).note(["a"])
    (tmp_path / "plugin-data" / ".enabled.json").write_text("{")
    assert locally_enabled(EnabledRecord.of(config))("a") is not None


def test_a_disk_that_refuses_is_no_reason_to_fail(tmp_path: Path) -> None:
    (tmp_path / "plugin-data").write_text("a file")
    record = EnabledRecord.of(Config(directory=str(tmp_path)))
    record.note(["a"])
    assert record.read() == frozenset()


def test_one_rule_that_allows_is_enough_and_otherwise_the_first_says_why(tmp_path: Path) -> None:
    record = EnabledRecord(tmp_path / "r.json")
    rule = any_of(locally_enabled(record), lambda plugin_id: None if plugin_id == "locked" else "not in the lock file")
    assert rule("locked") is None
    assert "jackfield plugins enable other" in (rule("other") or "")


def test_a_configuration_enables_what_it_says() -> None:
    sections = {"a": PluginSection(enabled=True), "b": PluginSection()}
    assert enabled_plugins(Config(plugins=Plugins(configs=sections))) == {"a"}
