"""What an archive has to be, so that it may be unpacked; nothing outside of the target folder is ever written."""

import random
import stat
import struct
import zipfile
from pathlib import Path

import pytest

from host.install.archive import ArchiveError, ArchiveLimits, unpack
from tests.support.archives import manifest_text, plugin_wheel, plugin_zip, write_zip

TOML = manifest_text()


@pytest.fixture
def into(tmp_path: Path) -> Path:
    made = tmp_path / "deep" / "inside" / "plugin"
    made.mkdir(parents=True)
    return made


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    return tmp_path / "archive.zip"


def everything_in(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def test_a_plugin_at_the_top_is_unpacked_with_what_lies_beside_it(archive, into):
    plugin_zip(archive, **{"lib/a.py": "a", "README.md": "read me"})
    unpacked = unpack(archive, into)
    assert (unpacked.manifest.id, unpacked.manifest.version) == ("greeter", "1.0.0")
    assert everything_in(into) == ["README.md", "lib", "lib/a.py", "main", "plugin.toml"]
    assert sorted(unpacked.tree.files) == ["README.md", "lib/a.py", "main", "plugin.toml"]
    assert unpacked.total_bytes == sum(path.stat().st_size for path in into.rglob("*") if path.is_file())


def test_one_folder_that_holds_everything_is_taken_off(archive, into):
    write_zip(archive, {"greeter-1.0/": "", "greeter-1.0/plugin.toml": TOML, "greeter-1.0/lib/a.py": ""})
    unpack(archive, into)
    assert everything_in(into) == ["lib", "lib/a.py", "plugin.toml"]


def test_programs_may_be_executed_and_nothing_gets_special_rights(archive, into):
    modes = {"main": 0o104755, "plain": stat.S_IFREG | 0o666, "modeless": 0}
    write_zip(archive, {"plugin.toml": TOML, "main": "", "plain": "", "modeless": ""}, modes=modes)
    unpack(archive, into)
    found = {name: stat.S_IMODE((into / name).stat().st_mode) for name in modes}
    assert found == {"main": 0o755, "plain": 0o644, "modeless": 0o755}


def test_what_tools_leave_behind_is_left_out(archive, into):
    junk = {"__MACOSX/._plugin.toml": "", ".DS_Store": "", "lib/__pycache__/a.pyc": "", "lib/a.py": ""}
    write_zip(archive, {"plugin.toml": TOML, **junk})
    unpack(archive, into)
    assert everything_in(into) == ["lib", "lib/a.py", "plugin.toml"]


@pytest.mark.parametrize(
    ("files", "says"),
    [
        pytest.param({"dir/plugin.toml": TOML, "main": ""}, "does not", id="P133-deeper-than-something-else"),
        pytest.param({"a/b/plugin.toml": TOML}, "belongs at the archive's top", id="P133-too-deep"),
        pytest.param({"other.toml": TOML}, "contains no plugin.toml", id="P133-other-name"),
        pytest.param({"plugin.toml": TOML, "b/plugin.toml": TOML}, "several", id="P133-two-targets"),
        pytest.param({"plugin.toml": TOML, "../x": ""}, "no plain path", id="P133-above-the-top"),
        pytest.param({"plugin.toml": TOML, "a\\b": ""}, "backslash", id="P133-backslash"),
        pytest.param({"plugin.toml": TOML, "/etc/x": ""}, "absolute", id="P133-absolute"),
        pytest.param({"plugin.toml": TOML, "C:x": ""}, "absolute", id="drive"),
        pytest.param({"plugin.toml": TOML, "a/../../x": ""}, "no plain path", id="above-in-the-middle"),
        pytest.param({"plugin.toml": TOML, "a//b": ""}, "no plain path", id="empty-part"),
        pytest.param({"plugin.toml": TOML, "./a": ""}, "no plain path", id="dot-part"),
        pytest.param({"plugin.toml": TOML, "": ""}, "no plain path", id="no-name"),
        pytest.param({"plugin.toml": TOML, "a\x1b[2J": ""}, "not visible", id="escape-sequence"),
        pytest.param({"plugin.toml": TOML, "a\u202eb": ""}, "not visible", id="reordered-text"),
        pytest.param({"plugin.toml": TOML, "a. ": ""}, "not visible", id="trailing-blank"),
        pytest.param({"plugin.toml": TOML, "a/x": "", "A/y": ""}, "case only", id="folders-differ-in-case"),
        pytest.param({"plugin.toml": TOML, "Straße": "", "STRASSE": ""}, "case only", id="fold-to-the-same"),
        pytest.param({"plugin.toml": TOML, "\u00e9": "", "e\u0301": ""}, "case only", id="composed-and-decomposed"),
        pytest.param({"Plugin.TOML": TOML}, "has to be spelled", id="manifest-in-capitals"),
        pytest.param({"plugin.toml": TOML, "a": "", "a/b": ""}, "twice", id="file-and-folder"),
        pytest.param({"plugin.toml": TOML, "a/b": "", "a": ""}, "twice", id="folder-and-file"),
        pytest.param({"plugin.toml": TOML, "a/": "content"}, "content of its own", id="folder-with-content"),
        pytest.param({"plugin.toml": TOML, "x" * 256: ""}, "more than 255 bytes", id="long-name"),
        pytest.param({"plugin.toml": TOML, "/".join("a" * 33): ""}, "32 folders deep", id="deep"),
        pytest.param({"plugin.toml": 'id = "x"\n'}, "plugin.toml", id="manifest-without-version"),
        pytest.param({"plugin.toml": TOML + "colour = 1\n"}, "plugin.toml:4: unknown key", id="manifest-line"),
    ],
)
def test_a_wrong_archive_is_refused_and_writes_nothing_outside(archive, into, files, says):
    write_zip(archive, files)
    outside = [path for path in everything_in(into.parents[1]) if not path.startswith("inside/plugin")]
    with pytest.raises(ArchiveError, match=says.replace(".", r"\.")):
        unpack(archive, into)
    assert [path for path in everything_in(into.parents[1]) if not path.startswith("inside/plugin")] == outside


def test_a_name_that_is_there_twice_is_refused(archive, into):
    with pytest.warns(UserWarning, match="Duplicate"), zipfile.ZipFile(archive, "w") as out:
        out.writestr("plugin.toml", TOML)
        out.writestr("main", "one")
        out.writestr("main", "two")
    with pytest.raises(ArchiveError, match="twice"):
        unpack(archive, into)


@pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFIFO, stat.S_IFCHR, stat.S_IFBLK, stat.S_IFSOCK, stat.S_IFDIR])
def test_links_devices_and_disguised_folders_are_refused(archive, into, kind):
    write_zip(archive, {"plugin.toml": TOML, "x": "/etc/passwd"}, modes={"x": kind | 0o777})
    with pytest.raises(ArchiveError, match="no plain file"):
        unpack(archive, into)
    assert not (into / "x").exists()


