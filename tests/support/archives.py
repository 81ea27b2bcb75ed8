"""Archives and registries for tests, well-formed and hostile ones."""

import hashlib
import json
import stat
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

MANIFEST = 'id = "greeter"\nversion = "{version}"\ncommand = ["./main"]\n'


def manifest_text(version: str = "1.0.0", more: str = "") -> str:
    """A `plugin.toml` of the plugin `greeter`."""
    return MANIFEST.format(version=version) + more


def write_zip(path: Path, files: Mapping[str, str | bytes], *, modes: Mapping[str, int] | None = None) -> Path:
    """A zip of `files` (name to content, names taken as they are); `modes` are whole st_mode values by name."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as out:
        for name, content in files.items():
            info = zipfile.ZipInfo("x")
            info.filename = info.orig_filename = name
            mode = (modes or {}).get(name, stat.S_IFDIR | 0o755 if name.endswith("/") else stat.S_IFREG | 0o644)
            # Never 0: the library would make up a mode then.
            info.create_system, info.external_attr = 3, mode << 16 | 1
            info.compress_type = zipfile.ZIP_STORED if name.endswith("/") else zipfile.ZIP_DEFLATED
            out.writestr(info, content)
    return path


def plugin_zip(path: Path, *, version: str = "1.0.0", more: str = "", **files: str) -> Path:
    """A zip with `plugin.toml` and an executable `main`."""
    contents = {"plugin.toml": manifest_text(version, more), "main": "#!/bin/sh\n", **files}
    return write_zip(path, contents, modes={"main": stat.S_IFREG | 0o755})


def plugin_wheel(
    path: Path, *, more: Mapping[str, str] | None = None, metadata: str = "", tag: str = "py3-none-any"
) -> Path:
    """A wheel whose package `acme_greeter` is the plugin `greeter`."""
    record = "acme_greeter-1.0.0.dist-info"
    return write_zip(
        path,
        {
            "acme_greeter/__init__.py": "",
            "acme_greeter/plugin.toml": 'id = "greeter"\nversion = "1.0.0"\nentry = "hooks:Greeter"\n',
            "acme_greeter/hooks.py": "from pluginapi import Plugin\n",
            f"{record}/WHEEL": f"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: {tag}\n",
            f"{record}/METADATA": f"Metadata-Version: 2.1\nName: acme-greeter\nVersion: 1.0.0\n{metadata}",
            f"{record}/entry_points.txt": "[jackfield.plugins]\ngreeter = acme_greeter\n",
            f"{record}/RECORD": "",
            **(more or {}),
        },
    )


def sha256_of(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def registry_entry(plugin_id: str = "greeter", **fields: Any) -> dict[str, Any]:
    """A valid entry; a field given as None is left out."""
    entry = {
        "id": plugin_id,
        "name": "Greeter",
        "description": "Greets.",
        "author": "Acme",
        "repository": "https://github.com/acme/greeter",
        "version": "1.0.0",
        **fields,
    }
    return {name: value for name, value in entry.items() if value is not None}


def registry_text(*entries: Any, schema_version: Any = 1) -> bytes:
    return json.dumps({"schema_version": schema_version, "plugins": list(entries)}).encode()


def zip_of_folder(path: Path, folder: Path) -> Path:
    """A zip of a plugin's folder as it is."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as out:
        for file in sorted(folder.rglob("*")):
            if file.is_file():
                out.write(file, file.relative_to(folder))
    return path
