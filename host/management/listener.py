"""Where the management API is served: on a listener of its own, and on the control socket."""

import errno
import os
import ssl
import stat
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final

from aiohttp import web

from host.config.model import Config, config_path
from host.config.values import listen_address

Handler = Callable[[web.BaseRequest], Awaitable[web.StreamResponse | None]]

MAX_HEADERS: Final = 100
KEEP_ALIVE_S: Final = 75.0
"""Between requests, and from the connection to the end of the first request's head."""
STOP_S: Final = 1.0


class OwnListener:
    """The listener that `remote-management.listen` names. What the API does not have is a plain 404 here."""

    def __init__(self, handler: Handler, *, reuse_port: bool = False) -> None:
        """`reuse_port`: other workers listen on the same address."""
        self._handler = handler
        self._reuse_port = reuse_port
        self._runner: web.ServerRunner | None = None
        self._socket: Path | None = None
        self.url = ""

    async def start(self, config: Config, *, tls: ssl.SSLContext | None) -> None:
        """Listen. Raises OSError. A socket file that a killed proxy left behind is replaced, any other file is not."""
        where = listen_address(config.remote_management.listen)
        self._runner = web.ServerRunner(serving(self._serve), shutdown_timeout=STOP_S)
        await self._runner.setup()
        if isinstance(where, str):
            if self._reuse_port:
                raise OSError(errno.EADDRINUSE, "several workers cannot share a Unix socket: give host and port")
            path = Path(config_path(config, where))
            _remove_stale(path)
            await web.UnixSite(self._runner, str(path)).start()
            self._socket = path
            path.chmod(0o600)
            self.url = f"unix:{path}"
            return
        host, port = where
        await web.TCPSite(self._runner, host, port, ssl_context=tls, reuse_port=self._reuse_port or None).start()
        address = self._runner.addresses[0]
        shown = f"[{address[0]}]" if ":" in address[0] else address[0]
        self.url = f"{'http' if tls is None else 'https'}://{shown}:{address[1]}"

    async def stop(self) -> None:
        """Stop listening and remove the socket file."""
        if self._runner is not None:
            await self._runner.cleanup()
        if self._socket is not None:
            self._socket.unlink(missing_ok=True)

    async def _serve(self, request: web.BaseRequest) -> web.StreamResponse:
        answer = await self._handler(request)
        return answer if answer is not None else web.Response(status=404)


def serving(handler: Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]) -> web.Server:
    """aiohttp's low-level server around a handler; bodies are decoded by ourselves, with a limit."""
    return web.Server(
        handler, access_log=None, auto_decompress=False, max_headers=MAX_HEADERS, keepalive_timeout=KEEP_ALIVE_S
    )


def _remove_stale(path: Path) -> None:
    try:
        mode = os.lstat(path).st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise FileExistsError(f"{path} exists and is no socket")
    path.unlink()
