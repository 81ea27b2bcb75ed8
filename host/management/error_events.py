"""What programs hear of each failed attempt, with how its credential does since (spec credentials 8.8)."""

import time
from collections import deque
from collections.abc import Callable
from typing import Any, Final

import msgspec

from host.credentials.cooldown import CoolState
from host.credentials.pool import CredentialPool
from host.credentials.records import Credential
from host.observe.logs import redact
from host.pipeline.settle import rfc3339
from pluginabi.payloads.usage import UsageHandleRequest

MAX_WAITING: Final = 256
"""Events that nobody could be told yet; the oldest go."""
MAX_TEXT: Final = 1024


class ErrorEvents:
    """Collects failures; what became of the credential is looked up when they are taken, a moment later."""

    def __init__(self, pool: Callable[[], CredentialPool]) -> None:
        self._pool: Final = pool
        self._waiting: Final[deque[tuple[UsageHandleRequest, Credential]]] = deque(maxlen=MAX_WAITING)

    def note(self, record: UsageHandleRequest, credential: Credential) -> None:
        """An attempt failed."""
        self._waiting.append((record, credential))

    def take(self) -> list[bytes]:
        """All of them as JSON, oldest first; they are gone then."""
        found = [msgspec.json.encode(self._event(*failed)) for failed in self._waiting]
        self._waiting.clear()
        return found

    def _event(self, record: UsageHandleRequest, credential: Credential) -> dict[str, Any]:
        error = record.error
        return {
            "timestamp": record.requested_at,
            "request_id": record.request_id,
            "provider": record.provider,
            "model": record.model,
            "auth_id": credential.id,
            "auth_index": credential.auth_index,
            "status_code": (error.http_status if error is not None else 0) or 500,
            "body": redact(error.message)[:MAX_TEXT] if error is not None else "",
            "code": error.code if error is not None else "",
            "retryable": error.retryable if error is not None else None,
            "auth_status": self._status(credential),
        }

    def _status(self, credential: Credential) -> dict[str, Any]:
        pool = self._pool()
        now = pool.by_id.get(credential.id, credential)
        health = pool.health.health_of(credential.id, ())
        retry_at_s = health.next_retry_at_s
        blocks = [it for it in pool.book.states(credential.id).values() if it.blocked]
        return {
            "status": "disabled" if now.disabled else "error" if blocks else "active",
            "status_message": redact(health.status_message),
            "disabled": now.disabled,
            "unavailable": health.unavailable,
            "next_retry_after": rfc3339(retry_at_s) if retry_at_s is not None else None,
            "models": [
                {"name": it.model, "reason": it.reason, "next_retry_after": self._at(it.until_s), "quota": _quota(it)}
                for it in blocks
            ],
        }

    def _at(self, until_s: float) -> str:
        return rfc3339(time.time() + until_s - self._pool().clock())


def _quota(state: CoolState) -> dict[str, Any]:
    return {"exceeded": state.quota, "backoff_level": state.level}
