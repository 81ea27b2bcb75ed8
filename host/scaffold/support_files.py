"""The files that speak the protocol, one per language; a plugin carries its own copy."""

from importlib.resources import files

_PACKAGE = "host.scaffold"


def support_file(name: str) -> str:
    """The text of `jackfield.go`, `jackfield.rs`, `jackfield.c`, `jackfield.h` or `jackfield.mjs`."""
    return files(_PACKAGE).joinpath("support", name).read_text("utf-8")
