"""Whether a version is newer than another, for versions that follow no common scheme."""

from itertools import zip_longest


def is_update(installed: str, offered: str) -> bool:
    """Whether `offered` should be shown as an update of `installed` (spec plugin-abi 8.2).

    A leading `v` does not count. Numbers between dots are compared as numbers, missing ones are 0. Where something is
    no number nobody can tell which is newer: then every difference is an update. An unknown version never is one.
    """
    installed, offered = (_without_v(version) for version in (installed, offered))
    if not installed or not offered or installed == offered:
        return False
    parts = [version.split(".") for version in (installed, offered)]
    if not all(part.isascii() and part.isdigit() for version in parts for part in version):
        return True
    pairs = zip_longest(*parts, fillvalue="0")
    return next((int(new) > int(old) for old, new in pairs if int(new) != int(old)), False)


def _without_v(version: str) -> str:
    version = version.strip()
    return version[1:] if version[:1] in ("v", "V") else version
