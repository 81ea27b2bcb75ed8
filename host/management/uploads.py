"""What somebody uploads: the files of a form, or one body with its name in the query."""

import asyncio
import email
import email.policy
from dataclasses import dataclass
from email.message import EmailMessage
from typing import Final

from host.management.calls import Call, ManagementError

MAX_FILES: Final = 1000
"""Of one form."""


@dataclass(frozen=True, slots=True)
class Upload:
    """One file; `from_form`: as part of a form."""

    name: str
    data: bytes
    from_form: bool = False


async def uploads_of(call: Call) -> list[Upload]:
    """Everything that was sent, at least one file. Raises ManagementError 400."""
    kind = next(iter(call.headers.get("content-type", ())), "")
    body = await call.body()
    if not kind.strip().lower().startswith("multipart/form-data"):
        return [Upload(call.argument("name").strip(), body)]
    found, _ = await asyncio.to_thread(_parts, kind, body)
    if not found:
        raise ManagementError(400, "no file uploaded")
    if len(found) > MAX_FILES:
        raise ManagementError(400, f"more than {MAX_FILES} files")
    return found


async def form_of(call: Call) -> tuple[list[Upload], dict[str, str]]:
    """The files of a form and its other fields, of which the first value counts. Raises ManagementError 400."""
    kind = next(iter(call.headers.get("content-type", ())), "")
    return await asyncio.to_thread(_parts, kind, await call.body())


def _parts(kind: str, body: bytes) -> tuple[list[Upload], dict[str, str]]:
    """The parts of a form (RFC 7578): those that have a file name, and the others by their names."""
    # The header of a request cannot hold a line break, so nothing of it can become a header of its own here.
    message = email.message_from_bytes(
        b"Content-Type: " + kind.encode("latin-1", "replace") + b"\r\n\r\n" + body, policy=email.policy.HTTP
    )
    if not isinstance(message, EmailMessage) or not message.is_multipart() or message.defects:
        raise ManagementError(400, "invalid multipart form")
    found: list[Upload] = []
    fields: dict[str, str] = {}
    for part in message.iter_parts():
        name = part.get_filename()
        payload = part.get_payload(decode=True)
        if not isinstance(payload, bytes):
            continue
        if name is not None:
            found.append(Upload(name.strip(), payload, from_form=True))
        else:
            field = str(part.get_param("name", "", header="content-disposition"))
            fields.setdefault(field, payload.decode("utf-8", "replace"))
    return found, fields
