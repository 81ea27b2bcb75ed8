"""How the management key is kept."""

from pathlib import Path

import bcrypt
import pytest

from host.config.load import load_config
from host.management import secret
from host.management.secret import hash_key, is_hashed, matches, weakness, with_hashed_key

PLAIN = "# mine\nremote-management:\n  secret-key: a-long-key   # rotate it\n  allow-remote: false\nport: 1\n"


def test_a_key_matches_its_own_hash_and_no_other() -> None:
    stored = hash_key("a-long-key")
    assert is_hashed(stored)
    assert (matches("a-long-key", stored), matches("a-long-kez", stored)) == (True, False)
    assert stored != hash_key("a-long-key")


@pytest.mark.parametrize("prefix", [b"2a", b"2b"])
def test_a_bcrypt_hash_of_a_carried_over_configuration_still_verifies(prefix: bytes) -> None:
    stored = bcrypt.hashpw(b"a-long-key", bcrypt.gensalt(4, prefix)).decode()
    assert is_hashed(stored)
    assert (matches("a-long-key", stored), matches("another-key", stored)) == (True, False)
    if prefix == b"2b":
        assert matches("a-long-key", stored.replace("$2b$", "$2y$"))


@pytest.mark.parametrize("stored", ["$argon2id$broken", "$2b$broken", ""])
def test_a_broken_hash_matches_nothing(stored: str) -> None:
    assert matches("a-long-key", stored) is False


@pytest.mark.parametrize("key", ["x" * 80, "x\0y", "x" * 5000, "ü" * 40])
def test_a_key_that_bcrypt_would_cut_off_does_not_match_its_beginning(key: str) -> None:
    stored = bcrypt.hashpw(key.encode()[:72].partition(b"\0")[0], bcrypt.gensalt(4)).decode()
    assert matches(key, stored) is False


@pytest.mark.parametrize("key", ["short", "changeme", "Your-Secret-Key", "x" * 2000])
def test_weak_keys_and_placeholders_are_no_keys(key: str) -> None:
    assert weakness(key)
    assert weakness("a-long-key") is None


async def test_I11_a_plain_key_is_replaced_by_its_hash_in_the_file_and_comments_stay(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(PLAIN)
    loaded = await with_hashed_key(load_config(file), file)
    stored = loaded.config.remote_management.secret_key
    assert matches("a-long-key", stored)
    assert file.read_text().split() == PLAIN.replace("a-long-key", stored).split()
    assert loaded.text == file.read_text()
    again = await with_hashed_key(load_config(file), file)
    assert again.config.remote_management.secret_key == stored


@pytest.mark.parametrize("saved", [PLAIN.replace("a-long-key", "another-key"), PLAIN + "debug: true\n"])
async def test_what_is_saved_while_a_key_is_hashed_stays_and_is_not_taken_for_what_is_in_force(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, saved: str
) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(PLAIN)
    loaded = load_config(file)

    def slow(key: str) -> str:
        file.write_text(saved)
        return hash_key(key)

    monkeypatch.setattr(secret, "hash_key", slow)
    hashed = await with_hashed_key(loaded, file)
    assert matches("a-long-key", hashed.config.remote_management.secret_key)
    assert (file.read_text(), hashed.text) == (saved, PLAIN)


async def test_a_weak_key_leaves_the_api_off_and_the_file_alone(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    text = PLAIN.replace("a-long-key", "changeme")
    file.write_text(text)
    loaded = await with_hashed_key(load_config(file), file)
    assert (loaded.config.remote_management.secret_key, file.read_text()) == ("", text)


async def test_a_file_that_cannot_be_written_does_not_keep_the_key_from_working(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(PLAIN)
    loaded = await with_hashed_key(load_config(file), tmp_path / "elsewhere" / "config.yaml")
    assert matches("a-long-key", loaded.config.remote_management.secret_key)
    assert file.read_text() == PLAIN
