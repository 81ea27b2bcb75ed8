"""`plugin.toml`: what a plugin says about itself before anything of it runs. Unknown keys are errors."""

import difflib
import re
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Literal, NoReturn, TypeAlias

import msgspec
from msgspec import Struct, field

from host.config.values import seconds
from host.runtime.projection import parse_inputs
from host.runtime.toml_lines import line_of
from pluginabi.methods import PERMISSIONS, PLUGIN_METHODS

MANIFEST_NAME: Final = "plugin.toml"
ID_PATTERN: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_ENTRY_PATTERN: Final = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")
_ENVIRONMENT_PATTERN: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")

Carrier: TypeAlias = Literal["inprocess", "process"]
ConfigType: TypeAlias = Literal["string", "number", "integer", "boolean", "enum", "array", "object"]


class ManifestError(Exception):
    """A manifest that cannot be used: which file, which line, what is wrong and what would be right."""

    def __init__(self, path: Path | str, line: int | None, problem: str) -> None:
        super().__init__(f"{path}:{line}: {problem}" if line is not None else f"{path}: {problem}")
        self.path: Final = str(path)
        self.line: Final = line
        self.problem: Final = problem


class ConfigField(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One `[[config]]` entry; for display and for masking, the plugin validates its own config."""

    name: str
    type: ConfigType = "string"
    description: str = ""
    default: Any = None
    values: Sequence[str] = ()
    """The choices of an `enum`."""
    secret: bool = False
    """Masked wherever the host shows the config; the plugin itself gets the value."""
    required: bool = False
    file: bool = False
    """Its value names a file, relative to the config file, that the process has to read, together with what lies beside
    it. Bundled plugins only: for others the operator says so with `read-paths`."""


class Flag(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One `[[flags]]` entry: a command-line flag that runs `command_line.execute`."""

    name: str
    type: str = "bool"
    """`bool`, `string`, `int`, `int64`, `float64` or `duration`; an option of any other type is left out."""
    description: str = ""
    default: str | int | float | bool | None = None


class ManifestLimits(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the plugin asks for; the operator may lower or raise it. None: the host's default."""

    memory_mb: int | None = None
    max_inflight: int | None = None
    open_files: int | None = None


class DevSettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The `[dev]` table: what `jackfield plugins dev` does with the plugin. A gateway in production ignores it."""

    build: Sequence[str] = ()
    """Command that builds the plugin, run in its folder when a file changed."""
    config: Mapping[str, Any] = field(default_factory=dict)
    """The plugin's configuration while it is developed."""
    model: str = "echo"
    """Model of the request that is suggested."""
    message: str = "Hello, Jackfield"
    stream: bool = False
    headers: Mapping[str, str] = field(default_factory=dict)
    body: Mapping[str, Any] = field(default_factory=dict)
    """More members of the suggested request's body."""


class Manifest(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The content of `plugin.toml`; only `id` and `version` are required."""

    id: str
    version: str
    name: str = ""
    description: str = ""
    author: str = ""
    repository: str = ""
    logo: str = ""
    runtime: Carrier = "process"
    protocol: Literal["json", "grpc"] = "json"
    transport: Literal["stdio", "unix"] = "stdio"
    command: Sequence[str] = ()
    entry: str = ""
    """`module:Class`, relative to the plugin's folder."""
    capabilities: Sequence[str] = ()
    """Methods, for display and for the time before the first hello; what counts is hello and registration."""
    permissions: Sequence[str] = ()
    http_hosts: Sequence[str] = ()
    environment: Sequence[str] = ()
    inputs: Mapping[str, Sequence[str]] = field(default_factory=dict)
    limits: ManifestLimits = field(default_factory=ManifestLimits)
    timeouts: Mapping[str, str | int | float] = field(default_factory=dict)
    on_error: Mapping[str, Literal["fail", "skip"]] = field(default_factory=dict)
    config: Sequence[ConfigField] = ()
    flags: Sequence[Flag] = ()
    dev: DevSettings = field(default_factory=DevSettings)
    """For `jackfield plugins dev` only: `build`, `config`, and the request it suggests (`model`, `message`, `stream`,
    `headers`, `body`)."""

    @property
    def methods(self) -> tuple[str, ...]:
        """Methods the manifest names anywhere: all that is known of a plugin whose hello was never seen."""
        named = (*self.capabilities, *self.inputs, *self.timeouts, *self.on_error)
        return tuple(method for method in dict.fromkeys(named) if not method.startswith("plugin."))

    @property
    def secret_fields(self) -> frozenset[str]:
        return frozenset(item.name for item in self.config if item.secret)

    @property
    def file_fields(self) -> frozenset[str]:
        return frozenset(item.name for item in self.config if item.file)


def is_plugin_id(text: str) -> bool:
    """Whether `text` may name a plugin: 1 to 128 of letters, digits, `.`, `_`, `-`, the first a letter or digit."""
    return ID_PATTERN.fullmatch(text) is not None


def load_manifest(directory: Path) -> Manifest:
    """Read `directory/plugin.toml`. Raises ManifestError for anything wrong with it, OSError when it cannot be read."""
    path = directory / MANIFEST_NAME
    try:
        text = path.read_text("utf-8")
    except UnicodeDecodeError as error:
        raise ManifestError(path, None, f"is not UTF-8 (byte {error.start})") from None
    return parse_manifest(text, path)


def parse_manifest(text: str, path: Path | str = MANIFEST_NAME) -> Manifest:
    """A manifest from its text; `path` is only for messages. Raises ManifestError."""
    try:
        values = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ManifestError(path, _line_of_syntax_error(str(error), text), f"is not valid TOML: {error}") from None
    return _Reader(text, path).read(values)


class _Reader:
    """Checks one manifest from the outside in, so that the first message is the most helpful one."""

    def __init__(self, text: str, path: Path | str) -> None:
        self._text = text
        self._path = path

    def read(self, values: Mapping[str, Any]) -> Manifest:
        self._refuse_unknown(values, Manifest, ())
        for key, struct in (("config", ConfigField), ("flags", Flag)):
            items = values.get(key)
            if isinstance(items, list):
                for index, item in enumerate(items):
                    self._refuse_unknown(item, struct, (key, index))
        self._refuse_unknown(values.get("limits"), ManifestLimits, ("limits",))
        self._refuse_unknown(values.get("dev"), DevSettings, ("dev",))
        for key in ("id", "version"):
            if key not in values:
                self._fail((), f"the key {key!r} is missing")
        if values.get("protocol") == "grpc" and values.get("transport") == "stdio":
            self._fail(("transport",), 'protocol = "grpc" needs a socket: leave transport out or say "unix"')
        on_error = values.get("on_error")
        for method, mode in on_error.items() if isinstance(on_error, dict) else ():
            if mode not in ("fail", "skip"):
                self._fail(("on_error", method), f'on_error is "fail" or "skip", not {mode!r}')
        manifest = self._convert(values)
        self._check(manifest)
        return manifest

    def _convert(self, values: Mapping[str, Any]) -> Manifest:
        try:
            return msgspec.convert(values, Manifest)
        except msgspec.ValidationError as error:
            message, _, where = str(error).partition(" - at ")
            self._fail(_path_of(where), f"{where.strip('`').removeprefix('$.')}: {message}")

    def _check(self, manifest: Manifest) -> None:
        if not is_plugin_id(manifest.id):
            self._fail(
                ("id",),
                f"{manifest.id!r} is no plugin id: 1 to 128 letters, digits, dots, underscores and dashes,"
                " starting with a letter or digit",
            )
        if not manifest.version.strip():
            self._fail(("version",), "the version is blank")
        if manifest.entry and _ENTRY_PATTERN.fullmatch(manifest.entry) is None:
            self._fail(("entry",), f"{manifest.entry!r} is no entry; write module:Class")
        self._check_carrier(manifest)
        self._closed_list("permissions", manifest.permissions, PERMISSIONS, "permission")
        self._closed_list("capabilities", manifest.capabilities, PLUGIN_METHODS, "method")
        for name in manifest.environment:
            if _ENVIRONMENT_PATTERN.fullmatch(name) is None:
                self._fail(("environment",), f"{name!r} is no name of an environment variable")
        self._check_tables(manifest)
        for index, item in enumerate(manifest.config):
            if item.type == "enum" and not item.values:
                self._fail(("config", index), f"the enum {item.name!r} has no values")

    def _check_carrier(self, manifest: Manifest) -> None:
        if manifest.runtime == "inprocess":
            if not manifest.entry:
                self._fail(("runtime",), 'runtime = "inprocess" needs entry = "module:Class"')
        elif not manifest.command and not manifest.entry:
            self._fail((), "there is neither a command nor an entry, so nothing can be started")
        if manifest.command and not manifest.command[0].strip():
            self._fail(("command",), "the command is blank")

    def _check_tables(self, manifest: Manifest) -> None:
        for table in ("inputs", "timeouts", "on_error"):
            for method in getattr(manifest, table):
                if method not in PLUGIN_METHODS:
                    self._fail((table, method), f"{method!r} is no method{_nearest(method, PLUGIN_METHODS)}")
        for method, words in manifest.inputs.items():
            try:
                parse_inputs(words)
            except ValueError as error:
                self._fail(("inputs", method), str(error))
        for method, duration in manifest.timeouts.items():
            try:
                value_s = seconds(duration)
            except ValueError as error:
                self._fail(("timeouts", method), str(error))
            if value_s <= 0:
                self._fail(("timeouts", method), "a deadline of 0 would fail every call")
        for name, value in msgspec.structs.asdict(manifest.limits).items():
            if value is not None and value <= 0:
                self._fail(("limits", name), f"{name} must be at least 1")

    def _closed_list(self, key: str, words: Sequence[str], known: Iterable[str], kind: str) -> None:
        for word in words:
            if word not in known:
                self._fail((key,), f"{word!r} is no {kind}{_nearest(word, known)}")

    def _refuse_unknown(self, values: Any, struct: type[Struct], path: tuple[str | int, ...]) -> None:
        if not isinstance(values, Mapping):
            return
        known = struct.__struct_fields__
        for key in values:
            if key not in known:
                self._fail((*path, key), f"unknown key {key!r}{_nearest(key, known)}")

    def _fail(self, path: Sequence[str | int], problem: str) -> NoReturn:
        raise ManifestError(self._path, line_of(self._text, path) if path else None, problem)


def _nearest(word: str, known: Iterable[str]) -> str:
    match = difflib.get_close_matches(word, list(known), n=1)
    return f", did you mean {match[0]!r}?" if match else f"; known: {', '.join(known)}"


def _path_of(where: str) -> tuple[str | int, ...]:
    """The path in a validation message of msgspec, like `$.limits.memory_mb` or `$.config[0].type`."""
    return tuple(int(part) if part.isdigit() else part for part in re.findall(r"[A-Za-z_]\w*|(?<=\[)\d+", where))


def _line_of_syntax_error(message: str, text: str) -> int:
    match = re.search(r"line (\d+)", message)
    return int(match[1]) if match else max(1, len(text.splitlines()))
