"""How credentials are listed and shown to plugins: one JSON object each, never with a secret (credentials 8.3)."""

import asyncio
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from host.credentials import files
from host.credentials.auth_dir import AuthDirectory
from host.credentials.manager import CredentialHealth, CredentialManager
from host.credentials.parse import provider_of_document
from host.credentials.records import Credential
from host.credentials.secret import MASK
from host.credentials.values import canonical, rfc3339, text
from host.observe.logs import redact

_SHOWN: Final = frozenset(
    {
        *("type", "email", "label", "project_id", "note", "prefix", "name", "alias", "base_url", "token_type", "scope"),
        *("expired", "expire", "expires_at", "expiry", "expires", "expiresAt", "excluded_models", "models"),
        *("last_refresh", "lastRefresh", "last_refreshed_at", "lastRefreshedAt", "refresh_interval", "priority"),
        *("disabled", "disable_cooling", "request_retry", "websockets", "refresh_interval_seconds", "plan_type"),
    }
)
"""Members of a file whose texts are no secrets; of every other one the texts are masked, at any depth."""

Entry = dict[str, Any]
_YIELD_EVERY: Final = 100


async def listing(manager: CredentialManager, directory: AuthDirectory) -> list[Entry]:
    """The credentials that stand in files, by lower-cased name; files that cannot be used at all as errors."""
    records = [record for record in manager.credentials if record.path]
    unusable = {path: reason for path, reason in directory.problems.items() if not manager.records_of(path)}
    sizes = await asyncio.to_thread(_stat_all, [record.path for record in records] + list(unusable))
    entries = []
    for number, record in enumerate(records, 1):
        if record.path in sizes or not record.disabled:
            entries.append(_entry(manager, directory, record, sizes.get(record.path)))
        if number % _YIELD_EVERY == 0:
            await asyncio.sleep(0)  # requests go on while thousands are listed
    name_of = directory.settings.name_of
    entries += [_unusable_entry(name_of(path), path, reason, sizes.get(path)) for path, reason in unusable.items()]
    return sorted(entries, key=lambda entry: (entry["name"].lower(), entry["name"]))


def disk_listing(directory: AuthDirectory) -> list[Entry]:
    """What the files alone say, as long as nobody has made records of them; by lower-cased name. Blocks."""
    entries = []
    for path in directory.paths():
        try:
            content, stat = files.read(path), os.stat(path)
        except OSError:
            continue  # gone since
        if content is None:
            continue
        members, name = canonical(content.members or {}), directory.settings.name_of(path)
        provider = provider_of_document(members)
        entry: Entry = {"id": name, "name": name, "type": provider, "provider": provider, "path": path}
        entry |= {"source": "file", "size": stat.st_size, "modtime": rfc3339(stat.st_mtime)}
        entry |= {field: found for field in ("email", "label", "note") if (found := text(members.get(field)))}
        if content.members is None:
            entry |= {"status": "error", "status_message": content.problem}
        entries.append(entry)
    return sorted(entries, key=lambda entry: (entry["name"].lower(), entry["name"]))


async def entry_for_index(manager: CredentialManager, directory: AuthDirectory, auth_index: str) -> Entry | None:
    """The entry of one credential; None when there is none, or it is not listed."""
    record = manager.by_index(auth_index)
    if record is None or not record.path:
        return None
    stat = (await asyncio.to_thread(_stat_all, [record.path])).get(record.path)
    return _entry(manager, directory, record, stat) if stat is not None or not record.disabled else None


def _entry(
    manager: CredentialManager, directory: AuthDirectory, record: Credential, stat: os.stat_result | None
) -> Entry:
    return entry_of(record, _health(manager, record), stat, directory.problems.get(record.path, ""))


def _health(manager: CredentialManager, record: Credential) -> CredentialHealth:
    return manager.health.health_of(record.id) if manager.health is not None else CredentialHealth()


