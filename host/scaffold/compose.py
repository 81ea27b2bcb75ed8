"""A new plugin's files: a frame per language, a snippet per kind, one manifest, one README, one file of cases."""

import keyword
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

import msgspec

import pluginapi
from host.runtime.manifest import is_plugin_id
from host.scaffold.catalogue import LANGUAGES, Kind, Language, read, read_kind
from host.scaffold.names import KINDS, kinds_of
from host.scaffold.parts import PARTS, filled, sections
from host.scaffold.support_files import support_file

CASES: Final = "cases.json"
_PURPOSES: Final[Mapping[str, str]] = {
    "plugin.toml": "what it is, for the gateway",
    CASES: "what it has to answer; `jackfield plugins test .` checks it, and the whole protocol",
    "Makefile": "`make` builds it, `make test` tests it",
    "Cargo.toml": "for cargo",
    "go.mod": "for go",
    "main.mjs": "starts it",
}


class CannotCreate(Exception):
    """A name, a combination or a place that cannot be used; the message says what can."""


def render(plugin_id: str, *, language: str, kind: str) -> dict[str, str]:
    """The files of a new plugin by their place in its folder. Raises CannotCreate."""
    _check(plugin_id, language, kind)
    spoken, made = LANGUAGES[language], read_kind(kind)
    # Before lines are filled: the id changes their length.
    made = msgspec.structs.replace(made, about=_named(made.about, plugin_id))
    fields = {
        **PARTS[language](plugin_id, made, sections(read("languages", language, f"{kind}.tmpl"))),
        "TITLE": made.title,
    }
    found = sections(read("languages", language, "frame.tmpl"))
    rendered = {
        _named(name, plugin_id): _tidy(_named(_replaced(text, fields), plugin_id)) for name, text in found.items()
    }
    for place, name in spoken.support.items():
        rendered[place] = support_file(name)
    rendered["plugin.toml"] = _named(_manifest(plugin_id, spoken, made), plugin_id)
    rendered[CASES] = _named(read("kinds", f"{kind}.json"), plugin_id)
    rendered["README.md"] = _named(_readme(plugin_id, spoken, kind, made, rendered), plugin_id)
    return rendered


def create(folder: Path, *, language: str, kind: str) -> dict[str, str]:
    """Write a new plugin into `folder`, whose name is its id; returns what was written. Raises CannotCreate."""
    rendered = render(folder.name, language=language, kind=kind)
    if folder.exists():
        raise CannotCreate(f"{folder} exists already; nothing was changed")
    try:
        for place, text in rendered.items():
            path = folder / place
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise CannotCreate(f"{error.filename or folder}: {error.strerror}") from error
    return rendered


def module_name(plugin_id: str) -> str:
    """A Python module's name for an id."""
    name = re.sub(r"\W", "_", plugin_id.lower())
    return f"plugin_{name}" if not name.isidentifier() or keyword.iskeyword(name) else name


def class_name(plugin_id: str) -> str:
    """A class's name for an id."""
    name = "".join(word[:1].upper() + word[1:] for word in re.split(r"[^A-Za-z0-9]+", plugin_id))
    if not name.isidentifier():
        return f"The{name}"
    # What a plugin imports must not be hidden by the class of that name.
    return f"{name}Plugin" if name in pluginapi.__all__ or keyword.iskeyword(name) else name


def crate_name(plugin_id: str) -> str:
    """A cargo package's name for an id: two plugins may share a target directory."""
    return "jackfield-" + re.sub(r"[^a-z0-9_-]", "-", plugin_id.lower())


def _check(plugin_id: str, language: str, kind: str) -> None:
    if not is_plugin_id(plugin_id):
        raise CannotCreate(
            f"{plugin_id!r} is no plugin id: 1 to 128 letters, digits, dots, underscores and dashes,"
            " starting with a letter or digit"
        )
    if language not in LANGUAGES:
        raise CannotCreate(f"there is no language {language!r}; there are: {', '.join(LANGUAGES)}")
    if kind not in KINDS:
        raise CannotCreate(f"there is no kind {kind!r}; there are: {', '.join(KINDS)}")
    if kind not in kinds_of(language):
        others = ", ".join(name for name in LANGUAGES if kind in kinds_of(name))
        raise CannotCreate(
            f"{kind} is not offered in {language}, which has: {', '.join(kinds_of(language))};"
            f" {kind} is there in: {others}"
        )


