"""From a manifest's command to a running process: what is executed, where, with which environment and limits."""

import importlib.util
import os
import site
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Final, Literal

from host.runtime.child import ChildProcess
from host.runtime.confine_paths import program_paths
from host.runtime.confinement import (
    ATTACHED,
    SWITCHED_OFF,
    Confinement,
    ConfinementMode,
    ConfinementReport,
    Kernel,
    Wanted,
    plan_confinement,
    this_kernel,
    why_refused,
)
from host.runtime.diagnostics import PluginStartError, crash_report
from host.runtime.guardian import Guardian
from pluginabi.payloads.lifecycle import RegisterRequest
from pluginapi.commands import PASSED_ENVIRONMENT, ProgramNotFound, resolve_words, uses_this_python

LAUNCHER: Final = Path(__file__).with_name("launcher.py")
SDK_PACKAGES: Final = ("pluginapi", "pluginabi")
PIPE_BYTES: Final = 256 * 1024
"""Asked for, where the system can: a body of 100 KB then crosses a pipe in one turn instead of two."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessLimits:
    """What one process may use. `max_inflight` and `max_streams` lower what its hello asks for."""

    memory_bytes: int | None = None
    """RLIMIT_DATA: heap and anonymous mappings. Never the address space, which Node and Go reserve generously."""
    open_files: int | None = None
    max_inflight: int | None = None
    max_streams: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class LaunchSpec:
    """Everything about one generation of a plugin process; built from its manifest and the operator's policy."""

    plugin_id: str
    directory: Path
    """Where `plugin.toml` lies; the command is resolved against it. Becomes JACKFIELD_PLUGIN_DIR."""
    data_dir: Path
    """Working directory of the process; made when it does not exist."""
    register: Callable[[], RegisterRequest]
    """Asked at every start, so that secrets are resolved anew."""
    version: str = ""
    generation: int = 1
    command: tuple[str, ...] = ()
    entry: str = ""
    """`module:Class`; used when there is no command."""
    protocol: Literal["json", "grpc"] = "json"
    transport: Literal["stdio", "unix"] = "stdio"
    environment: Mapping[str, str] = field(default_factory=dict)
    """Names and values that manifest and operator allow, besides the basic ones."""
    limits: ProcessLimits = field(default_factory=ProcessLimits)
    permissions: frozenset[str] = frozenset()
    """For callbacks that belong to no call."""
    secrets: tuple[str, ...] = ()
    """Values that must not appear in its logged stderr."""
    attach: str = ""
    """`unix:/path` of a process somebody else runs: it is connected to, never started and never killed."""
    check: Callable[[], str | None] | None = None
    """Asked in a thread before each start: why the plugin's files must not run, None when they may."""
    runtime_dir: Path | None = None
    """Where socket directories are made; absent: the system's directory for temporary files."""
    confinement: ConfinementMode = "auto"
    read_paths: tuple[Path, ...] = ()
    """What the operator lets it read beside its own."""
    hidden_paths: tuple[Path, ...] = ()
    """What it must not read even where it lies among what every plugin may read."""
    kernel: Kernel = field(default_factory=this_kernel)

    @property
    def confined(self) -> bool:
        """Whether the kernel is asked for anything."""
        return self.confinement != "off" and not self.attach

    @property
    def temporary_dir(self) -> Path:
        """Its own, because it cannot use everybody's."""
        return self.data_dir / "tmp"


def resolve_command(spec: LaunchSpec) -> tuple[str, ...]:
    """The command with absolute paths; see `pluginapi.commands`. Raises PluginStartError (permanent) when there is
    none. Whether it can be executed is for the system to say: see `diagnostics.why_not_executable`."""
    if not spec.command:
        if not spec.entry:
            raise _cannot_start(spec, "the manifest has neither `command` nor `entry`")
        # -B: bytecode is matched by size and second, so a quick edit could run as the version before it.
        return (sys.executable, "-P", "-B", "-m", "pluginapi.run", spec.entry)
    try:
        return resolve_words(spec.command, spec.directory.absolute(), search_path=_path_of(spec))
    except ProgramNotFound as error:
        raise _cannot_start(spec, str(error)) from None


