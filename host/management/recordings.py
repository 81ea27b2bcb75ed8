"""Recording a plugin's calls: for the control socket only, since a recording holds what clients said."""

from collections.abc import Sequence
from typing import Final

from aiohttp import web

from host.management.calls import Call, ManagementError
from host.management.table import Endpoint
from host.recording.run import RecordingRuns, Recordings, RecordOrder

DEFAULT_SECONDS: Final = 60
MAX_SECONDS: Final = 24 * 3600
DEFAULT_BYTES: Final = 16 * 1024 * 1024
MAX_BYTES: Final = 4 * 1024 * 1024 * 1024


class RecordingEndpoints:
    """The row of `/plugins/{id}/record`."""

    def __init__(self, recordings: Recordings) -> None:
        self._recordings = recordings

    def endpoints(self) -> Sequence[Endpoint]:
        """For the table."""
        return (Endpoint("GET", "/plugins/{id}/record", self._record),)

    async def _record(self, call: Call) -> web.StreamResponse:
        """The lines as they are made; a reader that hangs up ends the recording."""
        plugin_id = call.params["id"]
        if not call.local:
            command = f"jackfield record --plugin {plugin_id}"
            raise ManagementError(403, "not_over_http", "a recording holds what clients said", command=command)
        order = RecordOrder(
            plugin_id=plugin_id,
            limit_s=call.number("seconds", DEFAULT_SECONDS, highest=MAX_SECONDS),
            max_bytes=call.number("max_bytes", DEFAULT_BYTES, highest=MAX_BYTES),
            redact_bodies=call.argument("redact_bodies") == "true",
        )
        try:
            lines = self._recordings.start(order)
        except KeyError:
            raise ManagementError(409, "plugin_not_running", f"plugin {plugin_id!r} does not run") from None
        except RecordingRuns as busy:
            raise ManagementError(409, "recording_runs", str(busy)) from None
        response = web.StreamResponse(headers={"Content-Type": "application/jsonl"})
        try:
            await response.prepare(call.request)
            async for line in lines:
                await response.write(line)
        except ConnectionResetError:
            pass  # the reader left: that is how a recording is ended early
        finally:
            await lines.aclose()
        return response
