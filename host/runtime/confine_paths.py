"""What a confined plugin process may read, beside its own folder and data directory.

Landlock gives rights beneath paths and cannot take some of them back, so what must stay hidden is kept out here: a
directory that holds one of the `hidden` paths is replaced by its other children.
"""

import glob
import os
import shlex
import shutil
import site
import sys
import sysconfig
from collections.abc import Container, Iterable, Iterator, Sequence, Set
from pathlib import Path
from typing import Final

SYSTEM_DIRECTORIES: Final = (
    "/usr",
    "/bin",
    "/sbin",
    "/lib",
    "/lib32",
    "/lib64",
    "/libx32",
    "/nix/store",
    "/gnu/store",
)
"""Programs, libraries and shared data."""
NEVER: Final = ("/usr/local/etc",)
"""Configuration of other programs, in the middle of what is readable."""
SYSTEM_FILES: Final = (
    # The dynamic linker.
    "/etc/ld.so.cache",
    "/etc/ld.so.conf",
    "/etc/ld.so.conf.d",
    "/etc/ld.so.preload",
    # Certificate authorities; not /etc/ssl/private and its like.
    "/etc/ssl/certs",
    "/etc/ssl/cert.pem",
    "/etc/ssl/openssl.cnf",
    "/etc/pki/tls/certs",
    "/etc/pki/tls/cert.pem",
    "/etc/pki/tls/openssl.cnf",
    "/etc/pki/ca-trust/extracted",
    "/etc/ca-certificates/extracted",
    "/etc/crypto-policies",
    # Names: of hosts, services, users and groups (there are no passwords in the latter two).
    "/etc/hosts",
    "/etc/host.conf",
    "/etc/resolv.conf",
    "/etc/nsswitch.conf",
    "/etc/gai.conf",
    "/etc/services",
    "/etc/protocols",
    "/etc/passwd",
    "/etc/group",
    # Time and language.
    "/etc/localtime",
    "/etc/timezone",
    "/etc/locale.alias",
    "/etc/locale.conf",
    "/etc/mime.types",
    "/etc/os-release",
    # What interpreters read when they start.
    "/etc/perl",
    "/etc/fonts",
    "/etc/terminfo",
)
SYSTEM_PATTERNS: Final = ("/etc/java-*",)
OWN_PROCESS_FILES: Final = ("stat", "statm", "status", "maps")
"""In /proc/self: Node and others read their memory use there, and some runtimes where their stack lies."""
PROCESS_SYSTEM_FILES: Final = (
    "/proc/cpuinfo",
    "/proc/meminfo",
    "/proc/stat",
    "/proc/loadavg",
    "/proc/uptime",
    "/proc/version",
    "/sys/devices/system/cpu",
)
"""How many processors and how much memory the machine has. Nothing of other processes."""
READ_DEVICES: Final = ("/dev/urandom", "/dev/random", "/dev/zero", "/dev/full")
WRITE_DEVICES: Final = ("/dev/null",)
_BESIDE_BIN: Final = ("bin", "lib", "lib64", "libexec", "pyvenv.cfg")
"""What belongs to a program in `<prefix>/bin`."""
_SHEBANG_BYTES: Final = 256
_SHEBANGS_DEEP: Final = 4


def system_paths() -> list[Path]:
    """Programs, libraries and the few files of /etc that TLS, names, time and languages need."""
    named = [path for path in (*SYSTEM_DIRECTORIES, *SYSTEM_FILES) if os.path.exists(path)]
    return [Path(path) for path in (*named, *(path for pattern in SYSTEM_PATTERNS for path in glob.glob(pattern)))]


def python_paths() -> list[Path]:
    """The host's interpreter: its installation, the environment it runs in, and packages installed for development."""
    prefixes = {sys.prefix, sys.exec_prefix, sys.base_prefix, sys.base_exec_prefix}
    found = [Path(prefix) for prefix in prefixes if _is_installation(prefix)]
    found += [Path(path) for name, path in sysconfig.get_paths().items() if name.endswith(("lib", "stdlib"))]
    packages = [Path(path) for path in site.getsitepackages()]
    if site.ENABLE_USER_SITE:
        packages.append(Path(site.getusersitepackages()))
    found += packages
    found += _listed_in_pth(packages)
    return found