def _replaced(text: str, fields: Mapping[str, str]) -> str:
    return re.sub(r"@([A-Z]+)@", lambda match: fields.get(match[1], match[0]), text)


def _named(text: str, plugin_id: str) -> str:
    names = {
        "ID": plugin_id,
        "MODULE": module_name(plugin_id),
        "CLASS": class_name(plugin_id),
        "CRATE": crate_name(plugin_id),
    }
    return _replaced(text, names)


def _tidy(text: str) -> str:
    """No blank lines where a part was empty, and one line end at the end."""
    return re.sub(r"\n{4,}", "\n\n\n", re.sub(r"[ \t]+\n", "\n", text)).strip("\n") + "\n"


def _manifest(plugin_id: str, language: Language, kind: Kind) -> str:
    lines = [
        f'id = "{plugin_id}"',
        'version = "0.1.0"',
        f'description = "A plugin that {kind.title}."',
        'runtime = "process"',
    ]
    if language.command:
        lines.append(f"command = {_toml(list(language.command))}")
    else:
        lines.append('entry = "@MODULE@:@CLASS@"')
    blocks = ["\n".join(lines), kind.manifest.strip()]
    dev = {**({"build": ["make"]} if language.is_built else {}), **kind.dev}
    if dev:
        rows = [f"{name} = {_toml(value)}" for name, value in dev.items()]
        blocks.append("\n".join(["# For `jackfield plugins dev` only.", "[dev]", *rows]))
    return "\n\n".join(block for block in blocks if block) + "\n"


def _toml(value: object) -> str:
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{name} = {_toml(member)}" for name, member in value.items()) + " }"
    if isinstance(value, list):
        return "[" + ", ".join(map(_toml, value)) + "]"
    return msgspec.json.encode(value).decode()


def _readme(plugin_id: str, language: Language, kind_name: str, kind: Kind, rendered: Mapping[str, str]) -> str:
    table = {
        language.test: "its own tests",
        "jackfield plugins test .": "cases.json and the whole protocol",
        "jackfield plugins dev .": "a gateway of its own with this plugin",
    }
    commands = [f"{command:28}# {meaning}" for command, meaning in table.items() if command]
    sentence = f"A Jackfield plugin in {language.title} ({kind_name}) that {kind.title}. It needs {language.needs}."
    fields = {
        "SENTENCE": sentence,
        "ABOUT": filled(kind.about, ""),
        "FILES": "\n".join(_file_rows(language, rendered)),
        "COMMANDS": "\n".join(commands),
        "BUILDS": "; `[dev] build` in plugin.toml says how it is built" if language.is_built else "",
        "CONFIGURATION": _configuration(plugin_id, kind),
    }
    return _tidy(_replaced(read("languages", "README.tmpl"), fields))


def _file_rows(language: Language, rendered: Mapping[str, str]) -> Iterator[str]:
    for place in rendered:
        name = place.rpartition("/")[2]
        if place in language.support:
            purpose = "speaks the protocol; yours to read and to change"
        elif "test" in name:
            purpose = "runs cases.json without a gateway"
        else:
            purpose = _PURPOSES.get(name, "the plugin")
        yield f"| [{place}]({place}) | {purpose} |"


def _configuration(plugin_id: str, kind: Kind) -> str:
    fields = re.findall(r'\[\[config\]\]\nname = "(.+)"\ntype = "(.+)"\n(?:default = (.+)\n)?', kind.manifest)
    if not fields:
        return ""
    rows = [f"      {name}: {default or '{}'}" for name, _, default in fields]
    head = ["", "Its configuration, with the defaults:", "", "```yaml", "plugins:", "  configs:", f"    {plugin_id}:"]
    return "\n".join([*head, "      enabled: true", *rows, "```"])
