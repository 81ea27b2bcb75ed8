"""Several people, and processes, change one file at once: nothing that anybody saved is lost."""

import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from host.config import rewrite as module
from host.config.edit import set_value
from host.config.load import load_config
from host.config.rewrite import FileBusy, rewrite, write_atomically

BEGUN = "port: 8317 # ours\n"
ADD = """
import sys
from host.config.rewrite import rewrite
for number in range(15):
    rewrite(sys.argv[1], lambda before: (f"{before}# {sys.argv[2]}-{number}\\n", None))
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    made = tmp_path / "config.yaml"
    made.write_text(BEGUN)
    return made


def test_changes_of_several_threads_and_processes_are_all_there(file: Path):
    def add(name: str) -> None:
        subprocess.run([sys.executable, "-c", ADD, str(file), name], check=True, timeout=30)

    def set_priority(number: int) -> None:
        set_value(file, ["plugins", "configs", f"p{number}", "priority"], number)

    with ThreadPoolExecutor() as pool:
        working = [pool.submit(add, name) for name in "ab"] + [pool.submit(set_priority, it) for it in range(6)]
        for each in working:
            each.result(30)
    lines = file.read_text().splitlines()
    assert {f"# {name}-{number}" for name in "ab" for number in range(15)} <= {*lines}
    assert len(load_config(file).config.plugins.configs) == 6
    assert os.listdir(file.parent) == [file.name]


def test_what_an_editor_saves_while_a_change_is_made_stays(file: Path):
    seen: list[str] = []

    def change(before: str) -> tuple[str, int]:
        seen.append(before)
        if len(seen) == 1:
            file.write_text(before + "# by hand\n")
        return before + "# by us\n", len(seen)

    assert rewrite(str(file), change) == 2
    assert file.read_text() == BEGUN + "# by hand\n# by us\n"


def test_an_editor_that_never_stops_is_an_error_and_the_file_is_the_editors(file: Path):
    def change(before: str) -> tuple[str, None]:
        file.write_text(before + "# by hand\n")
        return "gone", None

    with pytest.raises(FileBusy, match="somebody else is changing it"):
        rewrite(str(file), change)
    assert file.read_text() == BEGUN + "# by hand\n" * module.ATTEMPTS
    assert os.listdir(file.parent) == [file.name]


def test_who_holds_the_file_too_long_is_not_waited_for(file: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "LOCK_S", 0.05)
    holding, go_on = threading.Event(), threading.Event()

    def slow(before: str) -> tuple[str, None]:
        holding.set()
        assert go_on.wait(10)
        return before + "# slow\n", None

    with ThreadPoolExecutor() as pool:
        held = pool.submit(rewrite, str(file), slow)
        assert holding.wait(10)
        with pytest.raises(FileBusy):
            rewrite(str(file), lambda before: ("gone", None))
        go_on.set()
        held.result(10)
    assert file.read_text() == BEGUN + "# slow\n"


def test_a_change_that_fails_or_changes_nothing_writes_nothing(file: Path):
    inode = file.stat().st_ino

    def fails(before: str) -> tuple[str, None]:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        rewrite(str(file), fails)
    assert rewrite(str(file), lambda before: (before, "same")) == "same"
    assert (file.stat().st_ino, file.read_text()) == (inode, BEGUN)


def test_a_file_that_is_not_there_is_made_when_it_may_be_missing(tmp_path: Path):
    missing = tmp_path / "new.yaml"
    with pytest.raises(FileNotFoundError):
        rewrite(str(missing), lambda before: ("x", None))
    rewrite(str(missing), lambda before: (f"{before}port: 1\n", None), may_be_missing=True)
    assert (missing.read_text(), missing.stat().st_mode & 0o777) == ("port: 1\n", 0o600)


def test_a_link_stays_a_link_and_the_mode_stays(file: Path, tmp_path: Path):
    link = tmp_path / "link.yaml"
    link.symlink_to(file)
    file.chmod(0o640)
    rewrite(str(link), lambda before: (before + "# more\n", None))
    write_atomically(str(link), file.read_text() + "# again\n")
    assert link.is_symlink() and file.read_text() == BEGUN + "# more\n# again\n"
    assert file.stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize(
    ("stored", "expected"),
    [
        (b"# a\r\nport: 1\r\ndebug: true\r\n", b"# a\r\nport: 2\r\nhost: h\r\ndebug: true\r\n"),
        (b"# a\r\nport: 1\r\ndebug: true", b"# a\r\nport: 2\r\nhost: h\r\ndebug: true"),
        (b"# a\nport: 1\r\ndebug: true\r\n", b"# a\nport: 2\r\nhost: h\r\ndebug: true\r\n"),
        (b"# a\r\nport: 1\ndebug: true\n", b"# a\r\nport: 2\nhost: h\ndebug: true\n"),
        (b"# a\rport: 1\rdebug: true\r", b"# a\rport: 2\rhost: h\rdebug: true\r"),
    ],
)
def test_lines_keep_their_ends_and_new_ones_get_those_of_most(file: Path, stored: bytes, expected: bytes):
    file.write_bytes(stored)
    rewrite(str(file), lambda before: (before.replace("port: 1\n", "port: 2\nhost: h\n"), None))
    assert file.read_bytes() == expected


def test_a_text_that_says_its_line_ends_is_written_as_it_is(file: Path):
    file.write_bytes(b"port: 1\r\n")
    rewrite(str(file), lambda before: ("port: 2\r\ndebug: true\n", None))
    assert file.read_bytes() == b"port: 2\r\ndebug: true\n"


def test_a_file_stays_with_those_it_belongs_to(file: Path, monkeypatch: pytest.MonkeyPatch):
    given: list[tuple[int, int]] = []

    def only_groups(descriptor: int, owner: int, group: int) -> None:
        given.append((owner, group))
        if owner >= 0:
            raise PermissionError(1, "not permitted")

    monkeypatch.setattr(os, "fchown", only_groups)
    rewrite(str(file), lambda before: (before + "# more\n", None))
    there = file.stat()
    assert given == [(there.st_uid, there.st_gid), (-1, there.st_gid)]
    assert file.read_text() == BEGUN + "# more\n"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give files away")
def test_when_root_edits_the_file_of_a_service_that_can_read_it_afterwards(file: Path):
    os.chown(file, 12345, 23456)
    file.chmod(0o600)
    set_value(file, ["port"], 2)
    there = file.stat()
    assert (there.st_uid, there.st_gid, there.st_mode & 0o777) == (12345, 23456, 0o600)
