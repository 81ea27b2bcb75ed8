"""thinking.apply (spec plugin-abi 7.7)."""

from typing import Literal

from msgspec import UNSET, UnsetType, field

from pluginabi.body import Body
from pluginabi.payloads.common import ModelInfo, Payload, RequestBound


class ThinkingConfig(Payload, frozen=True, kw_only=True):
    """How much the model should reason: by token budget, by level, not at all, or as it likes."""

    mode: Literal["budget", "level", "none", "auto"] = "auto"
    budget: int | None = None
    level: str = ""


class ThinkingApplyRequest(RequestBound, frozen=True, kw_only=True):
    """Write `config` into an upstream body of this plugin's `thinking_provider`."""

    provider: str = ""
    model: ModelInfo | None = None
    config: ThinkingConfig = field(default_factory=ThinkingConfig)
    body: Body | UnsetType = UNSET


class ThinkingApplyResponse(Payload, frozen=True, kw_only=True):
    """The new body; absent keeps it."""

    body: Body | UnsetType = UNSET
