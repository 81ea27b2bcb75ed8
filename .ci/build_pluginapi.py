"""Builds `jackfield-pluginapi`: the packages `pluginabi` and `pluginapi` alone, for plugin authors.

    python .ci/build_pluginapi.py OUTPUT_DIRECTORY

Version, Python and lower bounds come from the project's own pyproject.toml, so that there is one place to change them.
"""

import shutil
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
NEEDED = ("msgspec", "pluggy")
GRPC = ("grpcio", "grpcio-health-checking", "protobuf")

PYPROJECT = """\
[build-system]
requires = {requires}
build-backend = "hatchling.build"

[project]
name = "jackfield-pluginapi"
version = "{version}"
description = "Write plugins for the Jackfield LLM gateway."
readme = "pluginapi/README.md"
requires-python = "{requires_python}"
license = {{ text = "MIT" }}
dependencies = {dependencies}

[project.optional-dependencies]
grpc = {grpc}

[tool.hatch.build.targets.wheel]
packages = ["pluginabi", "pluginapi"]
exclude = ["**/__pycache__"]
"""


def main(output: Path) -> None:
    """Copy the two packages beside a generated pyproject.toml and build a wheel there."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    metadata = project["project"]

    def bounds(names: tuple[str, ...]) -> list[str]:
        return [line for line in metadata["dependencies"] if line.split(">=")[0] in names]

    output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for package in ("pluginabi", "pluginapi"):
            shutil.copytree(ROOT / package, folder / package, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(ROOT / "LICENSE", folder)
        (folder / "pyproject.toml").write_text(
            PYPROJECT.format(
                requires=project["build-system"]["requires"],
                version=metadata["version"],
                requires_python=metadata["requires-python"],
                dependencies=bounds(NEEDED),
                grpc=bounds(GRPC),
            ),
            encoding="utf-8",
        )
        command = [
            sys.executable,
            "-m",
            "build",
            "--wheel",
            "--no-isolation",
            "--outdir",
            str(output.resolve()),
            str(folder),
        ]
        subprocess.run(command, check=True, cwd=folder)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(Path(sys.argv[1]))
