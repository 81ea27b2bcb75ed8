"""What loading tidies up: blanks, duplicates, entries that cannot work (spec credentials 7.2)."""

from collections.abc import Sequence
from typing import NamedTuple

from msgspec.structs import replace

from host.config.model import ApiKey, CompatProvider, Config, ProviderKey


class Dropped(NamedTuple):
    """An entry of a list that is not used."""

    section: str
    position: int
    why: str
    repeats: int = -1
    """The place, among those that are used, of the entry that it repeats; -1 when it could do nothing anyway."""

    @property
    def path(self) -> str:
        """Of the key."""
        return f"{self.section}[{self.position}]"


Removed = list[Dropped]


def sanitise(config: Config) -> tuple[Config, Removed]:
    """The same config without entries that can have no effect, and what was dropped, for the start-up warnings."""
    removed: Removed = []
    sources = tuple(source.strip() for source in config.plugins.store_sources if source.strip())
    plugins = replace(config.plugins, dir=config.plugins.dir.strip() or "plugins", store_sources=sources)
    return (
        replace(
            config,
            host=config.host.strip().removeprefix("[").removesuffix("]") or "127.0.0.1",
            api_keys=_api_keys(config.api_keys),
            gemini_api_key=_provider_keys(config.gemini_api_key, "gemini-api-key", removed),
            claude_api_key=_provider_keys(config.claude_api_key, "claude-api-key", removed),
            codex_api_key=_provider_keys(config.codex_api_key, "codex-api-key", removed),
            vertex_api_key=_provider_keys(config.vertex_api_key, "vertex-api-key", removed),
            openai_compatibility=_compat(config.openai_compatibility, removed),
            remote_management=replace(config.remote_management, secret_key=config.remote_management.secret_key.strip()),
            max_retry_credentials=max(0, config.max_retry_credentials),
            plugins=plugins,
        ),
        removed,
    )


def _api_keys(keys: Sequence[ApiKey]) -> tuple[ApiKey, ...]:
    seen: dict[str, ApiKey] = {}
    for item in keys:
        key = item.key.strip()
        if key and key not in seen:
            seen[key] = ApiKey(key=key, name=item.name.strip())
    return tuple(seen.values())


def _provider_keys(keys: Sequence[ProviderKey], section: str, removed: Removed) -> tuple[ProviderKey, ...]:
    kept: dict[tuple[object, ...], tuple[int, ProviderKey]] = {}
    for index, item in enumerate(keys):
        entry = _tidy(item, section)
        # What the id of the credential is made of: entries that differ in it are different credentials.
        headers = tuple(sorted((name.lower(), value) for name, value in entry.headers.items())) if entry.headers else ()
        identity = (entry.api_key, entry.base_url, entry.proxy_url, entry.prefix, headers)
        if (missing := _missing(entry, section)) is not None:
            removed.append(Dropped(section, index, f"`{section}` entry without `{missing}` is ignored"))
        elif (first := kept.get(identity)) is not None:
            why = f"`{section}` entry repeats an earlier one and is ignored"
            removed.append(Dropped(section, index, why, first[0]))
        else:
            kept[identity] = len(kept), entry
    return tuple(entry for _, entry in kept.values())


def usable(item: ProviderKey, section: str) -> ProviderKey | None:
    """An entry as loading takes it; None when it can have no effect."""
    entry = _tidy(item, section)
    return entry if _missing(entry, section) is None else None


def _tidy(item: ProviderKey, section: str) -> ProviderKey:
    """The entry without stray blanks: the very same where there are none."""
    fields: dict[str, object] = {}
    if (api_key := item.api_key.strip()) != item.api_key:
        fields["api_key"] = api_key
    if (base_url := item.base_url.strip().rstrip("/")) != item.base_url:
        fields["base_url"] = base_url
    if (proxy_url := item.proxy_url.strip()) != item.proxy_url:
        fields["proxy_url"] = proxy_url
    if item.excluded_models:
        fields["excluded_models"] = tuple(
            sorted({name.strip().lower() for name in item.excluded_models if name.strip()})
        )
    if section == "vertex-api-key" and item.models:
        fields["models"] = [model for model in item.models if model.name.strip() and model.alias.strip()]
    fields |= _common(item)
    return replace(item, **fields) if fields else item


def _missing(entry: ProviderKey, section: str) -> str | None:
    """The key without which an entry can do nothing: there is no default address for codex, and no keyless vertex."""
    if section == "codex-api-key":
        return None if entry.base_url else "base-url"
    if section == "vertex-api-key" or not entry.base_url:
        return None if entry.api_key else "api-key"
    return None


def _compat(providers: Sequence[CompatProvider], removed: Removed) -> tuple[CompatProvider, ...]:
    kept = []
    for index, item in enumerate(providers):
        entry = replace(item, name=item.name.strip(), base_url=item.base_url.strip().rstrip("/"), **_common(item))
        if entry.base_url:
            kept.append(entry)
        else:
            why = f"provider `{item.name}` without `base-url` is ignored"
            removed.append(Dropped("openai-compatibility", index, why))
    return tuple(kept)


def _common(entry: ProviderKey | CompatProvider) -> dict[str, object]:
    """What changes of the fields that both kinds of entries have."""
    fields: dict[str, object] = {}
    if entry.prefix:
        prefix = entry.prefix.strip().strip("/").strip()
        fields["prefix"] = "" if "/" in prefix else prefix
    if entry.headers:
        pairs = ((name.strip(), value.strip()) for name, value in entry.headers.items())
        headers = {name: value for name, value in pairs if name and value}
        if headers != entry.headers:
            fields["headers"] = headers
    return fields
