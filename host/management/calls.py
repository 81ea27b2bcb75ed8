"""One call of the management API: what a handler gets, what it raises and what it answers."""

import asyncio
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import msgspec
from aiohttp import web

from host.errors import RequestError
from host.web.body import read_body
from pluginabi.immutable import EMPTY_HEADERS, Headers

MAX_BODY_BYTES: Final = 8 * 1024 * 1024
MAX_PUBLIC_BODY_BYTES: Final = 64 * 1024
"""Of a call that nobody has to have a key for."""
BODY_S: Final = 60.0
"""Until the whole body has come."""
MAX_DEPTH: Final = 64
"""Of JSON bodies; whatever walks through one may call itself."""
INVALID: Final = "invalid body"
"""What endpoints for single values and lists answer for a body that is none of theirs."""
JSON_TYPE: Final = "application/json; charset=utf-8"


class ManagementError(Exception):
    """A call is refused: `status`, and the JSON object of `error` (a code or a sentence), `message` and `fields`."""

    def __init__(
        self,
        status: int,
        error: str,
        message: str = "",
        *,
        headers: Mapping[str, str] | None = None,
        **fields: Any,
    ) -> None:
        super().__init__(message or error)
        self.status: Final = status
        self.headers: Final = headers or {}
        self.document: Final[Mapping[str, Any]] = {
            "error": error,
            **({"message": message} if message else {}),
            **fields,
        }


@dataclass(slots=True, kw_only=True)
class Call:
    """A call that was admitted and found its endpoint."""

    method: str
    path: str
    """Below the base, decoded, with its leading slash."""
    request: web.BaseRequest
    request_id: str
    caller: str
    """Who it is, for the audit log: `key`, `environment key`, `local` (the control socket) or `public`."""
    address: str = ""
    headers: Headers = EMPTY_HEADERS
    query: Headers = EMPTY_HEADERS
    params: Mapping[str, str] = field(default_factory=dict)
    """What the path's template names."""
    audited: bool = False
    """Whether it is written into the audit log whatever its method."""
    _body: bytes | None = None

    @property
    def local(self) -> bool:
        """Whether it came through the control socket of this user: the operator's own hands."""
        return self.caller == "local"

    def argument(self, name: str) -> str:
        """The first value of a query parameter; empty when it is absent."""
        return next(iter(self.query.get(name, ())), "")

    def number(self, name: str, default: int, *, lowest: int = 1, highest: int) -> int:
        """A whole number from the query, kept within bounds. Raises ManagementError 400 for anything else."""
        text = self.argument(name).strip()
        if not text:
            return default
        try:
            return min(max(int(text), lowest), highest)
        except ValueError:
            raise ManagementError(400, "invalid_query", f"`{name}` must be a whole number") from None

    async def body(self) -> bytes:
        """The decoded body, read once. Raises ManagementError 413, or 400 when it cannot be read."""
        if self._body is None:
            transport = self.request.transport
            if self.headers.get("expect", ("",))[0].lower() == "100-continue" and transport is not None:
                transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            limit = MAX_PUBLIC_BODY_BYTES if self.caller == "public" else MAX_BODY_BYTES
            try:
                async with asyncio.timeout(BODY_S):
                    self._body = await read_body(
                        self.request,
                        encodings=self.headers.get("content-encoding", ()),
                        max_bytes=limit,
                        max_decoded_bytes=limit,
                    )
            except TimeoutError:
                raise ManagementError(408, "invalid_body", f"it did not come within {BODY_S:.0f} seconds") from None
            except RequestError as error:
                raise ManagementError(error.body.http_status, "invalid_body", error.body.message) from error
        return self._body

    async def json_value(self, refusal: str = "invalid_body") -> Any:
        """The body as JSON. Raises ManagementError 400 `refusal`."""
        try:
            value = msgspec.json.decode(await self.body())
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise ManagementError(400, refusal, f"the body is not valid JSON: {error}") from None
        if _is_deeper(value, MAX_DEPTH):
            raise ManagementError(400, refusal, f"the body is more than {MAX_DEPTH} collections deep")
        return value

    async def json_object(self, refusal: str = "invalid_body") -> dict[str, Any]:
        """The body as a JSON object. Raises ManagementError 400 `refusal`."""
        value = await self.json_value(refusal)
        if not isinstance(value, dict):
            raise ManagementError(400, refusal, "the body must be a JSON object")
        return value

    async def fields(self, **allowed: type) -> dict[str, Any]:
        """The body as an object with exactly these members, each required. Raises ManagementError 400."""
        found = await self.json_object()
        for name, kind in allowed.items():
            if name not in found:
                raise ManagementError(400, "invalid_body", f"{name} is required")
            if not isinstance(found[name], kind) or (kind is int and isinstance(found[name], bool)):
                raise ManagementError(400, "invalid_body", f"{name} must be a {kind.__name__}")
        only(found, allowed, refusal="invalid_body")
        return found


def only(found: Mapping[str, Any], allowed: Collection[str], *, refusal: str = INVALID) -> None:
    """Raise ManagementError 400 `refusal`, which names them, for members that nobody may send."""
    if unknown := sorted(found.keys() - {*allowed}):
        raise ManagementError(400, refusal, f"{', '.join(map(repr, unknown))} cannot be set here")


def _is_deeper(value: Any, depth: int) -> bool:
    """Whether there are more than `depth` collections in each other."""
    level = [value]
    for _ in range(depth + 1):
        found = [it.values() if isinstance(it, dict) else it for it in level if isinstance(it, (dict, list))]
        if not found:
            return False
        level = [member for members in found for member in members]
    return True


def reply(value: Any, *, status: int = 200) -> web.Response:
    """A JSON answer; structs are fine."""
    return web.Response(status=status, body=msgspec.json.encode(value), headers={"Content-Type": JSON_TYPE})
