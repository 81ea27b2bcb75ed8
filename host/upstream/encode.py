"""Request heads: one join, one encode, one scan for injected line ends."""

import re
from typing import Final

from host.upstream.errors import InvalidRequest
from host.upstream.model import UpstreamRequest
from host.upstream.origin import Origin

_TOKEN: Final = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+").fullmatch
# Fields the client writes itself, or that speak about one hop: sent by a caller they would contradict the framing.
_OWN_FIELDS: Final = frozenset(
    {
        "connection",
        "content-length",
        "expect",
        "host",
        "http2-settings",
        "keep-alive",
        "proxy-authorization",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    }
)
_USUAL_METHODS: Final = frozenset({"GET", "POST"})
_BODY_EXPECTED: Final = frozenset({"POST", "PUT", "PATCH"})
_MAX_CACHED_NAMES: Final = 1024


class FieldNames(dict[str, str]):
    """Field name -> the same name once checked, or "" for one that must not be sent. Raises InvalidRequest."""

    def __missing__(self, name: str) -> str:
        if not _TOKEN(name):
            raise InvalidRequest("a header name is empty or holds a forbidden character")
        checked = "" if name.lower() in _OWN_FIELDS else name
        if len(self) < _MAX_CACHED_NAMES:
            self[name] = checked
        return checked


def encode_head(request: UpstreamRequest, origin: Origin, target: str, names: FieldNames) -> bytes:
    """The bytes before the body. Raises InvalidRequest for anything that could be read as more than one request."""
    method = request.method
    if method not in _USUAL_METHODS and (not _TOKEN(method) or method == "CONNECT"):
        raise InvalidRequest("the method is not an HTTP method that can be sent to an origin")
    lines = [f"{checked}: {value}" for name, value in request.headers if (checked := names[name])]
    if request.body or method in _BODY_EXPECTED:
        lines.append(f"Content-Length: {len(request.body)}")
    fields = "\r\n".join(lines)
    # Every line end in here must be one of ours; counting is a few times faster than checking each value.
    if fields.count("\r") != (ours := max(len(lines) - 1, 0)) or fields.count("\n") != ours or "\0" in fields:
        raise InvalidRequest("a header value holds a line end or a NUL")
    try:
        if not lines:
            return f"{method} {target}{origin.request_line_end}\r\n".encode("latin-1")
        return f"{method} {target}{origin.request_line_end}{fields}\r\n\r\n".encode("latin-1")
    except UnicodeEncodeError as exc:
        raise InvalidRequest("a header value holds a character outside Latin-1") from exc
