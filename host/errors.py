"""Errors of the host itself, and the one function that turns any exception of a request into the error object.

Exception
├── pluginabi.errors.PluginError            somebody answered an error: kept as it is
├── pluginabi.errors.PluginTransportError   a plugin broke: 502, 503 or 504 by phase
└── RequestError                            the host refuses or cannot serve this request
"""

from typing import Any

from pluginabi.errors import ErrorBody, PluginError, PluginTransportError, normalised


class RequestError(Exception):
    """The host refuses a request or cannot serve it; `body` says why, `origin` is always host."""

    def __init__(self, http_status: int, code: str, message: str, **fields: Any) -> None:
        super().__init__(message)
        self.body = ErrorBody(message=message, code=code, http_status=http_status, origin="host", **fields)


def to_error_body(error: BaseException) -> ErrorBody:
    """The error object for anything a request can raise; an unknown exception is a bug of the host: 500."""
    if isinstance(error, PluginError):
        return normalised(error.body, default_origin="host" if error.body.origin == "host" else "plugin")
    if isinstance(error, (RequestError,)):
        return error.body
    if isinstance(error, PluginTransportError):
        return error.to_error_body()
    return ErrorBody(message="internal error", code="internal_error", http_status=500, origin="host")
