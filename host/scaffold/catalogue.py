"""Which plugins can be made: languages, kinds, and the combinations that make sense."""

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from typing import Any, Final

import msgspec
from msgspec import Struct

PACKAGE: Final = "host.scaffold"


@dataclass(frozen=True, slots=True, kw_only=True)
class Language:
    """What is said about one language; its templates lie in `languages/<name>/`."""

    name: str
    title: str
    command: tuple[str, ...] = ()
    """Empty: the class is named by `entry`."""
    support: Mapping[str, str] = field(default_factory=dict)
    """Support file by its place in the plugin's folder."""
    test: str = ""
    """The command that runs the plugin's own tests; empty when that is the conformance kit's alone."""
    is_built: bool = False
    needs: str = ""


class Kind(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One kind of plugin, in any language; from `kinds/<name>.toml`."""

    title: str
    about: str
    methods: Sequence[str]
    manifest: str = ""
    """What its plugin.toml says beyond the usual."""
    inputs: Mapping[str, Sequence[str]] = {}
    on_error: Mapping[str, str] = {}
    dev: Mapping[str, Any] = {}
    """Its `[dev]` table."""


LANGUAGES: Final[Mapping[str, Language]] = {
    language.name: language
    for language in (
        Language(name="python", title="Python", test="python -m pytest -q", needs="the package pluginapi"),
        Language(
            name="node",
            title="Node",
            command=("node", "main.mjs"),
            support={"jackfield.mjs": "jackfield.mjs"},
            test="node --test",
            needs="Node 18 or newer",
        ),
        Language(
            name="go",
            title="Go",
            command=("./plugin",),
            support={"jackfield/jackfield.go": "jackfield.go"},
            test="make test",
            is_built=True,
            needs="Go 1.19 or newer, no modules",
        ),
        Language(
            name="rust",
            title="Rust",
            command=("./plugin",),
            support={"src/jackfield.rs": "jackfield.rs"},
            test="make test",
            is_built=True,
            needs="Rust 1.63 or newer and serde_json (Debian: librust-serde-json-dev)",
        ),
        Language(
            name="c",
            title="C",
            command=("./plugin",),
            support={"jackfield.c": "jackfield.c", "jackfield.h": "jackfield.h"},
            test="make test",
            is_built=True,
            needs="a C compiler and jansson (Debian: libjansson-dev)",
        ),
        Language(name="shell", title="shell and jq", command=("sh", "main.sh"), needs="jq"),
    )
}


def read_kind(name: str) -> Kind:
    """One kind from its file."""
    return msgspec.convert(tomllib.loads(read("kinds", f"{name}.toml")), Kind)


def read(*place: str) -> str:
    """A file of this package as text."""
    return files(PACKAGE).joinpath(*place).read_text("utf-8")
