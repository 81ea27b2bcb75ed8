"""The local control socket: how `jackfield plugins …` talks to a running proxy on the same configuration file.

A Unix socket in a directory only this user can enter; there is no other authentication. It serves the endpoints of the
management API, below `/`, for callers who could edit the configuration file as well.
"""

import hashlib
import http.client
import os
import socket
import tempfile
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
from aiohttp import web

from host.control_peer import refusing_plugins
from host.worker import ASKED_BY_A_WORKER


def socket_path(config_path: Path, worker: int = 1) -> Path:
    """Where the proxy that serves this file listens; the path is short enough for every system's limit.

    Of several workers each has its own; the first one's is the proxy's.
    """
    digest = hashlib.sha256(os.fsencode(os.path.realpath(config_path))).hexdigest()[:16]
    base = os.environ.get("XDG_RUNTIME_DIR") or tempfile.gettempdir()
    return Path(base) / f"jackfield-{os.getuid()}" / f"{digest}{f'-{worker}' if worker > 1 else ''}.sock"


class ControlServer:
    """Serves the control socket until stopped."""

    def __init__(self, path: Path, handler: Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]) -> None:
        self._path = path
        self._handler = handler
        self._runner: web.ServerRunner | None = None

    async def start(self) -> None:
        """Listen; a socket left by a killed proxy is replaced. Raises PermissionError for a foreign directory."""
        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        if self._path.parent.stat().st_uid != os.getuid():
            raise PermissionError(f"{self._path.parent} belongs to somebody else")
        self._path.parent.chmod(0o700)
        self._path.unlink(missing_ok=True)
        self._runner = web.ServerRunner(web.Server(refusing_plugins(self._handler), access_log=None))
        await self._runner.setup()
        await web.UnixSite(self._runner, str(self._path)).start()

    async def stop(self) -> None:
        """Stop listening and remove the socket."""
        if self._runner is not None:
            await self._runner.cleanup()
            self._path.unlink(missing_ok=True)


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path, timeout_s: float) -> None:
        super().__init__("localhost", timeout=timeout_s)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


def ask(
    config_path: Path, method: str, path: str, *, body: Any = None, timeout_s: float = 60.0, worker: int | None = None
) -> tuple[int, Mapping[str, Any]] | None:
    """Ask the proxy that runs on this file, with `body` as JSON; None when none runs.

    A proxy that does not answer in time is status 504. `worker` asks one of several, who answers for itself only.
    """
    connection = _UnixConnection(socket_path(config_path, worker or 1), timeout_s)
    headers = {ASKED_BY_A_WORKER: "yes"} if worker is not None else {}
    try:
        connection.request(method, path, body=None if body is None else msgspec.json.encode(body), headers=headers)
        response = connection.getresponse()
        document = msgspec.json.decode(response.read())
    except (FileNotFoundError, ConnectionRefusedError):
        return None
    except TimeoutError:
        return 504, {"error": f"the running proxy did not answer within {timeout_s:g} s"}
    finally:
        connection.close()
    return response.status, document


@contextmanager
def ask_for_lines(config_path: Path, path: str, *, worker: int = 1) -> Iterator[tuple[int, Iterator[bytes]] | None]:
    """Ask for an answer that comes line by line: its status and lines; None when that worker does not run.

    Leaving hangs up, and a thread that waits for a line gets an OSError or ValueError.
    """
    connection = _UnixConnection(socket_path(config_path, worker), 60.0)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
    except (FileNotFoundError, ConnectionRefusedError):
        connection.close()
        yield None
        return
    try:
        yield response.status, iter(response.readline, b"")
    finally:
        if connection.sock is not None:
            # Closing alone would leave a thread that reads waiting.
            connection.sock.shutdown(socket.SHUT_RDWR)
        connection.close()
