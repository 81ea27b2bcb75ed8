"""plugin.register, plugin.reconfigure, plugin.shutdown (design: Registration)."""

from collections.abc import Mapping, Sequence
from typing import Any

from msgspec import field

from pluginabi.frames import HostInfo
from pluginabi.payloads.common import ModelInfo, Payload


class RegisterRequest(Payload, frozen=True, kw_only=True):
    """The plugin's own configuration; secrets given as `{env: NAME}` or `{file: PATH}` arrive resolved."""

    config: Mapping[str, Any] = field(default_factory=dict)
    config_yaml: str = ""
    """The same section as the operator wrote it, comments and order included."""
    permissions: Sequence[str] = ()
    """What was granted: the manifest's wish and the operator's policy."""
    host: HostInfo = field(default_factory=HostInfo)


class FrontendAuthRegistration(Payload, frozen=True, kw_only=True):
    """How a frontend-auth plugin is known; an exclusive one is the only one asked."""

    id: str = ""
    exclusive: bool = False


class ExecutorRegistration(Payload, frozen=True, kw_only=True):
    """What an executor takes and gives. Formats are protocol names, `*` for any; scope: both, static or oauth."""

    input_formats: Sequence[str] = ()
    output_formats: Sequence[str] = ()
    scope: str = "both"
    prefers_websockets: bool = False
    """Requests that came over a WebSocket go to credentials with `websockets` first, whatever their priority."""


class RegisterResponse(Payload, frozen=True, kw_only=True):
    """What is in effect; `{}` means all of hello. A capability absent from hello is refused."""

    capabilities: Sequence[str] | None = None
    providers: Sequence[str] | None = None
    """Provider keys this plugin executes: exact, or ending in `*`. Exact beats pattern, then priority."""
    auth_provider: str | None = None
    frontend_auth: FrontendAuthRegistration | None = None
    thinking_provider: str | None = None
    executor: ExecutorRegistration | None = None
    models: Sequence[ModelInfo] | None = None


class ShutdownRequest(Payload, frozen=True, kw_only=True):
    """The process is about to be stopped; answer when state is saved."""

    reason: str = ""
