"""State shared by several nodes through Redis or Valkey.

A command waits at most `timeout_s`. The first that fails marks the server as away: from then on commands fail at once,
so that no request hangs on it, and a prober tries once a second until it answers again (no restart is needed).
"""

import asyncio
import contextlib
import math
import secrets
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any, Final, TypeVar

import structlog
from redis.asyncio import Redis
from redis.asyncio.client import PubSub
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import (
    AuthenticationError,
    AuthenticationWrongNumberOfArgsError,
    AuthorizationError,
    ClusterError,
    NoPermissionError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisError,
)
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from host.state.queue import RedisQueue
from host.state.store import NotAnInteger, StateError, StateFull, StateProblem, StateUnavailable
from host.tasks import TaskGroup

log = structlog.get_logger("host.state.redis")

PROBE_INTERVAL_S: Final = 1.0
MEMBER_TTL_S: Final = 5.0
"""A node that has not been heard of for so long is gone."""
MAX_SKEW_S: Final = 1.0
"""By how much clocks may disagree before the server's is gone by."""
_SCAN_COUNT: Final = 1000
_INCREMENT: Final = """
local old = redis.call('GET', KEYS[1])
if old and old ~= '0' then
  local sign, digits = string.match(old, '^(-?)([1-9]%d*)$')
  local most = sign == '-' and '9223372036854775808' or '9223372036854775807'
  if not digits or #digits > #most or (#digits == #most and digits > most) then return {0, 0} end
end
local new = redis.call('INCRBY', KEYS[1], ARGV[1])
if not old and ARGV[2] ~= '' then redis.call('PEXPIRE', KEYS[1], ARGV[2]) end
return {1, new}
"""
_MEMBERS: Final = """
local now = redis.call('TIME')
local now_ms = now[1] * 1000 + math.floor(now[2] / 1000)
if ARGV[2] == '' then redis.call('ZREM', KEYS[1], ARGV[1])
else redis.call('ZADD', KEYS[1], now_ms, ARGV[1]) end
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now_ms - ARGV[3])
redis.call('PEXPIRE', KEYS[1], ARGV[3])
return {redis.call('ZCARD', KEYS[1]), now_ms}
"""

T = TypeVar("T")


class RedisStore:
    """A `StateStore` on a server. Keys are `<prefix>:<namespace>:<key>`; bounds are the server's `maxmemory`."""

    def __init__(self, client: "Redis", prefix: str, guard: Callable[[Awaitable[Any]], Awaitable[Any]]) -> None:
        self._client = client
        self._prefix = prefix
        self._guard = guard
        self._increment = client.register_script(_INCREMENT)

    async def get(self, namespace: str, key: str) -> bytes | None:
        value: bytes | None = await self._guard(self._client.get(self._key(namespace, key)))
        return value

    async def set(
        self, namespace: str, key: str, value: bytes, *, ttl_s: float | None = None, only_if_absent: bool = False
    ) -> bool:
        command = self._client.set(self._key(namespace, key), value, px=_milliseconds(ttl_s), nx=only_if_absent)
        return await self._guard(command) is not None

    async def delete(self, namespace: str, key: str) -> bool:
        return bool(await self._guard(self._client.delete(self._key(namespace, key))))

    async def expire(self, namespace: str, key: str, ttl_s: float | None) -> bool:
        name = self._key(namespace, key)
        ttl_ms = _milliseconds(ttl_s)
        if ttl_ms is not None:
            return bool(await self._guard(self._client.pexpire(name, ttl_ms)))
        # PERSIST answers 0 for a key that had no limit, too.
        return bool(await self._guard(self._client.persist(name))) or bool(await self._guard(self._client.exists(name)))

    async def increment(self, namespace: str, key: str, by: int = 1, *, ttl_s: float | None = None) -> int:
        arguments: list[int | str] = [by, "" if ttl_s is None else str(_milliseconds(ttl_s))]
        is_integer, value = await self._guard(self._increment(keys=[self._key(namespace, key)], args=arguments))
        if not is_integer:
            raise NotAnInteger(f"the value of {key!r} is no integer")
        return int(value)

    async def items(self, namespace: str) -> Mapping[str, bytes]:
        start = self._key(namespace, "")
        pattern = "".join(f"[{letter}]" if letter in "*?[" else letter for letter in start) + "*"
        found: dict[str, bytes] = {}
        cursor = 0
        while True:
            # Each step has the time limit for itself: a server with many keys is no server that is away.
            cursor, names = await self._guard(self._client.scan(cursor, match=pattern, count=_SCAN_COUNT))
            values = await self._guard(self._client.mget(names)) if names else []
            rows = zip(names, values, strict=True)
            # A name that is no text is not ours.
            named = ((name.decode("utf-8", "replace"), value) for name, value in rows if value is not None)
            found.update((name[len(start) :], value) for name, value in named)
            if not int(cursor):
                return found

    def _key(self, namespace: str, key: str) -> str:
        return f"{self._prefix}:{namespace}:{key}"


