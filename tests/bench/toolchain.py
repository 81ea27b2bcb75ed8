"""Building and installing what the benchmark needs: C programs with gcc, nginx with apt, peers with pip and npm."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from tests.bench.procs import BenchError, child_environment

C_PROGRAMS: Final = ("leash", "upstream", "loadgen")
LITELLM_REQUIREMENT: Final = "litellm[proxy]"
PORTKEY_PACKAGE: Final = {
    "name": "jackfield-bench-portkey",
    "private": True,
    # Newer @hono/node-server releases break every stream of this gateway version on Node.
    "dependencies": {"@portkey-ai/gateway": "1.15.2", "@hono/node-server": "1.14.1"},
    "overrides": {"@hono/node-server": "1.14.1"},
}


def shout(message: str) -> None:
    """Say something that must not be overlooked."""
    print(f"\n*** {message}\n", file=sys.stderr, flush=True)


def _succeeds(argv: Sequence[str], *, timeout_s: float, cwd: Path | None = None) -> bool:
    try:
        done = subprocess.run(
            argv,
            cwd=cwd,
            timeout=timeout_s,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            env=child_environment({"DEBIAN_FRONTEND": "noninteractive"}) | _network_environment(),
            check=False,
        )
    except subprocess.TimeoutExpired:
        shout(f"gave up after {timeout_s:g} s: {' '.join(argv)}")
        return False
    if done.returncode != 0:
        shout(f"failed: {' '.join(argv)}\n{done.stderr.decode(errors='replace')[-2000:]}")
    return done.returncode == 0


def _network_environment() -> dict[str, str]:
    """Installers, unlike contestants, may need the HTTP proxy of this machine."""
    return {key: value for key, value in os.environ.items() if "proxy" in key.lower()}


def build_native(source_dir: Path, target_dir: Path) -> None:
    """Compile the C programs that are older than their source. Raises BenchError without a compiler or on a warning."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    for name in C_PROGRAMS:
        source, target = source_dir / f"{name}.c", target_dir / name
        if target.exists() and target.stat().st_mtime > source.stat().st_mtime:
            continue
        if compiler is None:
            raise BenchError("no C compiler: install gcc (the mock upstream and the load generator are C programs)")
        flags = ["-O2", "-Wall", "-Wextra", "-Werror"]
        if not _succeeds([compiler, *flags, "-o", str(target), str(source)], timeout_s=120):
            raise BenchError(f"{source} does not compile")


def find_nginx() -> str | None:
    """Path of nginx, installed with apt when that is possible; None (and a loud line) when there is none."""
    for candidate in (shutil.which("nginx"), "/usr/sbin/nginx"):
        if candidate and Path(candidate).exists():
            return candidate
    if shutil.which("apt-get") is None or os.geteuid() != 0:
        shout("SKIPPED nginx: not installed, and it takes apt-get and root to install it (package nginx-light)")
        return None
    print("installing nginx-light with apt-get ...", flush=True)
    install = ["apt-get", "install", "-y", "--no-install-recommends", "nginx-light"]
    if not _succeeds(install, timeout_s=300) and not (
        _succeeds(["apt-get", "update"], timeout_s=300) and _succeeds(install, timeout_s=300)
    ):
        shout("SKIPPED nginx: apt-get could not install nginx-light")
        return None
    return shutil.which("nginx") or "/usr/sbin/nginx"


def find_litellm(peers_dir: Path) -> str | None:
    """Path of LiteLLM's command in an environment of its own, made on first use; None when that fails."""
    environment_dir = peers_dir / "litellm"
    command = environment_dir / "bin" / "litellm"
    if command.exists():
        return str(command)
    print(f"installing {LITELLM_REQUIREMENT} into {environment_dir} (once, some minutes) ...", flush=True)
    made = _succeeds([sys.executable, "-m", "venv", str(environment_dir)], timeout_s=120)
    pip = [str(environment_dir / "bin" / "pip"), "install", "--quiet", LITELLM_REQUIREMENT]
    if not (made and _succeeds(pip, timeout_s=1200) and command.exists()):
        shutil.rmtree(environment_dir, ignore_errors=True)
        shout("SKIPPED litellm: it could not be installed with pip")
        return None
    return str(command)


def find_portkey(peers_dir: Path) -> str | None:
    """Path of Portkey's start script, installed with npm on first use; None when that fails."""
    package_dir = peers_dir / "portkey"
    script = package_dir / "node_modules" / "@portkey-ai" / "gateway" / "build" / "start-server.js"
    if script.exists():
        return str(script)
    npm = shutil.which("npm")
    if npm is None or shutil.which("node") is None:
        shout("SKIPPED portkey: it needs node and npm")
        return None
    print(f"installing Portkey into {package_dir} (once) ...", flush=True)
    package_dir.mkdir(parents=True, exist_ok=True)
    (package_dir / "package.json").write_text(json.dumps(PORTKEY_PACKAGE))
    install = [npm, "install", "--legacy-peer-deps", "--no-audit", "--no-fund"]
    if not (_succeeds(install, timeout_s=900, cwd=package_dir) and script.exists()):
        shutil.rmtree(package_dir, ignore_errors=True)
        shout("SKIPPED portkey: it could not be installed with npm")
        return None
    return str(script)
