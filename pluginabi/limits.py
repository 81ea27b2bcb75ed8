"""Limits of a session, in one place; both hellos carry `Limits`."""

from typing import Final

from msgspec import Struct

DEFAULT_MAX_FRAME_BYTES: Final = 16 * 1024 * 1024
"""Largest frame a side accepts unless its hello says otherwise."""
BODY_HEADROOM_BYTES: Final = 64 * 1024
"""A body is inlined up to the peer's `max_frame_bytes` minus this; the rest of the frame has to fit as well."""
FRAME_ID_SEARCH_BYTES: Final = 4096
"""An oversize frame is skipped, but its id is read from this many leading bytes so that only its own call fails."""
STREAM_WINDOW_ITEMS: Final = 32
STREAM_WINDOW_BYTES: Final = 1024 * 1024
STREAM_OVERFLOW_BYTES: Final = 4 * 1024 * 1024
"""What a receiver buffers for a producer without the feature `credit` while other calls are in flight."""
DEFAULT_MAX_INFLIGHT: Final = 64
DEFAULT_MAX_STREAMS: Final = 1000
CALLBACK_MAX_INFLIGHT: Final = 64
"""Callbacks have a budget of their own: sharing one with calls deadlocks when every call waits for a callback."""
MAX_NESTING_DEPTH: Final = 8
MAX_NESTED_CALLS_PER_REQUEST: Final = 64
CANCEL_GRACE_S: Final = 2.0
"""A cancelled call without a closing frame is forgotten (and counted as stuck) after this long."""
QUEUE_MAX_CALLS: Final = 256
QUEUE_MAX_WAIT_S: Final = 5.0


class Limits(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What the sender of a hello accepts."""

    max_frame_bytes: int = DEFAULT_MAX_FRAME_BYTES
    max_inflight: int | None = None
    """Calls until `result` the plugin wants at once; absent: 64, or 1 for a plugin without features."""
    max_streams: int | None = None
