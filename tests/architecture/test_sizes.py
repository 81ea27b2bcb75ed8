"""Modules stay below 500 lines and functions below 60; an exception is listed with its reason."""

import ast
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("host", "pluginabi", "pluginapi", "plugins", "examples")
MAX_MODULE_LINES = 500
MAX_FUNCTION_LINES = 60

LONG_MODULES: dict[str, str] = {}
LONG_FUNCTIONS: dict[str, str] = {}
BROAD_EXCEPT: dict[str, str] = {
    "host/management/app.py": "error rendering: whatever a call raises becomes its answer, in one place",
    "host/runtime/drive.py": "an in-process plugin is stepped by hand, its errors and cancellation included",
    "host/runtime/inprocess.py": "the constructor of an in-process plugin is the author's code",
    "host/runtime/invoke.py": "whatever a call raises becomes one of the two plugin errors",
    "host/runtime/loader.py": "importing an in-process plugin runs the author's code",
    "host/runtime/process.py": "the task that supervises a plugin: its own mistake must not leave the plugin as it is",
    "host/web/server.py": "error rendering: whatever a request raises becomes the client's error, in one place",
    "host/web/streaming.py": "error rendering inside a stream, and the end of the task that closes one",
    "pluginapi/dispatch.py": "what an author raises becomes a PluginError here and nowhere else",
    "pluginapi/threads.py": "what a blocking hook raises is handed to the task that waits for it",
}
"""Modules in which everything may be caught: where foreign code runs, or where a task ends."""


def sources(packages: tuple[str, ...] = PACKAGES) -> list[Path]:
    return [
        path
        for package in packages
        for path in sorted((ROOT / package).rglob("*.py"))
        if "_pb" not in path.parts and "__pycache__" not in path.parts
    ]


def long_modules() -> dict[str, int]:
    counted = {
        str(path.relative_to(ROOT)): path.read_text(encoding="utf-8").count("\n")
        for path in sources((*PACKAGES, "tests"))
    }
    return {name: lines for name, lines in counted.items() if lines > MAX_MODULE_LINES}


def long_functions() -> dict[str, int]:
    found = {}
    for path in sources():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                lines = (node.end_lineno or node.lineno) - node.lineno + 1
                if lines > MAX_FUNCTION_LINES:
                    found[f"{path.relative_to(ROOT)}:{node.name}"] = lines
    return found


def broad_excepts() -> dict[str, list[int]]:
    found: dict[str, list[int]] = {}
    for path in sources():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ExceptHandler) and is_broad(node) and not ends_by_raising(node):
                found.setdefault(str(path.relative_to(ROOT)), []).append(node.lineno)
    return found


def is_broad(node: ast.ExceptHandler) -> bool:
    kinds = node.type.elts if isinstance(node.type, ast.Tuple) else [node.type]
    names = ("Exception", "BaseException")
    return any(kind is None or (isinstance(kind, ast.Name) and kind.id in names) for kind in kinds)


def ends_by_raising(node: ast.ExceptHandler) -> bool:
    return isinstance(node.body[-1], ast.Raise) and node.body[-1].exc is None


def test_no_module_is_longer_than_500_lines():
    assert {name: lines for name, lines in long_modules().items() if name not in LONG_MODULES} == {}


def test_no_function_is_longer_than_60_lines():
    assert {name: lines for name, lines in long_functions().items() if name not in LONG_FUNCTIONS} == {}


def test_everything_is_caught_only_in_the_listed_boundary_modules():
    assert {name: lines for name, lines in broad_excepts().items() if name not in BROAD_EXCEPT} == {}


def test_every_listed_exception_is_still_needed():
    assert set(LONG_MODULES) - set(long_modules()) == set()
    assert set(LONG_FUNCTIONS) - set(long_functions()) == set()
    assert set(BROAD_EXCEPT) - set(broad_excepts()) == set()