def entry_of(
    record: Credential, health: CredentialHealth, stat: os.stat_result | None = None, problem: str = ""
) -> Entry:
    """One credential. `stat` is its file's, `problem` why the newest content of the file has no effect."""
    is_failing = health.unavailable or bool(problem) or _refresh_ended(record)
    status = "disabled" if record.disabled else "error" if is_failing or record.is_unusable else "active"
    kind, account = record.account
    entry: Entry = {
        "id": record.id,
        "auth_index": record.auth_index,
        "name": record.id if record.source_kind in ("virtual", "config") else record.file_name,
        "type": record.provider,
        "provider": record.provider,
        "label": record.label,
        "status": status,
        "status_message": redact(problem or record.status_message or _refresh_text(record) or health.status_message),
        "disabled": record.disabled,
        "unavailable": health.unavailable or record.is_unusable or _refresh_ended(record),
        "runtime_only": False,
        "virtual": record.source_kind == "virtual",
        "source": "file" if stat is not None else "memory",
        "source_kind": record.source_kind,
        "size": stat.st_size if stat is not None else 0,
        "success": health.succeeded,
        "failed": health.failed,
        "recent_requests": list(health.recent),
    }
    optional = {
        "path": record.path,
        "email": record.email,
        "project_id": record.project_id,
        "plan_type": record.attributes.get("plan_type", ""),
        "auth_kind": record.auth_kind,
        "account_type": kind,
        "account": account,
        "prefix": record.prefix,
        "note": record.note,
        "priority": record.priority or None,
        "weight": record.weight if record.weight != 1 else None,
        "websockets": record.websockets,
        **_times(record, health, stat),
    }
    entry.update({name: value for name, value in optional.items() if value not in ("", None)})
    if record.refresh_error is not None:
        error = record.refresh_error
        entry["refresh_error"] = {"message": redact(error.message), "code": error.code, "status": error.http_status}
    return entry


def _times(record: Credential, health: CredentialHealth, stat: os.stat_result | None) -> dict[str, str]:
    moments = {
        "created_at": record.created_at_s,
        "updated_at": record.updated_at_s,
        "modtime": stat.st_mtime if stat is not None else None,
        "last_refresh": record.last_refreshed_at_s,
        "next_refresh": record.next_refresh_at_s,
        "expires_at": record.expires_at_s,
        "next_retry_after": health.next_retry_at_s,
    }
    return {name: rfc3339(moment) for name, moment in moments.items() if moment is not None}


def _refresh_ended(record: Credential) -> bool:
    return record.refresh_error is not None and record.refresh_error.http_status == 401


def _refresh_text(record: Credential) -> str:
    if record.refresh_error is None:
        return ""
    return "unauthorized" if _refresh_ended(record) else f"refresh failed: {record.refresh_error.message}"


def _unusable_entry(name: str, path: str, reason: str, stat: os.stat_result | None) -> Entry:
    entry: Entry = {"id": name, "auth_index": "", "name": name, "type": "", "provider": "", "label": name}
    entry |= {"status": "error", "status_message": redact(reason), "disabled": False, "unavailable": True}
    entry |= {"runtime_only": False, "virtual": False, "path": path, "success": 0, "failed": 0, "recent_requests": []}
    entry |= {"source": "file" if stat is not None else "memory", "size": stat.st_size if stat is not None else 0}
    if stat is not None:
        entry["modtime"] = rfc3339(stat.st_mtime)
    return entry


def _stat_all(paths: Iterable[str]) -> dict[str, os.stat_result]:
    found: dict[str, os.stat_result] = {}
    for path in dict.fromkeys(paths):
        try:
            found[path] = os.stat(path)
        except OSError:
            continue
    return found


def masked(value: Any, *, shown: bool = False) -> Any:
    """A copy of a file's members for somebody who may not see secrets: every text is masked but the known harmless."""
    if isinstance(value, Mapping):
        return {name: masked(member, shown=name in _SHOWN) for name, member in value.items()}
    if isinstance(value, (list, tuple)):
        return [masked(item, shown=shown) for item in value]
    return MASK if isinstance(value, str) and value and not shown else value


def unmasked(value: Any, present: Any) -> Any:
    """`value` with its masked texts replaced by what stands at the same place in `present`: a mask means *unchanged*.

    Raises KeyError when there is nothing at that place: a mask must never be stored as a secret.
    """
    if isinstance(value, Mapping):
        known = present if isinstance(present, Mapping) else {}
        return {name: unmasked(member, known.get(name)) for name, member in value.items()}
    if isinstance(value, (list, tuple)):
        old: Sequence[Any] = present if isinstance(present, (list, tuple)) else ()
        return [unmasked(item, old[index] if index < len(old) else None) for index, item in enumerate(value)]
    if value != MASK:
        return value
    if not isinstance(present, str):
        raise KeyError(MASK)
    return present


def changes_hidden(value: Any, present: Any, *, shown: bool = False) -> bool:
    """Whether `value` has a text, of those that are masked, which does not stand at the same place in `present`."""
    if isinstance(value, Mapping):
        known = present if isinstance(present, Mapping) else {}
        return any(changes_hidden(member, known.get(name), shown=name in _SHOWN) for name, member in value.items())
    if isinstance(value, (list, tuple)):
        old: Sequence[Any] = present if isinstance(present, (list, tuple)) else ()
        return any(
            changes_hidden(item, old[index] if index < len(old) else None, shown=shown)
            for index, item in enumerate(value)
        )
    return isinstance(value, str) and bool(value) and not shown and value != present
