"""Pieces that several payload families share.

Names are snake_case; headers and query are objects of lower-cased name to list of strings; times are RFC 3339,
durations `*_ms`; absent means unset. An answer that is null, absent or `{}` means *no opinion*.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
from msgspec import UNSET, Raw, Struct, UnsetType, field

from pluginabi.body import Body, StreamItem
from pluginabi.errors import ErrorBody
from pluginabi.immutable import Headers, Metadata


class Payload(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Base of all payloads. Unknown fields are ignored, so that fields can be added without a new schema."""


class Empty(Payload, frozen=True, kw_only=True):
    """An answer that says nothing."""


class RequestBound(Payload, frozen=True, kw_only=True):
    """What every call made for a client request carries."""

    request_id: str = ""
    parent_request_id: str | None = None
    """Set in a nested call: the request whose plugin asked for it."""
    attempt: int | None = None
    """From 1, once a credential is scheduled."""


class CredentialHandle(Payload, frozen=True, kw_only=True):
    """A credential without its secret: `host.http.*` takes the `handle`, the host attaches the secret."""

    handle: str
    provider: str
    label: str = ""
    attributes: Mapping[str, str] = field(default_factory=dict)
    storage: Raw | UnsetType = UNSET
    """The credential's stored JSON; only with the permission `credential_secrets`."""


class Termination(Payload, frozen=True, kw_only=True):
    """An interceptor's own response: the request ends with it, no upstream is called."""

    status: int = 200
    """200 to 599."""
    headers: Headers = field(default_factory=dict)
    body: Body | UnsetType = UNSET


class StreamEnd(Payload, frozen=True, kw_only=True):
    """Ends the stream a hook looks at, with the protocol's terminal event or, when `error` is set, its error event."""

    error: ErrorBody | UnsetType = UNSET


class ThinkingSupport(Payload, frozen=True, kw_only=True):
    """Which reasoning budgets or levels a model takes."""

    min: int | None = None
    max: int | None = None
    zero_allowed: bool = False
    dynamic_allowed: bool = False
    levels: Sequence[str] = ()


class ModelInfo(Payload, frozen=True, kw_only=True):
    """One model of a provider, for the model lists and for thinking."""

    id: str
    object: str = "model"
    created: int | None = None
    """Unix seconds."""
    owned_by: str = ""
    type: str = ""
    display_name: str = ""
    name: str = ""
    version: str = ""
    description: str = ""
    input_token_limit: int | None = None
    output_token_limit: int | None = None
    context_length: int | None = None
    max_completion_tokens: int | None = None
    supported_generation_methods: Sequence[str] = ()
    supported_parameters: Sequence[str] = ()
    supported_input_modalities: Sequence[str] = ()
    supported_output_modalities: Sequence[str] = ()
    thinking: ThinkingSupport | None = None
    user_defined: bool = False


class ModelAlias(Payload, frozen=True, kw_only=True):
    """A provider's model under another name."""

    name: str
    alias: str


class HostSummary(Payload, frozen=True, kw_only=True):
    """The parts of the host's configuration that credential and model plugins may know."""

    auth_dir: str = ""
    proxy_url: str = ""
    force_model_prefix: bool = False
    oauth_model_alias: Mapping[str, Sequence[ModelAlias]] = field(default_factory=dict)
    excluded_models: Mapping[str, Sequence[str]] = field(default_factory=dict)


class CredentialRecord(Payload, frozen=True, kw_only=True):
    """A credential as auth plugins make it: identity, where it is stored, and its secrets in `storage`."""

    provider: str = ""
    id: str = ""
    file_name: str = ""
    label: str = ""
    prefix: str = ""
    proxy_url: str = ""
    disabled: bool = False
    storage: Raw | UnsetType = UNSET
    metadata: Metadata = field(default_factory=dict)
    attributes: Mapping[str, str] = field(default_factory=dict)
    next_refresh_after: str | None = None

    def storage_value(self) -> dict[str, Any]:
        """The storage as a dict; empty when there is none. Raises `msgspec.ValidationError` when it is no object."""
        return {} if self.storage is UNSET else msgspec.json.decode(self.storage, type=dict[str, Any])


BodyParts = Mapping[str, Any]
"""JSON pointer -> the plain JSON value there; no key where nothing is there."""

Items = Sequence[StreamItem]
