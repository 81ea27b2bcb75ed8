"""The public surface, and what the package may import."""

import ast
from pathlib import Path

import host.upstream
from host.upstream import UpstreamError


def test_every_public_name_exists_and_every_error_is_an_upstream_error() -> None:
    for name in host.upstream.__all__:
        public = getattr(host.upstream, name)
        if isinstance(public, type) and issubclass(public, Exception):
            assert issubclass(public, UpstreamError)


def test_the_package_is_a_leaf_and_does_without_aiohttp() -> None:
    package = Path(host.upstream.__file__).parent
    imported = {
        module
        for path in package.glob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        for module in (
            [alias.name for alias in node.names]
            if isinstance(node, ast.Import)
            else [node.module or ""]
            if isinstance(node, ast.ImportFrom)
            else []
        )
    }
    assert "host.upstream.client" in imported
    ours = {name for name in imported if name.split(".")[0] in ("host", "pluginabi", "pluginapi", "plugins")}
    assert all(name.startswith("host.upstream") for name in ours)
    assert not any(name.startswith("aiohttp") for name in imported)
