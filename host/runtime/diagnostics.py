"""Why a plugin could not be started or died: a report an operator can act on."""

import errno
import os
import platform
import shutil
import signal
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from msgspec import Struct

from host.runtime.launcher import EXIT_NOT_CONFINED, EXIT_NOT_EXECUTABLE, EXIT_NOT_FOUND, LAUNCHER_PREFIX
from pluginabi.errors import Phase

REPORT_STDERR_LINES: Final = 40
MAX_LAST_WORDS_CHARS: Final = 300

_ELF_MACHINES: Final[Mapping[int, str]] = {3: "i386", 40: "arm", 62: "x86_64", 183: "aarch64", 243: "riscv64"}
_MACHINE_NAMES: Final[Mapping[str, str]] = {"amd64": "x86_64", "arm64": "aarch64", "i686": "i386"}
_SIGNAL_HINTS: Final[Mapping[int, str]] = {
    signal.SIGKILL: "killed from outside: by the host when it was too long silent, by the system when memory ran out",
    signal.SIGSEGV: "a native library or the runtime itself crashed",
    signal.SIGABRT: "the runtime gave up; its last words are on stderr",
    signal.SIGSYS: "a system call was refused by a sandbox",
}


class CrashReport(Struct, frozen=True, kw_only=True):
    """How a plugin process ended, or why it never became ready."""

    plugin_id: str
    phase: Phase
    reason: str
    """One sentence, complete without the rest."""
    exit_code: int | None = None
    signal_name: str | None = None
    stderr: Sequence[str] = ()
    """The last lines it wrote, secrets masked."""
    hint: str = ""
    """What to do about it, when that is known."""
    permanent: bool = False
    """Trying again cannot help: only another command, manifest, version or configuration can."""
    confined: bool = False
    """It saw only its own files, and ended before it was greeted: it may have missed one."""

    def sentence(self) -> str:
        """Reason, how it ended, and the hint, or what it wrote last when there is none."""
        parts = [self.reason]
        if self.signal_name is not None:
            parts.append(f"killed by {self.signal_name}")
        elif self.exit_code is not None:
            parts.append(f"exit code {self.exit_code}")
        if self.hint:
            parts.append(self.hint)
        elif last := next((line.strip() for line in reversed(self.stderr) if line.strip()), ""):
            parts.append(f"its last words: {last[:MAX_LAST_WORDS_CHARS]}")
        if self.confined and self.exit_code:
            parts.append("it ran confined to its own folder and the system's programs (docs/confinement.md)")
        return "; ".join(parts)


class PluginStartError(Exception):
    """A plugin process did not become ready; `report` says why."""

    def __init__(self, report: CrashReport) -> None:
        super().__init__(f"plugin {report.plugin_id!r} did not start: {report.sentence()}")
        self.report: Final = report


def crash_report(
    plugin_id: str,
    *,
    phase: Phase,
    reason: str,
    returncode: int | None = None,
    stderr: Sequence[str] = (),
    command: Sequence[str] = (),
    search_path: str | None = None,
    permanent: bool = False,
    confined: bool = False,
) -> CrashReport:
    """Put a report together; the hint is found by looking at the exit status and at the command's file.

    A command that could not be executed is permanent. `search_path` is the plugin's PATH.
    """
    signal_name = None
    not_executable = returncode in (EXIT_NOT_EXECUTABLE, EXIT_NOT_FOUND)
    hint = ""
    if not_executable and command:
        hint = why_not_executable(Path(command[0]), search_path=search_path) or ""
    elif returncode is not None and returncode < 0:
        hint = _SIGNAL_HINTS.get(-returncode, "")
    launcher_spoke = any(line.startswith(LAUNCHER_PREFIX) for line in stderr)
    never_ran = (not_executable and (bool(hint) or launcher_spoke)) or (
        returncode == EXIT_NOT_CONFINED and launcher_spoke
    )
    if returncode is not None and returncode < 0:
        try:
            signal_name = signal.Signals(-returncode).name
        except ValueError:
            signal_name = f"signal {-returncode}"
    return CrashReport(
        plugin_id=plugin_id,
        phase=phase,
        reason=reason,
        exit_code=returncode if returncode is not None and returncode >= 0 else None,
        signal_name=signal_name,
        stderr=tuple(stderr[-REPORT_STDERR_LINES:]),
        hint=hint,
        permanent=permanent or never_ran,
        confined=confined and not never_ran,
    )


def mistake_report(plugin_id: str, error: Exception, *, phase: Phase, stderr: Sequence[str]) -> CrashReport:
    """The report of a life that an error in the host ended, one that nobody foresaw."""
    reason = f"an error in the host: {type(error).__name__}: {error}"
    return CrashReport(plugin_id=plugin_id, phase=phase, reason=reason, stderr=tuple(stderr[-REPORT_STDERR_LINES:]))


def why_not_executable(path: Path, *, search_path: str | None = None) -> str | None:
    """A sentence that says why the system refused to run `path`, or None when nothing seems wrong with it.

    Asked after the fact only: a foreign binary may well run where an emulator is registered for it.
    """
    try:
        with open(path, "rb") as file:
            head = file.read(4096)
    except FileNotFoundError:
        return f"{path} does not exist"
    except IsADirectoryError:
        return f"{path} is a directory"
    except OSError as error:
        # A binary may be executable without being readable: nothing to be found out about it.
        return None if error.errno == errno.EACCES and os.access(path, os.X_OK) else f"{path}: {error.strerror}"
    if not os.access(path, os.X_OK):
        return f"{path} is not executable: chmod +x {path}"
    if head.startswith(b"#!"):
        return _why_bad_shebang(path, head, search_path)
    if head.startswith(b"\x7fELF"):
        return _why_wrong_machine(path, head)
    if head.startswith((b"MZ", b"\xcf\xfa\xed\xfe", b"\xfe\xed\xfa\xcf")):
        return f"{path} is a program for another operating system"
    return f"{path} has no #! line and is no program of this system; begin it with one, such as #!/usr/bin/env python3"


def _why_bad_shebang(path: Path, head: bytes, search_path: str | None) -> str | None:
    line = head.split(b"\n", 1)[0]
    if line.endswith(b"\r"):
        return f"{path} has Windows line ends, so its interpreter is not found: convert it to Unix line ends"
    words = os.fsdecode(line[2:]).split()
    if not words:
        return f"{path} has an empty #! line"
    interpreter = words[0]
    if not os.path.isabs(interpreter):
        return (
            f"the #! line of {path} names {interpreter}, which is no absolute path; write #!/usr/bin/env {interpreter}"
        )
    if not os.path.exists(interpreter):
        return f"the #! line of {path} names {interpreter}, which does not exist"
    if not os.access(interpreter, os.X_OK):
        return f"the #! line of {path} names {interpreter}, which is not executable"
    if os.path.basename(interpreter) == "env":
        program = next((word for word in words[1:] if not word.startswith("-") and "=" not in word), None)
        if program is not None and shutil.which(program, path=search_path) is None:
            return f"the #! line of {path} asks for {program}, which is not on PATH"
    return None


def _why_wrong_machine(path: Path, head: bytes) -> str | None:
    byte_order = "big" if head[5:6] == b"\x02" else "little"
    number = int.from_bytes(head[18:20], byte_order)  # type: ignore[arg-type]  # one of the two literals
    built_for = _ELF_MACHINES.get(number, f"machine type {number}")
    here = _MACHINE_NAMES.get(platform.machine(), platform.machine())
    if built_for != here and {built_for, here} != {"i386", "x86_64"}:
        return f"{path} was built for {built_for}, this machine is {here}"
    return None
