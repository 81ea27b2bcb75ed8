"""Archives and registries over https: bounded in size and time, never redirected to anything less safe."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final
from urllib.parse import urljoin, urlsplit, urlunsplit

from host import VERSION
from host.loopback import is_loopback
from host.upstream import (
    ClientLimits,
    InvalidRequest,
    UpstreamClient,
    UpstreamError,
    UpstreamRequest,
    UpstreamResponse,
)
from host.upstream.origin import parse_origin, split_url

MAX_REDIRECTS: Final = 5
_REDIRECTS: Final = frozenset({301, 302, 303, 307, 308})


class DownloadError(Exception):
    """Nothing was downloaded; the message says why, without the URL's query."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DownloadSettings:
    """How to reach the network: as the operator's configuration says for all upstream traffic."""

    proxy_url: str | None = None
    extra_ca_file: str | None = None
    connect_timeout_s: float = 10.0
    idle_timeout_s: float = 30.0
    """Silence of the server, its first byte included."""
    total_timeout_s: float = 600.0


async def download(url: str, *, max_bytes: int, settings: DownloadSettings, write: Callable[[bytes], object]) -> None:
    """Hand the body of `url` to `write`, piece by piece.

    `https` only, and `http` for this machine's own addresses. A redirect is followed to https; from loopback `http` to
    loopback as well. Raises DownloadError: refused URL, network failure, a status other than 200, more than
    `max_bytes`, or out of time; then `write` may have got a part.
    """
    client = UpstreamClient(limits=ClientLimits(extra_ca_file=settings.extra_ca_file))
    try:
        async with asyncio.timeout(settings.total_timeout_s):
            await _download(client, url, max_bytes=max_bytes, settings=settings, write=write)
    except UpstreamError as error:
        raise DownloadError(str(error)) from error
    except TimeoutError:
        message = f"{shown_url(url)}: not complete after {settings.total_timeout_s:g} s"
        raise DownloadError(message) from None
    finally:
        await client.close()


async def _download(
    client: UpstreamClient, url: str, *, max_bytes: int, settings: DownloadSettings, write: Callable[[bytes], object]
) -> None:
    for _ in range(MAX_REDIRECTS + 1):
        is_local = check_url(url)
        request = UpstreamRequest(
            method="GET",
            url=url,
            headers=(("User-Agent", f"jackfield/{VERSION}"), ("Accept", "*/*")),
            proxy_url=None if is_local else settings.proxy_url,
            connect_timeout_s=settings.connect_timeout_s,
            first_byte_timeout_s=settings.idle_timeout_s,
            idle_timeout_s=settings.idle_timeout_s,
        )
        async with await client.send(request) as response:
            if response.status not in _REDIRECTS:
                await _receive(response, url, max_bytes=max_bytes, write=write)
                return
            location = next((value for name, value in response.headers if name == "location"), "")
        target = urljoin(url, location)
        if target.startswith("http:") and not is_local:
            raise DownloadError(f"{shown_url(url)} redirects to {shown_url(target)}, which is not https")
        url = target
    raise DownloadError(f"{shown_url(url)}: more than {MAX_REDIRECTS} redirects")


async def _receive(response: UpstreamResponse, url: str, *, max_bytes: int, write: Callable[[bytes], object]) -> None:
    if response.status != 200:
        raise DownloadError(f"{shown_url(url)} answers with status {response.status}")
    received = 0
    async for piece in response:
        received += len(piece)
        if received > max_bytes:
            raise DownloadError(f"{shown_url(url)} is larger than {max_bytes} bytes")
        write(piece)


def check_url(url: str) -> bool:
    """Whether `url` is plain http to this machine. Raises DownloadError for one that may not be fetched at all."""
    try:
        # The client's own reading of the URL: whoever checks and whoever connects must not differ.
        origin = parse_origin(split_url(url)[0], None)
    except InvalidRequest as error:
        raise DownloadError(f"{shown_url(url)}: {error}") from None
    if origin.secure:
        return False
    if not is_loopback(origin.host):
        raise DownloadError(f"{shown_url(url)} is not https")
    return True


def shown_url(url: str) -> str:
    """The URL without what may be secret in it: user info, query, fragment."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return "the URL"
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))
