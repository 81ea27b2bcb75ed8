"""What the proxy keeps of finished requests for operators: usage until somebody fetches it, and the latest errors.

Both are in memory and bounded. No record holds a key, a body or a header that may carry a secret.
"""

import os
import time
from collections import deque
from collections.abc import Callable
from itertools import islice
from typing import Any, Final

import msgspec

from host.config.model import Config
from host.credentials.records import Credential
from host.management.auth import ENVIRONMENT_KEY
from host.observe.logs import redact
from host.pipeline.request import ClientRequest, Operation
from host.pipeline.settle import FailedRequest, rfc3339
from pluginabi.payloads.usage import UsageHandleRequest

MAX_RECORDS: Final = 10_000
MAX_RECORD_BYTES: Final = 16 * 1024
MAX_ERRORS: Final = 500
MAX_USER_AGENT: Final = 256
SCHEMA_VERSION: Final = 1
"""Of usage records; higher when a member is removed or means something else."""
DEFAULT_RETENTION_S: Final = 60
MAX_RETENTION_S: Final = 3600
_HEADERS: Final = ("content-type", "retry-after", "x-request-id", "request-id", "openai-processing-ms")
_HEADER_FAMILIES: Final = ("x-ratelimit-", "anthropic-ratelimit-")


class Records:
    """A `Recorder`. Usage is kept while somebody could fetch it."""

    def __init__(self, config: Callable[[], Config], *, clock: Callable[[], float] = time.monotonic) -> None:
        self._config: Final = config
        self._clock: Final = clock
        self.on_used: Callable[[], None] = lambda: None
        """Told of each record that is queued."""
        self.on_failed: Callable[[UsageHandleRequest, Credential], None] = lambda record, credential: None
        """Told of each attempt that failed."""
        self.is_shared = False
        """Whether programs may fetch records past the management API."""
        self._queue: deque[tuple[float, bytes]] = deque(maxlen=MAX_RECORDS)
        self._errors: deque[FailedRequest] = deque(maxlen=MAX_ERRORS)

    @property
    def wants_usage(self) -> bool:
        """Switching it off forgets what is queued."""
        config = self._config()
        is_on = config.usage_statistics_enabled and bool(
            self.is_shared or config.remote_management.secret_key or os.environ.get(ENVIRONMENT_KEY)
        )
        if not is_on and self._queue:
            self._queue.clear()
        return is_on

    def used(
        self, record: UsageHandleRequest, credential: Credential, *, request: ClientRequest, answer_tier: str = ""
    ) -> None:
        """Queue a record, encoded: nothing of the request is kept alive by it."""
        if record.failed:
            self.on_failed(record, credential)
        encoded = msgspec.json.encode(usage_record(record, credential, request, answer_tier=answer_tier))
        if len(encoded) <= MAX_RECORD_BYTES:
            self._forget_old()
            self._queue.append((self._clock(), encoded))
            self.on_used()

    def failed(self, request: FailedRequest) -> None:
        """Remember a failure; the oldest one goes."""
        self._errors.append(request)

    def take(self, count: int) -> list[Any]:
        """Up to `count` records, oldest first; they are gone then."""
        return [msgspec.json.decode(encoded) for encoded in self.take_encoded(count)]

    def take_encoded(self, count: int) -> list[bytes]:
        """`take`, as JSON."""
        if not self.wants_usage:
            return []
        self._forget_old()
        return [self._queue.popleft()[1] for _ in range(min(count, len(self._queue)))]

    def give_back(self, records: list[Any]) -> None:
        """Put records back, to be the next ones that are taken."""
        now_s = self._clock()
        self._queue.extendleft((now_s, msgspec.json.encode(record)) for record in reversed(records))

    def errors(self, limit: int) -> list[dict[str, Any]]:
        """The latest failures, newest first."""
        return [_shown(request) for request in islice(reversed(self._errors), limit)]

    @property
    def retention_s(self) -> float:
        """How long a record waits for somebody who fetches it."""
        wanted = self._config().redis_usage_queue_retention_seconds
        return min(wanted if wanted > 0 else DEFAULT_RETENTION_S, MAX_RETENTION_S)

    def _forget_old(self) -> None:
        oldest_s = self._clock() - self.retention_s
        while self._queue and self._queue[0][0] < oldest_s:
            self._queue.popleft()


def usage_record(
    record: UsageHandleRequest, credential: Credential, request: ClientRequest, *, answer_tier: str = ""
) -> dict[str, Any]:
    """One attempt as the queue shows it (spec credentials 8.8, 12.12)."""
    usage, error = record.usage, record.error
    tokens = {name: getattr(usage, name) or 0 for name in usage.__struct_fields__}
    if not tokens["total_tokens"]:
        tokens["total_tokens"] = tokens["input_tokens"] + tokens["output_tokens"] + tokens["reasoning_tokens"]
        tokens["total_tokens"] = tokens["total_tokens"] or tokens["cached_tokens"]
    status = 200 if error is None else error.http_status or 500
    return {
        "schema_version": SCHEMA_VERSION,
        "timestamp": record.requested_at,
        "latency_ms": round(record.duration_ms),
        "ttft_ms": round(record.first_byte_ms) if record.first_byte_ms is not None else None,
        "source": record.source or credential.email or record.credential_label,
        "auth_index": credential.auth_index,
        "tokens": tokens,
        "failed": record.failed,
        "fail": {"status_code": status, "body": redact(error.message)[:1024] if error is not None else ""},
        "response_headers": {name: list(it) for name, it in record.response_headers.items() if _is_harmless(name)},
        "provider": record.provider,
        "executor_type": record.executor,
        "model": record.model,
        "alias": record.requested_model,
        "endpoint": record.endpoint,
        "stream": record.stream,
        "generate": request.operation is Operation.EXECUTE,
        "client_ip": request.client_address,
        "user_agent": redact(next(iter(request.headers.get("user-agent", ())), "")[:MAX_USER_AGENT]),
        "auth_type": credential.auth_kind,
        "api_key": record.caller,
        "request_id": record.request_id,
        "attempt": record.attempt,
        "reasoning_effort": record.reasoning_effort,
        "service_tier": record.service_tier,
        "response_service_tier": answer_tier,
    }


def _is_harmless(name: str) -> bool:
    folded = name.lower()
    return folded in _HEADERS or folded.startswith(_HEADER_FAMILIES)


def _shown(request: FailedRequest) -> dict[str, Any]:
    credential = request.credential
    return {
        "request_id": request.request_id,
        "time": rfc3339(request.ended_at_s),
        "status": request.status,
        "code": request.code,
        "origin": request.origin,
        "message": redact(request.message),
        "protocol": request.protocol,
        "endpoint": request.endpoint,
        "model": request.model,
        "upstream_model": request.upstream_model,
        "provider": request.provider,
        "credential": credential.label if credential is not None else "",
        "auth_index": credential.auth_index if credential is not None else "",
        "caller": request.caller,
        "attempts": request.attempts,
    }