class RedisState:
    """A `SharedState`: one client, one subscription, one prober. Start and stop it on one event loop."""

    def __init__(
        self,
        url: str,
        *,
        prefix: str = "jackfield",
        timeout_s: float = 0.5,
        ca_file: str = "",
        clock: Callable[[], float] = time.time,
    ) -> None:
        """`url` as `redis://[user:password@]host:port/db`, `rediss://…` or `unix://path`. Raises ValueError.

        `clock` gives Unix seconds.
        `ca_file`: with `rediss`, the certificates (PEM) of who may sign the server's; empty: those of the system.
        """
        self.node: Final = secrets.token_hex(4)
        self.available = False
        self.nodes = 1
        self._tasks = TaskGroup("state")
        self._prefix = prefix
        self._timeout_s = timeout_s
        authorities: dict[str, Any] = {"ssl_ca_certs": ca_file} if ca_file else {}
        self._client: Redis = Redis.from_url(
            url,
            socket_timeout=timeout_s,
            socket_connect_timeout=timeout_s,
            retry=Retry(NoBackoff(), 0),
            protocol=2,
            **authorities,
        )
        self._hint = "if it speaks no TLS, write redis://" if url.startswith("rediss:") else ""
        if url.startswith("redis:"):
            self._hint = "if it expects TLS, write rediss://"
        self.store: Final = RedisStore(self._client, prefix, self._guarded)
        self.usage: Final = RedisQueue(self._client, prefix, self._guarded)
        self._members = self._client.register_script(_MEMBERS)
        self._handlers: dict[str, list[Callable[[bytes], None]]] = {}
        self._on_available: list[Callable[[], None]] = []
        self.problem: StateProblem = ""
        self._losses = 0
        self._back_s = 0.0
        """When the server was found again after it had been away, in monotonic seconds."""
        self._clock: Final = clock
        self._ahead_s = 0.0
        """By how much this machine's clock is ahead of the server's, when that is more than can be left alone."""
        self._stopped = False

    def wall_s(self) -> float:
        return self._clock() - self._ahead_s

    async def publish(self, topic: str, message: bytes) -> bool:
        try:
            await self._guarded(self._client.publish(self._channel(topic), self.node.encode() + b":" + message))
        except StateError as error:
            log.warning("state.not_published", topic=topic, reason=str(error))
            return False
        return True

    def subscribe(self, topic: str, handler: Callable[[bytes], None]) -> None:
        """Before `start`: topics are subscribed to with the connection."""
        self._handlers.setdefault(self._channel(topic), []).append(handler)

    def on_available(self, action: Callable[[], None]) -> None:
        self._on_available.append(action)
        if self.available:
            action()

    async def start(self) -> None:
        await self.probe()
        self._tasks.start(self._keep_probing(), name="state-probe")
        if self._handlers:
            self._tasks.start(self._keep_listening(), name="state-listen")

    async def stop(self) -> None:
        if self._stopped:
            return
        self._stopped = True
        await self._tasks.stop()
        if self.available:
            # A node that says goodbye leaves its share to the others at once.
            with contextlib.suppress(StateError):
                await self._guarded(self._beat(leave=True))
        await self._client.aclose()

    async def _guarded(self, command: Awaitable[T]) -> T:
        """One command. Raises StateUnavailable, StateFull or StateError; never waits for a server that is away."""
        if not self.available:
            _discard(command)
            raise StateUnavailable("the state server is not reachable")
        return await self._translated(command)

    async def _translated(self, command: Awaitable[T]) -> T:
        try:
            async with asyncio.timeout(self._timeout_s * 2):
                return await command
        except ReadOnlyError as error:
            # It was the one to write to until somebody else took over: the next connection may lead to that one.
            self._lost(error)
            await self._client.connection_pool.disconnect(inuse_connections=False)
            raise StateUnavailable(f"the state server takes no writes: {error}") from error
        except (RedisConnectionError, RedisTimeoutError, ClusterError, TimeoutError, OSError) as error:
            self._lost(error)
            raise StateUnavailable(f"the state server is not reachable: {error or type(error).__name__}") from error
        except OutOfMemoryError as error:
            raise StateFull(str(error)) from error
        except RedisError as error:
            raise StateError(str(error)) from error

    def _lost(self, error: BaseException) -> None:
        if self.available:
            self.available = False
            self._losses += 1
        self._note(_problem(error), self._reason(error))

    def _reason(self, error: BaseException) -> str:
        """What the log says of it."""
        if (refusal := _distrust(error)) is not None:
            return f"its certificate is not trusted: {refusal.verify_message}; `state.ca-file` names who signed it"
        reason = str(error) or type(error).__name__
        # Who speaks the wrong way is hung up on, or never answered; a port that nobody listens on is something else.
        before = error.__cause__ or error.__context__
        is_mute = not isinstance(before, OSError) or isinstance(before, (ssl.SSLError, TimeoutError))
        return f"{reason} ({self._hint})" if is_mute and self._hint and not self._losses else reason

    def _note(self, problem: StateProblem, reason: str) -> None:
        """Once, not with each try for as long as it lasts."""
        if problem != self.problem:
            self.problem = problem
            log.error("state.unavailable", problem=problem, reason=reason)

    async def _keep_probing(self) -> None:
        # The client library loses a cancellation now and then: `stop` must not wait for ever.
        while not self._stopped:
            await asyncio.sleep(PROBE_INTERVAL_S)
            await self.probe()

    async def probe(self) -> None:
        """Contact the server now: whether it is there, and how many nodes there are. Raises nothing."""
        try:
            self._note_nodes(await self._translated(self._beat()))
        except StateUnavailable as error:
            log.debug("state.probe_failed", reason=str(error))
            return
        except StateError:
            if not await self._is_full():
                return
        else:
            self.problem = ""
        if not self.available:
            self.available = True
            self._back_s = time.monotonic()
            log.info("state.available", nodes=self.nodes)
            for action in self._on_available:
                action()

    async def _is_full(self) -> bool:
        """The server answers and refuses the probe. Whether it does so because nothing more fits in: what it holds can
        be used then. The reason is noted."""
        try:
            # A script's error does not say which kind it is, a plain command's does.
            await self._translated(self._client.set(f"{self._prefix}:probe", b"1", px=int(MEMBER_TTL_S * 1000)))
        except StateUnavailable:
            return False
        except StateError as error:
            cause = error.__cause__ or error
            self._note(_problem(cause), str(cause))
            return isinstance(error, StateFull)
        self._note("error", "scripts are refused")
        return False

    def _note_nodes(self, found: int) -> None:
        """One that came back empty knows those only that have found it again: the share of nobody else is free."""
        is_sure = self.available and time.monotonic() - self._back_s >= MEMBER_TTL_S
        self.nodes = max(1, found) if is_sure or not self._losses else max(self.nodes, found)

    async def _beat(self, *, leave: bool = False) -> int:
        arguments: list[int | str] = [self.node, "" if leave else "here", int(MEMBER_TTL_S * 1000)]
        began_s = self._clock()
        found, server_ms = await self._members(keys=[f"{self._prefix}:nodes"], args=arguments)
        self._compare_clocks(began_s, float(server_ms) / 1000)
        return int(found)

    def _compare_clocks(self, began_s: float, server_s: float) -> None:
        """`server_s`: the server's time at some moment between `began_s` and now."""
        ended_s = self._clock()
        ahead_s = (began_s + ended_s) / 2 - server_s
        unsure_s = MAX_SKEW_S + abs(ended_s - began_s) / 2
        if abs(ahead_s - self._ahead_s) <= unsure_s:
            return
        self._ahead_s = ahead_s if abs(ahead_s) > unsure_s else 0.0
        log.warning("state.clock_differs", ahead_s=round(self._ahead_s, 1))

    async def _keep_listening(self) -> None:
        is_told = False
        while not self._stopped:
            losses = self._losses
            try:
                async with self._subscription() as messages:
                    is_told = False
                    # What was published while nobody listened is not delivered: whoever keeps a copy reads it anew.
                    for action in self._on_available:
                        action()
                    # The server was away for others: a connection that says nothing may be one that leads nowhere.
                    while losses == self._losses and not self._stopped:
                        self._deliver(await self._next_message(messages))
            except (RedisError, OSError) as error:
                if not is_told:  # once, not with each try for as long as the server is away
                    is_told = True
                    log.warning("state.subscription_lost", reason=str(error) or type(error).__name__)
            await asyncio.sleep(PROBE_INTERVAL_S)

    @contextlib.asynccontextmanager
    async def _subscription(self) -> AsyncIterator[PubSub]:
        messages = self._client.pubsub()
        try:
            await messages.subscribe(*self._handlers)
            # Asked for is not subscribed: what is read over another connection before that may miss a message.
            for _ in self._handlers:
                await self._message_within(messages, self._timeout_s * 2)
            yield messages
        finally:
            await messages.aclose()  # type: ignore[no-untyped-call]  # the library left it without types

    async def _next_message(self, messages: PubSub) -> Mapping[str, Any]:
        """Raises RedisError when the connection is broken, also when nobody is told so: one that is quiet for long is
        forgotten by what lies between, and the server's messages go nowhere then."""
        message: Mapping[str, Any] | None = await messages.get_message(timeout=PROBE_INTERVAL_S)
        if message is None:
            await messages.ping()
            # Longer than a busy process may be kept from reading: a new subscription costs a look at all rows.
            message = await self._message_within(messages, max(3 * PROBE_INTERVAL_S, self._timeout_s * 2))
        return message

    async def _message_within(self, messages: PubSub, limit_s: float) -> Mapping[str, Any]:
        message: Mapping[str, Any] | None = await messages.get_message(timeout=limit_s)
        if message is None:
            raise RedisTimeoutError("the subscription is silent")
        return message

    def _deliver(self, message: Mapping[str, Any]) -> None:
        if message["type"] != "message":
            return
        sender, _, body = message["data"].partition(b":")
        if sender == self.node.encode():
            return
        for handler in self._handlers.get(message["channel"].decode(), ()):
            handler(body)

    def _channel(self, topic: str) -> str:
        return f"{self._prefix}:topic:{topic}"


def _problem(error: BaseException) -> StateProblem:
    """Which kind of trouble an error of the library is."""
    if _distrust(error) is not None:
        return "untrusted"
    if isinstance(error, (AuthenticationError, AuthenticationWrongNumberOfArgsError)):
        return "refused"
    if isinstance(error, (AuthorizationError, NoPermissionError)):
        return "refused"
    if isinstance(error, ReadOnlyError):
        return "read-only"
    if isinstance(error, OutOfMemoryError):
        return "full"
    if isinstance(error, (RedisConnectionError, RedisTimeoutError, ClusterError, OSError)):
        return "unreachable"
    return "error"


def _distrust(error: BaseException) -> ssl.SSLCertVerificationError | None:
    """That the server showed a certificate which it may not have: what the library's own error came of."""
    found = error.__cause__ or error.__context__
    return found if isinstance(found, ssl.SSLCertVerificationError) else None


def _milliseconds(ttl_s: float | None) -> int | None:
    """Rounded up: a key must not end before its time."""
    return None if ttl_s is None else max(1, math.ceil(ttl_s * 1000))


def _discard(command: Awaitable[Any]) -> None:
    close = getattr(command, "close", None)
    if close is not None:
        close()
