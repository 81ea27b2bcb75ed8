"""Endpoints that other tools know and that are served under another name here, or not at all: the answer says which."""

from collections.abc import Iterator
from typing import Final, NoReturn

from host.management.calls import Call, ManagementError
from host.management.table import Endpoint, Handler

_SERVED_BY: Final = (
    ("/latest-version", "nobody is asked for newer versions: X-Jackfield-Version says which one this is"),
    ("/plugin-store", "run on the machine: jackfield plugins search, then jackfield plugins install ID"),
    ("/request-error-logs", "failed requests are kept in memory: GET /request-errors"),
    ("/request-error-logs/{name}", "failed requests are kept in memory: GET /request-errors, then GET /requests/ID"),
    ("/request-log-by-id/{id}", "bodies are not logged: GET /requests/{id} has every decision of the request"),
)


def elsewhere_endpoints() -> Iterator[Endpoint]:
    """For the table."""
    for path, text in _SERVED_BY:
        yield Endpoint("GET", path, _says(text))


def _says(text: str) -> Handler:
    async def handle(call: Call) -> NoReturn:
        raise ManagementError(404, "not_served", text.replace("{id}", call.params.get("id", "")))

    return handle
