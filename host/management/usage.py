"""Endpoints for what credentials and requests did: counters, usage records, the latest errors, the log."""

import asyncio
import re
from collections.abc import Callable, Sequence
from typing import Final

import msgspec
import structlog
from aiohttp import web
from msgspec import Raw

from host.credentials.manager import CredentialManager
from host.credentials.records import Credential
from host.management.calls import Call, ManagementError, reply
from host.management.masks import Masks
from host.management.peers import Peers
from host.management.records import Records
from host.management.shared_usage import SharedUsage
from host.management.table import Endpoint
from host.observe.logfile import LogFiles
from host.observe.logs import current_sink
from host.pipeline.state import GatewayState
from host.state.store import StateUnavailable
from host.worker import ASKED_BY_A_WORKER

log = structlog.get_logger("host.management.usage")

MAX_COUNT: Final = 1000
"""Records of one call."""
DEFAULT_ERRORS: Final = 50
MAX_ERRORS_SHOWN: Final = 500
DEFAULT_LINES: Final = 200
MAX_LINES: Final = 2000
AT_A_TIME: Final = 20
"""Credentials that are looked at before others have their turn."""
_COLOURS: Final = re.compile(r"\x1b\[[0-9;]*m")


class UsageEndpoints:
    """The rows of `/usage-queue`, `/request-errors`, `/api-key-usage`, `/model-definitions` and `/logs`."""

    def __init__(
        self,
        records: Records,
        manager: CredentialManager,
        masks: Masks,
        *,
        state: Callable[[], GatewayState],
        files: LogFiles,
        peers: Peers | None,
        shared: SharedUsage | None = None,
    ) -> None:
        self._records: Final = records
        self._manager: Final = manager
        self._masks: Final = masks
        self._state: Final = state
        self._files: Final = files
        self._peers: Final = peers
        self._shared: Final = shared

    def endpoints(self) -> Sequence[Endpoint]:
        """For the table."""
        return (
            Endpoint("GET", "/usage-queue", self._take),
            Endpoint("GET", "/request-errors", self._errors),
            Endpoint("GET", "/api-key-usage", self._counters),
            Endpoint("GET", "/model-definitions/{channel}", self._models),
            Endpoint("GET", "/logs", self._lines),
            Endpoint("DELETE", "/logs", self._clear),
        )

    async def _take(self, call: Call) -> web.Response:
        if call.method == "HEAD":
            # Whoever is answered without a body must not use up what it would have held.
            raise ManagementError(405, "method_not_allowed", "allowed: GET", headers={"Allow": "GET"})
        count = _positive(call.argument("count") or "1")
        is_worker = call.local and bool(call.headers.get(ASKED_BY_A_WORKER))
        if self._shared is not None and self._records.wants_usage and not is_worker:
            try:
                return reply(await self._shared.take(count))
            except StateUnavailable:
                log.warning("usage.of_these_processes_only")
        taken = self._records.take(count)
        if len(taken) < count and self._peers is not None and not is_worker:
            for answer in await self._peers.ask("GET", f"/usage-queue?count={count - len(taken)}"):
                if answer.status == 200:
                    taken += answer.document["records"]
            taken.sort(key=lambda record: str(record["timestamp"]))
            # Every worker gave up to what was missing: what is too much waits here for the next call.
            self._records.give_back(taken[count:])
            del taken[count:]
        return reply({"records": taken} if is_worker else taken)

    async def _errors(self, call: Call) -> web.Response:
        limit = call.number("limit", DEFAULT_ERRORS, highest=MAX_ERRORS_SHOWN)
        return reply({"errors": self._records.errors(limit)})

    async def _counters(self, call: Call) -> web.Response:
        found: dict[str, dict[str, Raw]] = {}
        for number, record in enumerate(self._manager.credentials):
            if number % AT_A_TIME == AT_A_TIME - 1:
                # Other requests do not wait until all are looked through.
                await asyncio.sleep(0)
            if record.source_kind != "config":
                continue
            name = record.label.lower() if "compat_name" in record.attributes else record.provider
            key = self._masks.mask(record.secret.reveal()) if record.secret is not None else ""
            found.setdefault(name, {})[f"{self._masks.address(record.base_url)}|{key}"] = self._results(record)
        return reply(found)

    def _results(self, record: Credential) -> Raw:
        """As JSON: that of thousands is not made at one go."""
        health = self._state().health_of(record.id)
        results = {"success": health.succeeded, "failed": health.failed, "recent_requests": health.recent}
        return Raw(msgspec.json.encode(results))

    async def _models(self, call: Call) -> web.Response:
        channel = call.params["channel"].strip().lower()
        groups = [
            group for group in self._state().groups.values() if group.members and group.sample.provider == channel
        ]
        if not groups:
            raise ManagementError(400, "unknown channel")
        models = {offer.info.id: msgspec.to_builtins(offer.info) for it in groups for offer in it.source.offers}
        return reply({"channel": channel, "models": [models[name] for name in sorted(models)]})

    async def _lines(self, call: Call) -> web.Response:
        """From memory: the latest lines of this process, whether files are written or not."""
        sink = current_sink()
        if sink is None:
            raise ManagementError(404, "not_found", "the log of this process is not kept")
        sink.flush()
        limit = call.number("limit", DEFAULT_LINES, highest=MAX_LINES)
        after_s = call.number("after", 0, lowest=0, highest=1 << 40)
        cursor = call.number("cursor", 0, lowest=0, highest=1 << 60)
        first = sink.written - len(sink.recent)
        is_reset = bool(call.argument("cursor")) and not first <= cursor <= sink.written
        numbered = enumerate(sink.recent, start=first)
        found = [
            (number, at_s, line)
            for number, (at_s, line) in numbered
            if at_s > after_s and (is_reset or number >= cursor)
        ]
        # With a cursor the reader goes on where it was, without one it wants the end.
        found = found[:limit] if call.argument("cursor") and not is_reset else found[-limit:]
        return reply(
            {
                "lines": [_COLOURS.sub("", line) for _, _, line in found],
                "line-count": len(found),
                "latest-timestamp": int(found[-1][1]) if found else after_s,
                "next-cursor": found[-1][0] + 1 if found else sink.written,
                "cursor-reset": is_reset,
            }
        )

    async def _clear(self, call: Call) -> web.Response:
        sink = current_sink()
        if sink is not None:
            sink.flush()
            sink.recent.clear()
        removed = self._files.clear()
        return reply({"success": True, "message": "Logs cleared successfully", "removed": removed})


def _positive(text: str) -> int:
    try:
        count = int(text)
    except ValueError:
        count = 0
    if count <= 0:
        raise ManagementError(400, "count must be a positive integer")
    return min(count, MAX_COUNT)
