"""model.route (spec plugin-abi 5) and scheduler.pick (spec plugin-abi 6)."""

from collections.abc import Mapping, Sequence

from msgspec import UNSET, UnsetType, field

from pluginabi.body import Body
from pluginabi.immutable import Headers, Metadata
from pluginabi.payloads.common import BodyParts, Payload, RequestBound


class ModelRouteRequest(RequestBound, frozen=True, kw_only=True):
    """Which provider or executor should serve this request? Asked before anything is resolved."""

    source_format: str = ""
    requested_model: str = ""
    stream: bool = False
    headers: Headers = field(default_factory=dict)
    query: Headers = field(default_factory=dict)
    metadata: Metadata = field(default_factory=dict)
    available_providers: Sequence[str] = ()
    """Sorted provider keys with at least one credential that is not disabled; cooldowns do not matter."""
    body: Body | UnsetType = UNSET
    body_parts: BodyParts = field(default_factory=dict)
    body_size: int = 0


class ModelRouteResponse(Payload, frozen=True, kw_only=True):
    """One target. `self` and `executor` run a plugin's executor, `provider` goes through credentials.

    `target` is a plugin id or provider key (ignored for `self`); `target_model` only counts for `provider`; `reason`
    is shown by `jackfield explain`. An empty answer lets the next router decide.
    """

    target_kind: str = ""
    target: str = ""
    target_model: str = ""
    reason: str = ""


class Candidate(Payload, frozen=True, kw_only=True):
    """A credential that could serve the request, without secrets."""

    id: str
    provider: str = ""
    priority: int = 0
    status: str = ""
    attributes: Mapping[str, str] = field(default_factory=dict)
    metadata: Metadata = field(default_factory=dict)


class SchedulerPickRequest(RequestBound, frozen=True, kw_only=True):
    """Which credential should serve this attempt? Candidates are the healthy ones of the best priority, by id.

    At most 256 of them, unless the inputs say `candidates:all`; `candidates_total` is how many there are. Requests that
    name a session are shown the same ones each time; for the others it is a different part of all each time. Whoever is
    healthy and of that priority may be named, shown or not.
    """

    providers: Sequence[str] = ()
    model: str = ""
    requested_model: str = ""
    stream: bool = False
    headers: Headers = field(default_factory=dict)
    query: Headers = field(default_factory=dict)
    metadata: Metadata = field(default_factory=dict)
    candidates: Sequence[Candidate] = ()
    candidates_total: int = 0
    body: Body | UnsetType = UNSET
    body_parts: BodyParts = field(default_factory=dict)
    body_size: int = 0


class SchedulerPickResponse(Payload, frozen=True, kw_only=True):
    """A candidate's id, or the name of a built-in strategy; empty: the host decides as if there were no scheduler.

    Strategies: `round-robin`, `weighted-round-robin`, `fill-first`.
    """

    auth_id: str = ""
    delegate: str = ""
    reason: str = ""