def test_a_name_that_goes_on_behind_a_nul_is_refused(archive, into):
    write_zip(archive, {"plugin.toml": TOML, "main@x": ""})
    archive.write_bytes(archive.read_bytes().replace(b"main@x", b"main\0x"))
    with pytest.raises(ArchiveError, match="not visible"):
        unpack(archive, into)


LIMITS = ArchiveLimits(
    archive_bytes=100_000,
    listing_bytes=2000,
    files=20,
    file_bytes=50_000,
    total_bytes=80_000,
    ratio=20,
    ratio_free_bytes=1000,
)
NOISE = random.Random(1).randbytes(41_000)


@pytest.mark.parametrize(
    ("files", "says"),
    [
        ({f"f{number}": "" for number in range(21)}, "more than 20 entries"),
        ({f"{number}{'n' * 200}": "" for number in range(10)}, "list of entries is larger"),
        ({"big": bytes(range(256)) * 200}, "larger than 50000 bytes"),
        ({"a": NOISE, "b": NOISE}, "larger than 80000 bytes together"),
        ({"bomb": b"\0" * 40_000}, "20 times its size"),
    ],
)
def test_sizes_and_numbers_are_bounded(archive, into, files, says):
    write_zip(archive, {"plugin.toml": TOML, **files})
    with pytest.raises(ArchiveError, match=says):
        unpack(archive, into, limits=LIMITS)


