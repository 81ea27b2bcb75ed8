"""The pages of `docs/reference/`, made from the code by `proto/generate.py`: methods, plugin.toml, errors, commands."""

import ast
import inspect
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import click
from msgspec import Struct
from tables import (
    NOTES,
    PROTO,
    codes_table,
    collect,
    default_of,
    fields_of,
    fields_table,
    summary,
    table,
    ticks,
    written_notes,
)

from host.cli import main as jackfield
from host.runtime.manifest import Manifest
from pluginabi.methods import HOST_METHODS, METHODS, PERMISSION_OF_CALLBACK, PLUGIN_METHODS, MethodSpec

ROOT: Final = PROTO.parent
REFERENCE: Final = ROOT / "docs" / "reference"
MADE: Final = "<!-- Made by `make proto`; edit the code or proto/notes.toml instead. -->\n"
_RAISERS: Final = ("RequestError", "NoCredential", "denied")


def pages() -> Iterator[tuple[Path, str]]:
    """Every page with its text. Raises KeyError for something that proto/notes.toml says nothing about."""
    yield REFERENCE / "methods.md", MADE + methods_page()
    yield REFERENCE / "manifest.md", MADE + manifest_page()
    yield REFERENCE / "errors.md", MADE + errors_page()
    yield REFERENCE / "commands.md", MADE + commands_page()


# -- methods


def methods_page() -> str:
    """Each method with when it is called, how it looks in Python, what it is given and what it answers."""
    parts = [
        "# Methods\n",
        "What the host asks of a plugin, and what a plugin may ask of the host. How calls travel stands in the",
        "[protocol](../../proto/README.md); there every payload is listed by name too.\n",
        "*Deadline* and *on error* are defaults; manifest and operator may change them. *Inputs* are the parts of a",
        "request that a plugin sees unless its `inputs` say otherwise.\n",
        "## Asked of a plugin\n",
        *(method_section(method) for method in PLUGIN_METHODS.values()),
        "## Asked of the host\n",
        "Each needs a permission: the manifest wishes for it and the operator's policy grants it.\n",
        *(method_section(method) for method in HOST_METHODS.values()),
        "## Shared objects\n",
        *(f"### {name}\n\n{shown(struct)}" for name, struct in sorted(shared_structs().items())),
    ]
    page = "\n".join(parts)
    return re.sub(r"\(#(stream-items|the-error-object|usage)\)", r"(../../proto/README.md#\1)", page)


def method_section(method: MethodSpec) -> str:
    lines = [f"### {method.name}\n", NOTES["methods"][method.name] + "\n"]
    if method.direction == "host_to_plugin":
        lines.append(f"```python\n{signature(method)}\n```\n")
        lines.append(facts(method) + "\n")
    else:
        stream = "; the answer is a stream" if method.stream else ""
        lines.append(f"Permission `{PERMISSION_OF_CALLBACK[method.name]}`{stream}.\n")
    lines += [f"**Params** — {shown(method.request)}", f"**Answer** — {shown(method.response)}"]
    return "\n".join(lines)


def signature(method: MethodSpec) -> str:
    name = method.name.replace(".", "_")
    return f"async def {name}(self, request: {method.request.__name__}, ctx: Context) -> {answer_type(method)}: ..."


def answer_type(method: MethodSpec) -> str:
    answer = "None" if method.response.__name__ == "Empty" else f"{method.response.__name__} | None"
    return "Stream" if method.stream else answer


def facts(method: MethodSpec) -> str:
    if method.reserved:
        return "Reserved: no host calls it yet."
    deadline = "until the first byte" if method.timeout_ms is None else f"{method.timeout_ms / 1000:g} s"
    inputs = ticks(method.inputs) or "nothing of the body"
    return f"Deadline {deadline} · on error `{method.on_error}` · inputs {inputs}"


def shown(struct: type[Struct]) -> str:
    return f"{summary(struct)}\n\n{fields_table(struct)}"


def shared_structs() -> Mapping[str, type[Struct]]:
    """Structs that stand inside of params and answers."""
    found: dict[str, type[Struct]] = {}
    of_methods = {struct.__name__ for spec in METHODS.values() for struct in (spec.request, spec.response)}
    for spec in METHODS.values():
        for struct in (spec.request, spec.response):
            collect(struct, found)
    return {name: struct for name, struct in found.items() if name not in of_methods}


# -- plugin.toml


def manifest_page() -> str:
    written = written_notes(Manifest)
    rows = []
    for field in fields_of(Manifest):
        note = written.get(field.name) or NOTES["manifest"][field.name]
        rows.append((f"`{field.encode_name}`", default_of(field), note))
    return "\n".join(
        [
            "# plugin.toml\n",
            "What a plugin is and wants, readable without running it. An unknown key is an error with its line.\n",
            table(("Key", "Default", "Meaning"), rows),
        ]
    )


# -- errors


def errors_page() -> str:
    """The codes of the plugin runtime, and the gateway's own."""
    found = gateway_codes()
    if unexplained := sorted(found.keys() - NOTES["codes"]):
        raise KeyError(f"proto/notes.toml says nothing about the codes {', '.join(unexplained)}")
    rows = [
        (f"`{code}`", ", ".join(str(status) for status in sorted(found.get(code, ()))), meaning)
        for code, meaning in sorted(NOTES["codes"].items())
    ]
    return "\n".join(
        [
            "# Error codes\n",
            "Clients get them in their protocol's own error object; the status is never changed on the way.\n",
            "## Of plugins that broke\n",
            codes_table(),
            "## Of the gateway itself\n",
            "An error of a plugin, or of an upstream, keeps its own code and status.\n",
            table(("Code", "Status", "Meaning"), rows),
        ]
    )


def gateway_codes() -> Mapping[str, set[int]]:
    """Code to statuses of every refusal whose code stands in the source as text."""
    found: dict[str, set[int]] = {}
    for path in sorted((ROOT / "host").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and called(node) in _RAISERS and len(node.args) >= 2:
                status, code = node.args[0], node.args[1]
                if isinstance(code, ast.Constant) and isinstance(code.value, str):
                    found.setdefault(code.value, set()).update(
                        [status.value] if isinstance(status, ast.Constant) and isinstance(status.value, int) else []
                    )
    return found


def called(node: ast.Call) -> str:
    function: Any = node.func
    return getattr(function, "id", "") or getattr(function, "attr", "")


# -- commands


def commands_page() -> str:
    """Every command with its options, as `--help` says."""
    return "# Commands\n\n" + "\n".join(command_sections(jackfield, "jackfield"))


def command_sections(command: click.Command, path: str) -> Iterator[str]:
    words = [usage_of(parameter) for parameter in command.params if isinstance(parameter, click.Argument)]
    yield f"## {' '.join([path, *words])}\n"
    yield inspect.cleandoc(command.help or "").replace("\b\n", "") + "\n"
    rows = [
        (f"`{', '.join(option.opts)}`", (option.help or "").replace("|", "\\|"))
        for option in command.params
        if isinstance(option, click.Option)
    ]
    if rows:
        yield table(("Option", "Meaning"), rows)
    if isinstance(command, click.Group):
        for name in sorted(command.commands):
            yield from command_sections(command.commands[name], f"{path} {name}")


def usage_of(argument: click.Argument) -> str:
    name = (argument.metavar or argument.name or "").upper()
    return f"{name}…" if argument.nargs == -1 else name