def _cannot_start(spec: LaunchSpec, reason: str) -> PluginStartError:
    return PluginStartError(
        crash_report(spec.plugin_id, phase="start", reason=reason, command=spec.command, permanent=True)
    )


def _path_of(spec: LaunchSpec) -> str:
    return spec.environment.get("PATH") or os.environ.get("PATH") or os.defpath


def build_environment(spec: LaunchSpec) -> dict[str, str]:
    """The complete environment of the process (F27): five basic names, what was allowed, nothing of the host's own.

    TMPDIR where the common directory for temporary files is closed to it.
    """
    environment = {name: os.environ[name] for name in PASSED_ENVIRONMENT if name in os.environ}
    environment["PATH"] = _path_of(spec)
    if confines_files(spec):
        environment["TMPDIR"] = str(spec.temporary_dir)
    environment.update(spec.environment)
    environment["JACKFIELD_PLUGIN_DIR"] = str(spec.directory.absolute())
    if uses_host_python(spec):
        # The host may run from a checkout that is not installed; its own PYTHONPATH is not passed on.
        sdk = sdk_links_dir(spec)
        sdk_path = str(sdk) if sdk is not None else _directory_of_pluginapi()
        paths = (str(spec.directory.absolute()), sdk_path, spec.environment.get("PYTHONPATH", ""))
        environment["PYTHONPATH"] = os.pathsep.join(path for path in paths if path)
    return environment


def _directory_of_pluginapi() -> str:
    package = _directory_of("pluginapi")
    return str(package.parent) if package is not None else ""


def _directory_of(package: str) -> Path | None:
    found = importlib.util.find_spec(package)
    locations = list(found.submodule_search_locations or ()) if found is not None else []
    return Path(locations[0]) if locations else None


def sdk_links_dir(spec: LaunchSpec) -> Path | None:
    """Where a confined plugin finds the SDK of a host that runs from a checkout, links to its packages: the checkout
    itself, with whatever lies in it, stays closed. None when the plugin can read the SDK where it is."""
    if not confines_files(spec) or not uses_host_python(spec) or _directory_of_pluginapi() in site.getsitepackages():
        return None
    return spec.data_dir.parent.absolute() / ".sdk"


def uses_host_python(spec: LaunchSpec) -> bool:
    """Whether the plugin runs under the host's interpreter and may import `pluginapi` from where the host has it."""
    return not spec.command or uses_this_python(spec.command)


def launcher_options(spec: LaunchSpec, environment: Mapping[str, str], guardian_fd: int | None) -> list[str]:
    """The launcher's own arguments; see `host/runtime/launcher.py`."""
    options = ["--no-new-privs", "--core=0"]
    if guardian_fd is not None:
        options.insert(0, f"--guardian-fd={guardian_fd}")
    if spec.limits.memory_bytes is not None:
        options.append(f"--data={spec.limits.memory_bytes}")
    if spec.limits.open_files is not None:
        options.append(f"--nofile={spec.limits.open_files}")
    if "LC_CTYPE" not in environment:
        # The launcher is a Python program, and a Python start may set this one.
        options.append("--unset=LC_CTYPE")
    return options


def confines_files(spec: LaunchSpec) -> bool:
    """Whether the process sees only its own files."""
    return spec.confined and spec.kernel.landlock > 0


def confine(
    spec: LaunchSpec, command: Sequence[str], environment: Mapping[str, str], socket_dir: Path | None
) -> Confinement:
    """What keeps the process in its place. Raises PluginStartError (permanent) when that is required and cannot be.

    Makes the directories that it needs.
    """
    if not spec.confined:
        return Confinement(options=(), report=SWITCHED_OFF, reports_refusals=False)
    sdk = sdk_links_dir(spec)
    wanted = Wanted(
        mode=spec.confinement,
        own_paths=[spec.directory.absolute(), *(link_sdk(sdk) if sdk is not None else ())],
        data_dir=spec.data_dir.absolute(),
        programs=program_paths(command[0], search_path=environment["PATH"]),
        python=uses_host_python(spec),
        read_paths=spec.read_paths,
        hidden=spec.hidden_paths,
        socket_dir=socket_dir,
        network="network" in spec.permissions,
    )
    confinement = plan_confinement(wanted, spec.kernel)
    if reason := why_refused(confinement.report):
        raise _cannot_start(spec, reason)
    return confinement


