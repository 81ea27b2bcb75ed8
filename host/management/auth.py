"""Who may use the management API: the address first, then the key (spec credentials 8.1)."""

import asyncio
import hmac
import math
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from host.config.model import RemoteManagement
from host.management.calls import ManagementError
from host.management.failures import FailureTable
from host.management.secret import matches
from host.pipeline.access import anonymous_request_allowed, is_loopback_name
from host.tasks import TaskGroup
from host.web.clients import TrustedProxies
from pluginabi.immutable import Headers

ENVIRONMENT_KEY: Final = "MANAGEMENT_PASSWORD"
"""Environment variable with a second key. Setting it also allows other machines."""

MAX_VERIFIED: Final = 8
MAX_WAITING: Final = 32
"""Slow verifications that may be queued; they run one by one."""
_FORWARDED: Final = ("forwarded", "x-forwarded-for", "x-real-ip", "x-forwarded-host")

Matches = Callable[[str, str], bool]


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a call comes from, as far as it can be believed."""

    address: str
    """The client's; empty on a Unix socket."""
    on_this_machine: bool
    host: str
    origin: str

    @classmethod
    def of(cls, peer: str, headers: Headers, proxies: TrustedProxies) -> "Origin":
        """From the connection's peer and the headers.

        A proxy on this machine makes everybody look local: a call that says it was forwarded is from elsewhere.
        """
        forwarded = any(name in headers for name in _FORWARDED)
        local = (not peer or is_loopback_name(peer)) and not forwarded
        address = proxies.client_address(peer, headers)
        return cls(address, local, headers.get("host", ("",))[0], headers.get("origin", ("",))[0])

    @property
    def of_this_machine(self) -> bool:
        """Whether no web page of another host, and no name re-bound to this machine, can be behind the call."""
        return self.on_this_machine and anonymous_request_allowed(self.host, self.origin)

    @property
    def same_page(self) -> bool:
        """Whether it comes from no web page, or from one of the host that it is addressed to."""
        return not self.origin or self.origin.partition("://")[2].lower() == self.host.lower()


def offered_key(headers: Headers) -> str:
    """The key of a call: `Authorization: Bearer <key>`, `Authorization: <key>`, else `X-Management-Key`."""
    value = headers.get("authorization", ("",))[0].strip()
    if not value:
        return headers.get("x-management-key", ("",))[0].strip()
    scheme, _, rest = value.partition(" ")
    return rest.strip() if scheme.lower() == "bearer" else value


class Authenticator:
    """Admits calls. A verified key is remembered as a keyed digest, so that the slow hash is computed once."""

    def __init__(
        self,
        *,
        settings: Callable[[], RemoteManagement],
        tasks: TaskGroup,
        environment_key: str = "",
        failures: FailureTable | None = None,
        matches: Matches = matches,
    ) -> None:
        self._settings = settings
        self._tasks = tasks
        self._failures = failures if failures is not None else FailureTable()
        self._matches = matches
        self._pepper = secrets.token_bytes(32)
        self._environment = self._digest(environment_key.strip()) if environment_key.strip() else None
        self._verified: dict[bytes, str] = {}
        self._waiting = 0
        self._one_at_a_time = asyncio.Semaphore(1)

    @property
    def enabled(self) -> bool:
        """Whether there is a key; without one there is no management API."""
        return self._environment is not None or bool(self._settings().secret_key)

    @property
    def allows_remote(self) -> bool:
        """Whether other machines may call."""
        return self._settings().allow_remote or self._environment is not None

    async def admit(self, origin: Origin, key: str) -> str:
        """The name of the key that was given. Raises ManagementError 401, 403, or 503 when too many are waiting."""
        self._refuse_banned(origin)
        self._refuse_elsewhere(origin)
        if not self.enabled:
            raise ManagementError(403, "remote management key not set")
        if not key:
            self._failures.failed(origin.address)
            raise ManagementError(401, "missing management key")
        name = self._known(key) or await self._slowly_known(origin, key)
        if name is None:
            raise ManagementError(401, "invalid management key")
        self._failures.succeeded(origin.address)
        return name

    def _refuse_banned(self, origin: Origin) -> None:
        banned_s = self._failures.banned_for_s(origin.address)
        if banned_s > 0:
            wait = _duration(banned_s)
            raise ManagementError(403, f"IP banned due to too many failed attempts. Try again in {wait}")

    def _refuse_elsewhere(self, origin: Origin) -> None:
        """Not counted as failures: a web page must not be able to get this machine banned."""
        if self.allows_remote:
            if not origin.same_page:
                raise ManagementError(403, "requests from web pages of other hosts are refused")
        elif not origin.on_this_machine:
            raise ManagementError(403, "remote management disabled")
        elif not origin.of_this_machine:
            raise ManagementError(403, "only requests addressed to localhost are served")

    def _known(self, key: str) -> str | None:
        """Whose key this is, when that can be told without the slow hash."""
        digest = self._digest(key)
        if self._environment is not None and hmac.compare_digest(digest, self._environment):
            return "environment key"
        stored = self._settings().secret_key
        return "key" if stored and self._verified.get(digest) == stored else None

    async def _slowly_known(self, origin: Origin, key: str) -> str | None:
        stored = self._settings().secret_key
        if not stored:
            self._failures.failed(origin.address)
            return None
        if self._waiting >= MAX_WAITING:
            raise ManagementError(503, "too many keys are being verified", headers={"Retry-After": "1"})
        self._waiting += 1
        # In a task of its own: a client that hangs up must neither free the queue nor save itself the failure.
        task = self._tasks.start(self._verify(origin, key, stored), name="verify-management-key")
        return "key" if await asyncio.shield(task) else None

    async def _verify(self, origin: Origin, key: str, stored: str) -> bool:
        try:
            async with self._one_at_a_time:
                if self._failures.banned_for_s(origin.address) > 0:
                    return False
                if not await asyncio.to_thread(self._matches, key, stored):
                    self._failures.failed(origin.address)
                    return False
        finally:
            self._waiting -= 1
        if len(self._verified) >= MAX_VERIFIED:
            self._verified.clear()
        self._verified[self._digest(key)] = stored
        return True

    def _digest(self, key: str) -> bytes:
        return hmac.digest(self._pepper, key.encode("utf-8", "surrogateescape"), "sha256")


def _duration(seconds: float) -> str:
    """`29m59s`, `45s`."""
    minutes, rest = divmod(math.ceil(seconds), 60)
    return f"{minutes}m{rest}s" if minutes else f"{rest}s"
