"""Compilers for plugins in Go, Rust and C: what is there, and building with caches below `build/`."""

import fcntl
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CACHE = ROOT / "build" / "languages"
BUILD_S = 110
COMPILERS = {"go": "go", "rust": "cargo", "c": "cc"}
"""Program by language, as folders and `--lang` name it."""


def need(program: str) -> None:
    """Skip the test where `program` is missing; in CI nothing is skipped, it fails there."""
    if shutil.which(program) is None and os.environ.get("CI") != "true":
        pytest.skip(f"needs {program}: sh tests/install_tools.sh")


def environment(**more: str) -> dict[str, str]:
    """The developer's own, but with caches of ours, so that a second run compiles nothing; warnings are errors."""
    ours = {
        "GOCACHE": str(CACHE / "go"),
        "GOFLAGS": "",
        "GOTOOLCHAIN": "local",
        "CARGO_TARGET_DIR": str(CACHE / "cargo"),
        "CARGO_PROFILE_DEV_DEBUG": "0",
        "CARGO_INCREMENTAL": "0",
        "PROFILE": "dev",
        "RUSTFLAGS": "-D warnings",
        "CFLAGS": "-O1 -Wall -Wextra -Werror",
    }
    return {**os.environ, **ours, **more}


@contextmanager
def one_at_a_time() -> Iterator[None]:
    """Test processes build one after the other, in the same folders."""
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def run(*command: str, cwd: Path, **more: str) -> str:
    """What a command that has to succeed prints, with the caches in its environment."""
    done = subprocess.run(
        command, cwd=cwd, env=environment(**more), capture_output=True, text=True, timeout=BUILD_S, check=False
    )
    assert done.returncode == 0, f"{' '.join(command)} in {cwd}\n{done.stdout}{done.stderr}"
    return done.stdout


def make(folder: Path, *targets: str) -> str:
    """`make` in a plugin's folder."""
    with one_at_a_time():
        return run("make", *targets, cwd=folder)
