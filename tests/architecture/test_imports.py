"""Who may import whom, by walking the syntax trees; and that importing does no work."""

import ast
import subprocess
import sys
from collections.abc import Collection, Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FIRST_PARTY = ("pluginabi", "pluginapi", "host", "plugins", "examples", "tests", "proto")

ALLOWED_PACKAGES = {
    "pluginabi": {"pluginabi"},
    "pluginapi": {"pluginapi", "pluginabi"},
    "host": {"host", "pluginapi", "pluginabi"},
    "plugins": {"pluginapi"},
    "examples": {"pluginapi"},
}

LAYERS = {
    "management": {"web", "pipeline", "credentials", "registry", "runtime", "recording"},
    "web": {"pipeline"},
    "pipeline": {"credentials", "registry", "runtime"},
    "registry": {"credentials"},
    "install": {"runtime"},
    "recording": {"credentials", "runtime"},
    "shadow": {"recording", "runtime"},
    "flags": {"runtime"},
    "scaffold": {"runtime"},
    "simulate": {"pipeline", "credentials", "runtime"},
}
LEAVES = {"state", "config", "errors", "loopback", "observe", "tasks", "upstream", "worker"}
"""Every layer may import these."""
COMPOSITION_ROOT = {
    "app",
    "serve",
    "cli",
    "control",
    "dev",
    "credential_parts",
    "pool_parts",
    "sharing",
    "door",
    "peers",
    "workers",
    "init",
    "reload",
    "__main__",
    "__init__",
    "cli_flags",
    "cli_install",
    "flag_command",
    "installing",
    "installed",
}
"""Modules of host that put the parts together and may import all of them."""

GRPC_ALLOWED = ("pluginabi/grpc_channel.py", "pluginabi/_pb/")

IMPORT_ALL = """
import importlib, sys, warnings
warnings.simplefilter("error")
failed = []
for name in sys.argv[1:]:
    try:
        importlib.import_module(name)
    except BaseException as error:
        failed.append(f"{name}: {type(error).__name__}: {error}")
print("\\n".join(failed))
"""


def modules(package: str) -> Iterator[Path]:
    for path in sorted((ROOT / package).rglob("*.py")):
        if "_pb" not in path.parts and "__pycache__" not in path.parts:
            yield path


def imported(path: Path) -> Iterator[tuple[str, int]]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, node.lineno
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import"
            yield node.module or "", node.lineno


def own_module(path: Path, name: str) -> bool:
    """A plugin or example may import the modules of its own folder."""
    own_folder = ".".join(path.parent.relative_to(ROOT).parts)
    return name.startswith(f"{own_folder}.") or (path.parent / f"{name.split('.')[0]}.py").exists()


@pytest.mark.parametrize("package", sorted(ALLOWED_PACKAGES))
def test_a_package_imports_only_the_packages_below_it(package):
    wrong = [
        f"{path.relative_to(ROOT)}:{line}: {name}"
        for path in modules(package)
        for name, line in imported(path)
        if (top := name.split(".")[0]) in FIRST_PARTY
        and top not in ALLOWED_PACKAGES[package]
        and not own_module(path, name)
    ]
    assert wrong == []


def test_inside_the_host_every_import_points_down():
    wrong = []
    for path in modules("host"):
        layer = path.relative_to(ROOT / "host").parts[0].removesuffix(".py")
        if layer in COMPOSITION_ROOT or layer.startswith("cli_"):
            continue
        allowed = LAYERS.get(layer, set()) | LEAVES | {layer}
        for name, line in imported(path):
            parts = name.split(".")
            if parts[0] == "host" and len(parts) > 1 and parts[1] not in allowed:
                wrong.append(f"{path.relative_to(ROOT)}:{line}: {layer} imports {name}")
    assert wrong == []


def test_grpc_is_imported_in_one_channel_module_only():
    wrong = [
        f"{path.relative_to(ROOT)}:{line}"
        for package in ("pluginabi", "pluginapi", "host", "plugins")
        for path in modules(package)
        for name, line in imported(path)
        if name.split(".")[0] in ("grpc", "grpc_health") and not str(path.relative_to(ROOT)).startswith(GRPC_ALLOWED)
    ]
    assert wrong == []


def dotted(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def imported_at_import(path: Path, known: Collection[str]) -> Iterator[str]:
    """The modules of ours that a module needs while it is imported itself."""
    waiting: list[ast.AST] = [ast.parse(path.read_text(encoding="utf-8"))]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in known)
        elif isinstance(node, ast.ImportFrom):
            for name in (f"{node.module}.{alias.name}" for alias in node.names):
                # A module of the package, or a name that the package itself must have by then.
                yield name if name in known else str(node.module)
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            waiting.extend(node.orelse)
        elif not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            waiting.extend(ast.iter_child_nodes(node))


def test_no_module_imports_itself_through_others_so_that_each_can_be_imported_first():
    paths = {dotted(path): path for package in ("pluginabi", "pluginapi", "host") for path in modules(package)}
    graph = {name: set(imported_at_import(path, paths)) & paths.keys() - {name} for name, path in paths.items()}
    try:
        list(TopologicalSorter(graph).static_order())
    except CycleError as error:
        raise AssertionError(f"import cycle: {' -> '.join(reversed(error.args[1]))}") from None


@pytest.mark.parametrize("package", ["pluginabi", "pluginapi", "host"])
def test_every_module_imports_without_warnings(package):
    names = [dotted(path) for path in modules(package) if path.name != "__main__.py"]
    done = subprocess.run(
        [sys.executable, "-c", IMPORT_ALL, *names], cwd=ROOT, capture_output=True, text=True, timeout=100, check=True
    )
    assert done.stdout.strip() == ""


def test_the_host_starts_without_importing_grpc():
    code = "import sys, host.app, host.serve; sys.exit('grpc' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")


def test_the_sdk_imports_only_msgspec_and_pluggy_beside_the_standard_library():
    code = (
        "import sys; before = set(sys.modules); import pluginapi; "
        "print(sorted({m.split('.')[0] for m in set(sys.modules) - before} - set(sys.stdlib_module_names)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True
    )
    # msgspec itself imports typing_extensions where it is installed.
    assert set(ast.literal_eval(done.stdout)) <= {"pluginapi", "pluginabi", "msgspec", "pluggy", "typing_extensions"}
