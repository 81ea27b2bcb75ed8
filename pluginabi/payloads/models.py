"""model.register, model.static, model.for_auth (spec plugin-abi 7.6)."""

from collections.abc import Sequence

from msgspec import field

from pluginabi.payloads.common import CredentialHandle, CredentialRecord, HostSummary, ModelInfo, Payload


class ModelListRequest(Payload, frozen=True, kw_only=True):
    """model.register and model.static: which models does this plugin serve without a credential?"""

    host: HostSummary = field(default_factory=HostSummary)


class ModelListResponse(Payload, frozen=True, kw_only=True):
    """Models of one provider; no models means nothing is registered."""

    provider: str = ""
    models: Sequence[ModelInfo] = ()


class ModelForAuthRequest(Payload, frozen=True, kw_only=True):
    """model.for_auth: which models does this credential serve?"""

    credential: CredentialHandle
    host: HostSummary = field(default_factory=HostSummary)


class ModelForAuthResponse(Payload, frozen=True, kw_only=True):
    """An empty provider means the credential's; a different one means *not mine*."""

    provider: str = ""
    models: Sequence[ModelInfo] = ()
    update: CredentialRecord | None = None
