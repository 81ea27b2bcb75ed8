"""The parts of a template: sections, and what a language makes of a kind's methods, inputs and texts."""

import re
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any, Final

import pluginapi
from host.scaffold.catalogue import Kind
from pluginabi.version import ABI_VERSIONS, SCHEMA_VERSION

WIDTH: Final = 120
QUOTED: Final = '    """'
REGISTER: Final = "plugin.register"
_SECTION: Final = re.compile(r"^%% (.+)\n", re.MULTILINE)
_FUNCTIONS: Final[Mapping[str, str]] = {
    "plugin.register": "register",
    "model.route": "route",
    "scheduler.pick": "pick",
    "request.intercept_before": "intercept_before",
    "response.intercept_after": "intercept_after",
    "response.intercept_stream_chunk": "intercept_stream_chunk",
    "executor.execute": "execute",
    "executor.execute_stream": "execute_stream",
    "request.normalize": "normalize",
    "thinking.apply": "apply",
    "auth.parse": "parse",
    "auth.refresh": "refresh",
    "frontend_auth.authenticate": "authenticate",
    "command_line.execute": "command_line",
}
"""Short names where they are clear; the method's own words otherwise."""


def sections(text: str, *, first: str = "code") -> dict[str, str]:
    """The parts between lines `%% name`; what stands before the first such line is `first`."""
    head, *rest = _SECTION.split(text)
    found = {first: head} if head.strip() else {}
    return {**found, **dict(zip(rest[::2], rest[1::2], strict=True))}


def function(method: str) -> str:
    """What a method is called in a language with functions, in snake_case."""
    return _FUNCTIONS.get(method, method.replace(".", "_"))


def camel(name: str) -> str:
    """snake_case as camelCase."""
    head, *rest = name.split("_")
    return head + "".join(part.title() for part in rest)


def filled(text: str, prefix: str, *, taken: int | None = None) -> str:
    """A paragraph in lines of at most 120 characters, each after the first with `prefix`.

    `taken` characters stand before the first line already; as many as the prefix has unless given.
    """
    before = " " * (len(prefix) if taken is None else taken)
    return textwrap.fill(
        " ".join(text.split()), WIDTH, initial_indent=before, subsequent_indent=prefix, break_on_hyphens=False
    ).removeprefix(before)


def words(names: Sequence[str]) -> str:
    """Words as the members of a JSON list."""
    return ", ".join(f'"{name}"' for name in names)


def python_parts(plugin_id: str, kind: Kind, code: Mapping[str, str]) -> dict[str, str]:
    """Imports from the SDK are those the code names."""
    base = code.get("base", "Plugin").strip()
    text = "\n".join((code["code"], code.get("helpers", ""), base))
    named = [name for name in pluginapi.__all__ if re.search(rf"\b{name}\b", text)]
    line = f"from pluginapi import {', '.join(sorted(named))}, serve"
    if len(line) > WIDTH:
        line = "from pluginapi import (\n" + "".join(f"    {name},\n" for name in (*sorted(named), "serve")) + ")"
    own = code.get("stdlib", "").strip().splitlines()
    third_party = [it for it in own if it == "import msgspec"]
    stdlib = [it for it in own if it not in third_party]
    constants = ""
    if kind.inputs:
        stdlib.append("from typing import ClassVar")
        rows = [f'"{method}": ({words(seen)}{"," * (len(seen) == 1)})' for method, seen in kind.inputs.items()]
        constants = f"\n\n    inputs: ClassVar = {{{', '.join(rows)}}}"
    blocks = ["\n".join(sorted(stdlib)), "\n".join((*third_party, line))]
    about = filled(kind.about, "    ", taken=len(QUOTED))
    is_short = "\n" not in about and len(QUOTED + about) + 3 <= WIDTH
    return {
        "IMPORTS": "\n\n".join(block for block in blocks if block),
        "HELPERS": f"\n\n{code['helpers'].strip()}\n" if "helpers" in code else "",
        "BASE": base,
        "ABOUT": about if is_short else f"{about}\n    ",
        "CONSTANTS": constants,
        "CODE": code["code"].rstrip(),
    }


def node_parts(plugin_id: str, kind: Kind, code: Mapping[str, str]) -> dict[str, str]:
    text = code["code"] + code.get("helpers", "")
    named = [name for name in ("PluginError", "bodyOf", "jsonBody") if name in text]
    tables = [
        "  inputs: { " + ", ".join(f'"{method}": [{words(seen)}]' for method, seen in kind.inputs.items()) + " },"
    ] * bool(kind.inputs)
    tables += [
        "  on_error: { " + ", ".join(f'"{method}": "{mode}"' for method, mode in kind.on_error.items()) + " },"
    ] * bool(kind.on_error)
    return {
        "IMPORTS": f'import {{ {", ".join(named)} }} from "./jackfield.mjs";\n' if named else "",
        "HELPERS": f"{code['helpers'].strip()}\n" if "helpers" in code else "",
        "ABOUT": filled(kind.about, "// "),
        "TABLES": "".join(f"\n{table}" for table in tables),
        "CODE": code["code"].rstrip(),
    }