def test_a_lie_about_the_size_of_a_file_is_found_while_it_is_written(archive, into):
    content = b"\0" * 40_000
    write_zip(archive, {"plugin.toml": TOML, "bomb": content})
    lie = archive.read_bytes().replace(struct.pack("<I", len(content)), struct.pack("<I", 10))
    archive.write_bytes(lie)
    with pytest.raises(ArchiveError):
        unpack(archive, into, limits=LIMITS)
    assert sum(path.stat().st_size for path in into.rglob("*") if path.is_file()) < 1000


def test_an_archive_that_is_too_large_is_not_even_opened(archive, into):
    archive.write_bytes(b"x" * 200_000)
    with pytest.raises(ArchiveError, match="larger than 100000"):
        unpack(archive, into, limits=LIMITS)


@pytest.mark.parametrize("damage", ["text", "cut", "crc", "method", "encrypted", "zip64"])
def test_what_is_no_intact_plain_zip_is_refused(archive, into, damage):
    plugin_zip(archive)
    data = bytearray(archive.read_bytes())
    central = data.index(b"PK\x01\x02")
    if damage == "text":
        data = bytearray(b"hello")
    elif damage == "cut":
        data = data[: len(data) // 2]
    elif damage == "crc":
        data[central + 16] ^= 0xFF
    elif damage == "method":
        data[central + 10] = 12
    elif damage == "encrypted":
        data[central + 8] |= 1
    else:
        end = data.rindex(b"PK\x05\x06")
        data[end:end] = b"PK\x06\x07" + bytes(16)
    archive.write_bytes(data)
    with pytest.raises(ArchiveError):
        unpack(archive, into)


def test_a_comment_at_the_end_of_a_zip_is_fine(archive, into):
    plugin_zip(archive)
    with zipfile.ZipFile(archive, "a") as out:
        out.comment = b"0123456789012345678901234567890123456789"
    assert unpack(archive, into).manifest.id == "greeter"


def test_the_package_of_a_wheel_becomes_the_plugins_folder(tmp_path, into):
    wheel = plugin_wheel(
        tmp_path / "acme_greeter-1.0.0-py3-none-any.whl",
        metadata="Requires-Dist: httpx>=0.27\nRequires-Dist: Jackfield-PluginAPI\nRequires-Dist: x; extra == 'dev'\n",
    )
    unpacked = unpack(wheel, into)
    assert everything_in(into) == ["__init__.py", "hooks.py", "plugin.toml"]
    assert unpacked.requires == ("httpx>=0.27",)
    assert unpacked.tags == ()


def test_a_wheel_for_certain_machines_says_so(tmp_path, into):
    wheel = plugin_wheel(tmp_path / "x.whl", tag="cp311-cp311-linux_x86_64")
    assert unpack(wheel, into).tags == ("cp311-cp311-linux_x86_64",)


def test_a_plugin_inside_of_a_namespace_is_found(archive, into):
    files = {"acme/__init__.py": "", "acme/greeter/plugin.toml": TOML, "acme/greeter/lib/a.py": ""}
    write_zip(archive, {**files, "acme-1.dist-info/WHEEL": "", "acme-1.dist-info/METADATA": ""})
    unpack(archive, into)
    assert everything_in(into) == ["lib", "lib/a.py", "plugin.toml"]


@pytest.mark.parametrize("outside", ["other/__init__.py", "acme_greeter-1.0.0.data/scripts/run", "single.py"])
def test_a_wheel_that_installs_more_than_its_package_is_refused(tmp_path, into, outside):
    wheel = plugin_wheel(tmp_path / "x.whl", more={outside: ""})
    with pytest.raises(ArchiveError, match="lies outside of acme_greeter"):
        unpack(wheel, into)


def test_a_wheel_without_a_plugin_in_a_package_is_refused(archive, into):
    write_zip(archive, {"plugin.toml": TOML, "x-1.dist-info/WHEEL": ""})
    with pytest.raises(ArchiveError, match="no package"):
        unpack(archive, into)
