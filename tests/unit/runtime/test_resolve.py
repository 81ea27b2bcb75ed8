"""References in a plugin's configuration, and what is masked."""

from pathlib import Path

import pytest

from host.config.model import Config
from host.runtime.resolve import UnresolvedValue, masked_config, resolve_config


def config(tmp_path: Path) -> Config:
    return Config(directory=str(tmp_path))


def test_references_are_resolved_at_any_depth(tmp_path: Path):
    (tmp_path / "token").write_text("from-file\n")
    values = {"a": {"env": "KEY"}, "b": [{"c": {"file": "token"}}], "d": {"env": "KEY", "x": 1}, "e": 3}
    found = resolve_config("p", values, config(tmp_path), environment={"KEY": "from-env"})
    assert found.values == {"a": "from-env", "b": [{"c": "from-file"}], "d": {"env": "KEY", "x": 1}, "e": 3}
    assert set(found.secrets) == {"from-env", "from-file"}


def test_secret_fields_count_as_secrets_when_written_in_the_file_itself(tmp_path: Path):
    values = {"token": "t1", "tokens": ["t2", {"x": "t3"}], "open": "o"}
    found = resolve_config("p", values, config(tmp_path), secret_fields=frozenset({"token", "tokens", "none"}))
    assert set(found.secrets) == {"t1", "t2", "t3"}


def test_secrets_do_not_show_when_printed(tmp_path: Path):
    found = resolve_config("p", {"a": {"env": "K"}}, config(tmp_path), environment={"K": "hidden-value"})
    assert found.secrets == ("hidden-value",)
    assert "secrets" not in repr(found)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ({"env": "NONE"}, "variable NONE is not set"),
        ({"file": "none"}, "cannot be read"),
        ({"file": "."}, "cannot be read"),
    ],
)
def test_a_reference_that_leads_nowhere_is_refused_with_its_key(tmp_path: Path, value: object, words: str):
    with pytest.raises(UnresolvedValue, match=r"^plugins\.configs\.p\.a\.b\[0\]: .*" + words):
        resolve_config("p", {"a": {"b": [value]}}, config(tmp_path), environment={})


def test_a_file_that_is_no_text_or_too_large_is_refused(tmp_path: Path):
    (tmp_path / "binary").write_bytes(b"\xff")
    (tmp_path / "large").write_bytes(b"x" * (1024 * 1024 + 1))
    for name, words in (("binary", "is not UTF-8"), ("large", "is larger than")):
        with pytest.raises(UnresolvedValue, match=words):
            resolve_config("p", {"a": {"file": name}}, config(tmp_path))


def test_the_display_masks_secret_fields_and_shows_references_as_written():
    values = {"token": "t", "other": "o", "by_ref": {"env": "KEY"}, "empty": ""}
    assert masked_config(values, frozenset({"token", "by_ref", "empty"})) == {
        "token": "***",
        "other": "o",
        "by_ref": {"env": "KEY"},
        "empty": "",
    }
