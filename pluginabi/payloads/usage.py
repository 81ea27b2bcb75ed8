"""usage.handle (spec plugin-abi 2.3 and 7.7)."""

from msgspec import field

from pluginabi.errors import ErrorBody
from pluginabi.frames import Usage
from pluginabi.immutable import Headers, Metadata
from pluginabi.payloads.common import RequestBound


class UsageHandleRequest(RequestBound, frozen=True, kw_only=True):
    """One settled upstream generation; exactly one record per attempt that reached an upstream."""

    provider: str = ""
    executor: str = ""
    """Id of the plugin that called the upstream."""
    model: str = ""
    requested_model: str = ""
    caller: str = ""
    """Name of the client key, or the frontend-auth principal; never the key."""
    credential_id: str = ""
    credential_label: str = ""
    source: str = ""
    endpoint: str = ""
    stream: bool = False
    reasoning_effort: str = ""
    service_tier: str = ""
    requested_at: str = ""
    duration_ms: float = 0.0
    first_byte_ms: float | None = None
    failed: bool = False
    error: ErrorBody | None = None
    usage: Usage = field(default_factory=Usage)
    response_headers: Headers = field(default_factory=dict)
    metadata: Metadata = field(default_factory=dict)
