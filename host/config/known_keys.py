"""Keys of a carried-over config that have no effect here: each gives one warning at start, never an error.

`NOT_YET` is planned, `DROPPED` was left out on purpose and says what to do instead.
"""

from collections.abc import Mapping
from typing import Final

NOT_YET: Final[Mapping[str, str]] = {
    "error-logs-max-files": "failed requests are kept in memory, see `/request-errors` of the management API",
    "request-log": "request capture is not built yet",
    "ws-auth": "there is no WebSocket endpoint yet",
    "quota-exceeded": "a provider's plugin decides in `executor.on_exhausted`",
    "disable-image-generation": "image endpoints are not built yet",
    "gpt-image-2-base-model": "image endpoints are not built yet",
    "video-result-auth-cache-ttl": "video endpoints are not built yet",
    "payload": "payload rules are not built yet; an interceptor plugin can do the same",
    "codex-catalogue": "the Codex catalogue is not built yet",
    "trace-header": "the request id is always in X-Request-Id",
    "claude-header-defaults": "set `headers` on the key instead",
    "codex-header-defaults": "set `headers` on the key instead",
    "limits.websocket-message": "there is no WebSocket endpoint yet",
    "limits.websocket-transcript": "there is no WebSocket endpoint yet",
    "claude-api-key.websockets": "there is no WebSocket upstream yet",
    "gemini-api-key.websockets": "there is no WebSocket upstream yet",
    "codex-api-key.websockets": "there is no WebSocket upstream yet",
}

DROPPED: Final[Mapping[str, str]] = {
    "pprof": "use py-spy on the process",
    "commercial-mode": "request logging is cheap enough to leave on",
    "gemini": "Gemini clients always get Gemini's own error object",
    "codex": "no imitation of another vendor's client",
    "disable-claude-cloak-mode": "no imitation of another vendor's client",
    "antigravity-signature-cache-enabled": "belongs to a provider plugin",
    "antigravity-signature-bypass-strict": "belongs to a provider plugin",
    "auth": "a key of an old format",
    "ampcode": "a key of an old format",
    "remote-management.disable-control-panel": "there is no control panel",
    "remote-management.disable-auto-update-panel": "there is no control panel",
    "remote-management.panel-github-repository": "there is no control panel",
    "generative-language-api-key": "write `gemini-api-key`",
    "interactions-api-key": "write `gemini-api-key`",
    "xai-api-key": "write an `openai-compatibility` entry with the `base-url` https://api.x.ai/v1",
    "openai-compatibility.api-keys": "write `api-key-entries`",
    "claude-api-key.cloak": "no imitation of another vendor's client",
    "claude-api-key.experimental-cch-signing": "no imitation of another vendor's client",
    "claude-api-key.rebuild-mid-system-message": "no imitation of another vendor's client",
}


def no_effect(path: str) -> str | None:
    """Why the key at `path` (dotted, without list indices) has no effect; None when it is no such key."""
    if path in NOT_YET:
        return f"has no effect in this version: {NOT_YET[path]}"
    if path in DROPPED:
        return f"was left out on purpose: {DROPPED[path]}"
    if path.startswith("ampcode"):
        return "was left out on purpose: a key of an old format"
    return None