def attached_confinement(spec: LaunchSpec) -> ConfinementReport:
    """None: somebody else runs the process. Raises PluginStartError (permanent) when it is required."""
    if spec.confinement == "required":
        raise _cannot_start(spec, "its confinement is required, and an attached process has none")
    return ATTACHED


def link_sdk(directory: Path) -> list[Path]:
    """Make the links to the SDK's packages; what has to be readable for them."""
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    readable = [directory]
    for name in SDK_PACKAGES:
        package = _directory_of(name)
        if package is None:
            continue
        readable.append(package.resolve())
        link = directory / name
        if not link.is_symlink() or Path(os.readlink(link)) != package.resolve():
            # Replaced in one step: another plugin may be importing through it.
            staged = directory / f".{name}-{os.getpid()}"
            staged.unlink(missing_ok=True)
            staged.symlink_to(package.resolve())
            staged.replace(link)
    return readable


@dataclass(slots=True)
class Spawned:
    """A started process and our ends of its pipes; whoever takes an end owns it from then on."""

    child: ChildProcess
    command: tuple[str, ...]
    stdin_fd: int
    stdout_fd: int
    stderr_fd: int
    confinement: ConfinementReport
    report_fd: int = -1
    """Our end of the socket that brings the listener of its filter; -1: there is none."""


def spawn(spec: LaunchSpec, guardian: Guardian | None, socket_dir: Path | None = None) -> Spawned:
    """Start the process in a session of its own, confined. Raises PluginStartError when that is impossible.

    Blocks for a few milliseconds. Must be called on the event loop's thread.
    Never with `preexec_fn` (F18): what has to happen in the child is the launcher's work.
    """
    command = resolve_command(spec)
    environment = build_environment(spec)
    passed: list[int] = []
    ours = -1
    try:
        spec.data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        confinement = confine(spec, command, environment, socket_dir)
        if confines_files(spec):
            spec.temporary_dir.mkdir(mode=0o700, exist_ok=True)
        guardian_fd = guardian.write_end() if guardian is not None else None
        options = launcher_options(spec, environment, guardian_fd)
        passed += [] if guardian_fd is None else [guardian_fd]
        if confinement.reports_refusals:
            ours, theirs = (end.detach() for end in socket.socketpair())
            options.append(f"--report-fd={theirs}")
            passed.append(theirs)
        options += confinement.options
        popen = _popen(spec, [*options, "--", *command], environment, passed)
    except OSError as error:
        if ours >= 0:
            os.close(ours)
        raise PluginStartError(
            crash_report(spec.plugin_id, phase="start", reason=f"cannot start a process: {error}", command=command)
        ) from error
    finally:
        if ours >= 0:
            os.close(theirs)
    if guardian is not None:
        guardian.watch(popen.pid)
    assert popen.stdin is not None and popen.stdout is not None and popen.stderr is not None
    stdin_fd, stdout_fd, stderr_fd = (_detached(pipe) for pipe in (popen.stdin, popen.stdout, popen.stderr))
    popen.stdin = popen.stdout = popen.stderr = None
    _enlarge((stdin_fd, stdout_fd))
    return Spawned(
        ChildProcess(popen), command, stdin_fd, stdout_fd, stderr_fd, confinement=confinement.report, report_fd=ours
    )


def _popen(
    spec: LaunchSpec, arguments: Sequence[str], environment: Mapping[str, str], passed: Sequence[int]
) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-I", "-S", str(LAUNCHER), *arguments],
        bufsize=0,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment,
        cwd=spec.data_dir,
        start_new_session=True,
        pass_fds=passed,
    )


def _detached(pipe: IO[bytes] | None) -> int:
    """A descriptor of our own for a pipe end, so that no other object closes it."""
    assert pipe is not None
    fd = os.dup(pipe.fileno())
    pipe.close()
    return fd


def _enlarge(fds: Sequence[int]) -> None:
    if not sys.platform.startswith("linux"):
        return
    import fcntl

    for fd in fds:
        try:
            fcntl.fcntl(fd, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
        except OSError:
            return  # the user's share of pipe memory is used up; smaller pipes work as well
