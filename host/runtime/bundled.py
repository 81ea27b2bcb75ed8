"""First-party plugins: where they lie, and which of them a configuration needs."""

import importlib.util
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from host.config.model import Config

BUNDLED_PACKAGE: Final = "plugins"


def bundled_dir() -> Path | None:
    """The folder of the plugins that come with the gateway (package data of the wheel); None when it was left out."""
    spec = importlib.util.find_spec(BUNDLED_PACKAGE)
    locations = spec.submodule_search_locations if spec is not None else None
    return Path(next(iter(locations))) if locations else None


def bundled_needed(config: Config) -> frozenset[str]:
    """Ids of the bundled plugins that run under `config`, whatever `plugins.enabled` says.

    A provider runs when its section has an entry, the demo only when it is switched on. Other bundled plugins run when
    their section of `plugins.configs` says `enabled`.
    """
    needed = {
        "openai-compat": bool(config.openai_compatibility),
        "claude": bool(config.claude_api_key),
        "gemini": bool(config.gemini_api_key),
        "echo": config.demo,
        "demo-router": config.demo,
    }
    enabled = {plugin_id for plugin_id, section in config.plugins.configs.items() if section.enabled}
    return frozenset({plugin_id for plugin_id, wanted in needed.items() if wanted} | enabled)


def bundled_for(providers: Iterable[str]) -> frozenset[str]:
    """Ids of the bundled plugins that execute some of these providers, for credentials that stand in files."""
    found = {provider for provider in providers if provider in ("claude", "gemini")}
    if any(provider.startswith("openai-compat") for provider in providers):
        found.add("openai-compat")
    return frozenset(found)
