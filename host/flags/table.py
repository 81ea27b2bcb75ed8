"""Which options the enabled plugins bring, and whose each is; from manifests alone, nothing is run."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from host.config.model import Config
from host.flags.values import default_of, known_type, normalised
from host.runtime.discover import Discovery, PluginSource
from host.runtime.manifest import Flag
from host.runtime.plan import is_wanted, section_of


@dataclass(frozen=True, slots=True, kw_only=True)
class PluginFlag:
    """One option: `--name`."""

    name: str
    type: str
    default: str
    description: str
    plugin_id: str


@dataclass(frozen=True, slots=True)
class FlagTable:
    """By name, in the order of their owners: higher priority first, then id."""

    flags: Mapping[str, PluginFlag]
    warnings: tuple[str, ...] = ()
    """Options that were left out, with the reason."""


def flag_table(
    discovery: Discovery, config: Config, *, native: Iterable[str], needed: Callable[[Config], frozenset[str]]
) -> FlagTable:
    """The options of all plugins that `config` wants. A name in `native`, or of a plugin before, is not theirs."""
    taken = dict.fromkeys(native, "Jackfield itself")
    flags: dict[str, PluginFlag] = {}
    warnings: list[str] = []
    for source in _in_order(discovery, config, needed):
        for flag in source.manifest.flags:
            try:
                if flag.name in taken:
                    raise ValueError(f"{taken[flag.name]} has that option already")
                flags[flag.name] = _checked(flag, source.plugin_id)
            except ValueError as error:
                warnings.append(f"plugin {source.plugin_id}: --{flag.name} is left out: {error}")
            else:
                taken[flag.name] = f"the plugin {source.plugin_id}"
    return FlagTable(flags, tuple(warnings))


def _in_order(
    discovery: Discovery, config: Config, needed: Callable[[Config], frozenset[str]]
) -> Iterable[PluginSource]:
    wanted = [source for source in discovery.found if is_wanted(source, config, needed)]
    return sorted(wanted, key=lambda source: (-section_of(config, source.plugin_id).priority, source.plugin_id))


def _checked(flag: Flag, plugin_id: str) -> PluginFlag:
    """Raises ValueError."""
    name = flag.name
    if not name or name.startswith("-") or any(char in " =" or not char.isprintable() for char in name):
        raise ValueError("a name has no leading dash, no blank and no `=`")
    kind = known_type(flag.type)
    if kind is None:
        raise ValueError(f"{flag.type!r} is no type; there are bool, string, int, int64, float64 and duration")
    default = flag.default
    text = str(default).lower() if isinstance(default, bool) else str(default if default is not None else "")
    if not text.strip() and kind != "string":
        text = default_of(kind)
    try:
        text = normalised(kind, text)
    except ValueError as error:
        raise ValueError(f"its default cannot be used: {error}") from None
    return PluginFlag(name=name, type=kind, default=text, description=flag.description, plugin_id=plugin_id)
