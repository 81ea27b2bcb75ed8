"""Who asks on the control socket: everybody whose user could edit the configuration, but no confined plugin.

A plugin process is the same user as the operator. Without the permission `network` it can connect to nothing; with it,
and while it serves a socket itself, it could connect to any path. It is told by what it can never get rid of.
"""

import socket
import struct
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeAlias

import structlog
from aiohttp import web

log = structlog.get_logger("host.control")

Handler: TypeAlias = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]


def refusing_plugins(handler: Handler) -> Handler:
    """`handler` for all but confined plugins, who get 403."""

    async def handle(request: web.BaseRequest) -> web.StreamResponse:
        sock = request.transport.get_extra_info("socket") if request.transport is not None else None
        pid = peer_pid(sock) if sock is not None else 0
        if is_confined_further(pid):
            log.warning("control.refused", pid=pid, path=request.path)
            return web.json_response({"error": "a confined process may not ask the proxy"}, status=403)
        return await handler(request)

    return handle


def peer_pid(sock: Any) -> int:
    """The process that connected; 0 where the system does not tell."""
    if not hasattr(socket, "SO_PEERCRED"):
        return 0
    return int(struct.unpack("=iII", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[0])


def is_confined_further(pid: int) -> bool:
    """Whether a process gave up more than this one: it can gain no privileges and has more filters of system calls.

    One that is gone already counts: who asks waits for the answer, unless it wants to hide who it was.
    """
    if pid == 0:
        return False
    try:
        theirs, ours = _confinement_of(f"/proc/{pid}/status"), _confinement_of("/proc/self/status")
    except (FileNotFoundError, ProcessLookupError):
        return Path("/proc/self").exists()
    return theirs is not None and ours is not None and theirs[0] and theirs[1] > ours[1]


def _confinement_of(path: str) -> tuple[bool, int] | None:
    """No new privileges, number of filters; None before Linux 5.9. Raises OSError for a process that is gone."""
    lines = dict(line.split(":", 1) for line in Path(path).read_text("ascii", "replace").splitlines())
    try:
        return lines["NoNewPrivs"].strip() == "1", int(lines["Seccomp_filters"])
    except (KeyError, ValueError):
        return None
