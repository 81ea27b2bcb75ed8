"""What `jackfield check` finds beside the configuration and the plugins: files that the start would stumble over."""

import difflib
import os
from collections.abc import Iterator
from pathlib import Path

from host.config.model import Config, config_path
from host.runtime.discover import Discovery
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


def policies_for_nobody(config: Config, discovery: Discovery) -> Iterator[str]:
    """Policies whose plugin is not there: a slip of the pen would leave the plugin that was meant as it is."""
    known = {source.plugin_id for source in discovery.found} | {broken.plugin_id for broken in discovery.broken}
    for plugin_id in sorted(config.plugins.policy.keys() - known):
        near = difflib.get_close_matches(plugin_id, known, n=1)
        hint = f"; did you mean `{near[0]}`?" if near else ""
        yield f"plugins.policy.{plugin_id} is for a plugin that is not there{hint}"
