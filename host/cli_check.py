"""What `jackfield check` finds beside the configuration and the plugins: files that the start would stumble over."""

import difflib
import os
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from host.config.model import Config, config_path
from host.credentials import files
from host.credentials.parse import UNKNOWN_PROVIDER, provider_of_document
from host.credentials.values import canonical
from host.runtime.bundled import bundled_for
from host.runtime.discover import Discovery, PluginSource
from host.runtime.handle import EXECUTOR_METHODS
from host.web.tls import TlsProblem, tls_context


def unusable_files(config: Config) -> Iterator[str]:
    """Why the proxy would not start with what lies on this machine; nothing is made or changed."""
    try:
        tls_context(config)
    except TlsProblem as error:
        yield str(error)
    wanted = Path(config_path(config, config.auth_dir))
    # What does not exist yet is made at the start, in the nearest folder that does.
    existing = next(path for path in (wanted, *wanted.parents) if path.exists())
    if not existing.is_dir():
        yield f"`auth-dir` cannot be used: {existing} is no directory"
    elif not os.access(existing, os.W_OK | os.X_OK):
        yield f"`auth-dir` cannot be used: {existing} is not writable"


def keys_for_nobody(config: Config, discovery: Discovery) -> Iterator[str]:
    """Providers with credentials that no plugin executes, as far as that can be known without running one: nothing is
    said where an enabled plugin of the operator's might."""
    if any(_may_execute(source) for source in discovery.found if _is_own(source, config)):
        return
    found = Counter({"codex": len(config.codex_api_key), "vertex": len(config.vertex_api_key)})
    folder = config_path(config, config.auth_dir)
    with suppress(OSError):
        for path in files.scan(folder, subfolders=config.auth_dir_subfolders):
            content = files.read(path)
            if content is not None and content.members is not None:
                found[provider_of_document(canonical(content.members))] += 1
    for provider, count in sorted(found.items()):
        if count and provider not in ("", UNKNOWN_PROVIDER) and not bundled_for((provider,)):
            keys = "1 credential" if count == 1 else f"{count} credentials"
            yield (
                f"{keys} of provider `{provider}` cannot be used: no bundled plugin executes it, and no other plugin is"
                " enabled that might"
            )


def _is_own(source: PluginSource, config: Config) -> bool:
    section = config.plugins.configs.get(source.plugin_id)
    return source.origin != "bundled" and config.plugins.enabled and section is not None and section.enabled


def _may_execute(source: PluginSource) -> bool:
    known = source.manifest.capabilities
    return not known or not set(EXECUTOR_METHODS).isdisjoint(known)


def policies_for_nobody(config: Config, discovery: Discovery) -> Iterator[str]:
    """Policies whose plugin is not there: a slip of the pen would leave the plugin that was meant as it is."""
    known = {source.plugin_id for source in discovery.found} | {broken.plugin_id for broken in discovery.broken}
    for plugin_id in sorted(config.plugins.policy.keys() - known):
        near = difflib.get_close_matches(plugin_id, known, n=1)
        hint = f"; did you mean `{near[0]}`?" if near else ""
        yield f"plugins.policy.{plugin_id} is for a plugin that is not there{hint}"