def _is_installation(prefix: str) -> bool:
    """Not the root, and nobody's home: then only the library directories are shared."""
    return os.path.realpath(prefix) not in {"/", os.path.realpath(os.path.expanduser("~"))}


def _listed_in_pth(packages: Iterable[Path]) -> Iterator[Path]:
    """Directories that `.pth` files put on the path, as a development install does. Our own checkout is none of them:
    what plugins need of it is linked from a directory of their own."""
    for directory in packages:
        for file in sorted(directory.glob("*.pth")):
            for line in file.read_text(encoding="utf-8", errors="replace").splitlines():
                if line.strip() and not line.startswith(("#", "import ", "import\t")):
                    listed = directory / line.strip()
                    if listed.is_dir() and not (listed / "pluginapi").is_dir():
                        yield listed


def program_paths(program: str, *, search_path: str) -> list[Path]:
    """The program of a command and what lies beside it in its prefix; of a script, its interpreters' too.

    A manifest may name any program. That gives nothing away: unless the kernel executes it, no code of the plugin
    ever runs.
    """
    found: list[Path] = []
    for _ in range(_SHEBANGS_DEEP):
        for path in {program, os.path.realpath(program)}:
            found += _with_prefix(Path(path))
        interpreter = _interpreter(program, search_path)
        if interpreter is None:
            break
        program = interpreter
    return found


def _with_prefix(program: Path) -> list[Path]:
    if program.parent.name not in ("bin", "sbin"):
        return [program]
    prefix = program.parent.parent
    home = Path(os.path.expanduser("~"))
    if prefix in (home, Path("/")):
        return [program]
    return [program, *(prefix / name for name in _BESIDE_BIN if (prefix / name).exists())]


def _interpreter(program: str, search_path: str) -> str | None:
    """What the first line of a script names; for `/usr/bin/env NAME` where that is on the plugin's PATH."""
    try:
        with open(program, "rb") as file:
            line = file.read(_SHEBANG_BYTES).split(b"\n", 1)[0]
    except OSError:
        return None
    if not line.startswith(b"#!"):
        return None
    try:
        words = shlex.split(os.fsdecode(line[2:]))
    except ValueError:
        return None
    if not words:
        return None
    if os.path.basename(words[0]) != "env":
        return words[0]
    name = next((word for word in words[1:] if not word.startswith("-") and "=" not in word), None)
    return shutil.which(name, path=search_path) if name is not None else None


def without(paths: Iterable[Path], hidden: Sequence[Path], *, beneath: Container[Path] = ()) -> list[Path]:
    """`paths`, real, each once, without the hidden ones and their insides, and without what lies beneath another one
    or `beneath` these.

    A directory that holds something hidden is replaced by its children, so nothing that is made in it later is
    readable.
    """
    secret = _real(hidden)
    found: dict[Path, None] = {}
    for path in sorted(_real(paths)):
        if not any(parent in found or parent in beneath for parent in (path, *path.parents)):
            found.update(dict.fromkeys(_without(path, secret)))
    return list(found)


def carved(paths: Iterable[Path], hidden: Sequence[Path]) -> list[Path]:
    """As `without`, for paths that are readable although they lie in something hidden: a plugin's own folder, what the
    operator named. Only what lies hidden inside of them stays closed."""
    secret = _real(hidden)
    return [
        found
        for path in sorted(_real(paths))
        for found in _without(path, {inside for inside in secret if path in inside.parents})
    ]


def _real(paths: Iterable[Path]) -> set[Path]:
    return {Path(os.path.realpath(path)) for path in paths}


def _without(path: Path, secret: Set[Path]) -> list[Path]:
    if path in secret or any(parent in secret for parent in path.parents):
        return []
    if not any(path in hidden.parents for hidden in secret):
        return [path]
    try:
        children = sorted(path.iterdir())
    except OSError:
        return []
    return [found for child in children if not child.is_symlink() for found in _without(child, secret)]
