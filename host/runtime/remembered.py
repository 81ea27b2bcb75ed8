"""What a plugin declared the last time it ran, kept on disk: a plugin that is down since the start keeps its hooks.

Without it a frontend-auth plugin whose manifest names no capability would be unknown until its first hello, and a
proxy whose only door it is would stand open. The files lie beside the plugins' data directories, where no plugin may
write.
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import msgspec
import structlog

from host.runtime.plan import Plan
from pluginabi.payloads.lifecycle import RegisterResponse

log = structlog.get_logger("host.runtime.remembered")

_FOLDER: Final = ".declared"
"""No plugin id starts with a dot."""


class Declared(msgspec.Struct, frozen=True, kw_only=True):
    """Hello and registration, as far as they decide which hooks a plugin has."""

    capabilities: Sequence[str]
    inputs: Mapping[str, Sequence[str]] = {}
    on_error: Mapping[str, str] = {}
    registration: RegisterResponse | None = None


def remember(plan: Plan, declared: Declared) -> None:
    """Write it down unless it is what was written last; a disk that refuses is reported and costs nothing else."""
    if plan.bundled:
        return
    path = _path(plan)
    data = msgspec.json.encode(declared)
    try:
        if path.is_file() and path.read_bytes() == data:
            return
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        staged = path.with_suffix(f".{os.getpid()}.new")  # each worker has the same plugins
        staged.write_bytes(data)
        staged.replace(path)
    except OSError as error:
        log.warning("plugin.not_remembered", plugin_id=plan.plugin_id, path=str(path), reason=str(error))


def recall(plan: Plan) -> Declared | None:
    """What was remembered; None when it never ran, or when the file cannot be read."""
    if plan.bundled:
        return None
    path = _path(plan)
    try:
        return msgspec.json.decode(path.read_bytes(), type=Declared)
    except FileNotFoundError:
        return None
    except (OSError, msgspec.MsgspecError) as error:
        log.warning("plugin.not_recalled", plugin_id=plan.plugin_id, path=str(path), reason=str(error))
        return None


def _path(plan: Plan) -> Path:
    return plan.data_dir.parent / _FOLDER / f"{plan.plugin_id}.json"
