"""request.normalize|translate and response.normalize_before|translate|normalize_after (spec plugin-abi 4.4)."""

from msgspec import UNSET, UnsetType

from pluginabi.body import Body
from pluginabi.payloads.common import Items, Payload, RequestBound, StreamEnd


class RequestTranslateRequest(RequestBound, frozen=True, kw_only=True):
    """A request body on its way from `from_format` (the client's) to `to_format` (the upstream's)."""

    from_format: str = ""
    to_format: str = ""
    model: str = ""
    stream: bool = False
    body: Body | UnsetType = UNSET


class RequestTranslateResponse(Payload, frozen=True, kw_only=True):
    """The new body; absent keeps it."""

    body: Body | UnsetType = UNSET


class ResponseTranslateRequest(RequestBound, frozen=True, kw_only=True):
    """An answer (body or items) on its way from `from_format`, the upstream's, to `to_format`, the client's."""

    from_format: str = ""
    to_format: str = ""
    model: str = ""
    stream: bool = False
    body: Body | UnsetType = UNSET
    items: Items = ()
    index: int = 0
    last: bool = False
    request_body: Body | UnsetType = UNSET
    client_body: Body | UnsetType = UNSET


class ResponseTranslateResponse(Payload, frozen=True, kw_only=True):
    """The new body or items; absent keeps them."""

    body: Body | UnsetType = UNSET
    items: Items | UnsetType = UNSET
    end: StreamEnd | UnsetType = UNSET