def go_parts(plugin_id: str, kind: Kind, code: Mapping[str, str]) -> dict[str, str]:
    text = code["code"]
    packages = {"json": "encoding/json", "fmt": "fmt", "strings": "strings", "atomic": "sync/atomic"}
    used = sorted(path for name, path in packages.items() if re.search(rf"\b{name}\.", text))
    imports = "".join(f'\t"{path}"\n' for path in used) + "\n" * bool(used) + '\t"jackfield-plugin/jackfield"\n'
    width = max(len(method) for method in kind.methods) + 3
    rows = [f"\t\t{f'{chr(34)}{it}{chr(34)}:'.ljust(width)} {camel(function(it))}," for it in kind.methods]
    tables = ["\tHandlers: map[string]jackfield.Handler{", *rows, "\t},"]
    if kind.inputs:
        inputs = ", ".join(f'"{method}": {{{words(seen)}}}' for method, seen in kind.inputs.items())
        tables.append(f"\tInputs: map[string][]string{{{inputs}}},")
    if kind.on_error:
        modes = ", ".join(f'"{method}": "{mode}"' for method, mode in kind.on_error.items())
        tables.append(f"\tOnError: map[string]string{{{modes}}},")
    if kind.inputs and kind.on_error:
        tables[-2] = tables[-2].replace("Inputs: ", "Inputs:  ")
    return {
        "IMPORTS": f"import (\n{imports})" if used else 'import "jackfield-plugin/jackfield"',
        "ABOUT": filled(kind.about, "// "),
        "TABLES": "\n".join(tables),
        "CODE": text.strip(),
    }


def rust_parts(plugin_id: str, kind: Kind, code: Mapping[str, str]) -> dict[str, str]:
    text = code["code"]
    own = ["Answer", "Call", *("Error" for _ in range("Error" in text)), "Plugin"]
    own = [*(name for name in ("body_of", "json_body") if name in text), *own]
    theirs = ["json"] * ("json!" in text) + ["Value"] * bool(re.search(r"\bValue\b", text))
    serde = f"{{{', '.join(theirs)}}}" if len(theirs) > 1 else theirs[0]
    uses = [f"use jackfield::{{{', '.join(own)}}};", f"use serde_json::{serde};", *code.get("std", "").split("\n")]
    chain = [f'.on("{method}", {function(method)})' for method in kind.methods]
    chain += [f'.inputs("{method}", &[{words(seen)}])' for method, seen in kind.inputs.items()]
    chain += [f'.on_error("{method}", "{mode}")' for method, mode in kind.on_error.items()]
    # As rustfmt would have it.
    fits = len(f'    Plugin::new("{plugin_id}", "0.1.0"){"".join(chain)}') <= WIDTH
    return {
        "IMPORTS": "\n".join(uses).strip(),
        "ABOUT": filled(kind.about, "//! "),
        "HANDLERS": "".join(chain) if fits else "".join(f"\n        {link}" for link in chain),
        "CODE": text.strip(),
    }


def c_parts(plugin_id: str, kind: Kind, code: Mapping[str, str]) -> dict[str, str]:
    text = code["code"].strip()
    headers = {"stdatomic.h": "atomic_", "stdlib.h": r"\b(malloc|free)\(", "string.h": r"\b(str|stp)[a-z]+\("}
    includes = [f"#include <{name}>" for name, pattern in headers.items() if re.search(pattern, text)]
    rows = []
    for method in kind.methods:
        name = "register_plugin" if method == REGISTER else function(method)
        seen = kind.inputs.get(method)
        inputs = "NULL" if seen is None else '"[' + ", ".join(f'\\"{word}\\"' for word in seen) + ']"'
        mode = f'"{kind.on_error[method]}"' if method in kind.on_error else "NULL"
        rows.append(f'        {{"{method}", {name}, {inputs}, {mode}}},')
    return {
        "IMPORTS": "\n".join(includes),
        "ABOUT": filled(kind.about, " * "),
        "HANDLERS": "\n".join(rows),
        "CODE": text,
    }


def shell_parts(plugin_id: str, kind: Kind, code: Mapping[str, str]) -> dict[str, str]:
    tables = [("inputs", kind.inputs), ("on_error", kind.on_error)]
    more = "".join(f',"{name}":{_json(table)}' for name, table in tables if table)
    listed = words([REGISTER, *(method for method in kind.methods if method != REGISTER)]).replace(" ", "")
    hello = (
        f'{{"kind":"hello","abi":[{ABI_VERSIONS[-1]}],"schema":{SCHEMA_VERSION},"plugin":"{plugin_id}","version":"0.1.0",'
        f'"capabilities":[{listed}]{more}}}'
    )
    rows = [
        '        "call plugin.register") config=$(get "$params" \'.config | tojson\') && answer '
        + ('\'{"frontend_auth":{"id":"@ID@"}}\'' if REGISTER in kind.methods else "null")
        + " ;;"
    ]
    rows += [f'        "call {method}") {function(method)} ;;' for method in kind.methods if method != REGISTER]
    return {
        "HELLO": hello,
        "SEEN": "(.params // {} | del(.body, .client_body))",
        "ABOUT": filled(kind.about, "# "),
        "HANDLERS": "\n".join(rows),
        "CODE": code["code"].strip(),
    }


def _json(table: Mapping[str, Any]) -> str:
    rows = []
    for name, value in table.items():
        shown = f'"{value}"' if isinstance(value, str) else f"[{words(list(value)).replace(' ', '')}]"
        rows.append(f'"{name}":{shown}')
    return "{" + ",".join(rows) + "}"


PARTS: Final = {
    "python": python_parts,
    "node": node_parts,
    "go": go_parts,
    "rust": rust_parts,
    "c": c_parts,
    "shell": shell_parts,
}
