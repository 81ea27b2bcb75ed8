"""Asks a coordinator for a credential per attempt, over lists on a Redis or Valkey server (docs/remote-credentials.md).

A question is pushed to one list, its answer comes on a list of its own. Three outcomes stay apart: a credential,
nothing available, and nobody who answers.
"""

import asyncio
import contextlib
import secrets
import time
from collections.abc import Callable, Coroutine, Mapping
from typing import Any, Final

import msgspec
from msgspec import Raw, Struct, field
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from pluginapi import (
    Context,
    CredentialRecord,
    CredentialSourceRequest,
    CredentialSourceResponse,
    ModelInfo,
    ModelListRequest,
    ModelListResponse,
    Plugin,
    PluginError,
    RegisterRequest,
    RegisterResponse,
    ShutdownRequest,
    serve,
)

UNAVAILABLE: Final = "credential_source_unavailable"
CONNECT_S: Final = 3.0
WITHDRAW_S: Final = 0.5
_UNAUTHORIZED: Final = frozenset({"authentication_error", "unauthorized", "no_credentials", "invalid_credential"})


class Settings(Struct, frozen=True, rename="kebab"):
    """`plugins.configs.redis-source`."""

    url: str = ""
    prefix: str = "jackfield"
    timeout_ms: int = 3000
    list_models: bool = False
    """Ask the coordinator which models it has credentials for."""


class Question(Struct, frozen=True):
    """What the coordinator is asked."""

    id: str
    reply_to: str
    """The list that takes the answer."""
    deadline_ms: int
    """Unix milliseconds; nobody waits for an answer after that."""
    model: str
    count: int
    session_id: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)
    type: str = "auth"


class ModelsQuestion(Struct, frozen=True):
    """Which models there are."""

    id: str
    reply_to: str
    deadline_ms: int
    type: str = "models"


class ModelsAnswer(Struct, frozen=True):
    """For the lists that clients see."""

    models: list[ModelInfo] = field(default_factory=list)


class Refusal(Struct, frozen=True):
    """Why there is no credential, apart from there being none."""

    type: str = ""
    message: str = ""
    code: str = ""


class Handed(Struct, frozen=True):
    """A credential: its file's content in `auth`."""

    provider: str = ""
    id: str = ""
    label: str = ""
    proxy_url: str = ""
    attributes: Mapping[str, str] = field(default_factory=dict)
    auth: Raw = field(default_factory=lambda: Raw(b"{}"))


class Answer(Struct, frozen=True):
    """Neither a credential nor an error: nothing is available."""

    credential: Handed | None = None
    model: str = ""
    error: Refusal | None = None


_ANSWER: Final = msgspec.json.Decoder(Answer | None)
_MODELS: Final = msgspec.json.Decoder(ModelsAnswer | None)


class RedisSource(Plugin):
    """One connection pool; every question waits for its own answer."""

    id = "redis-source"
    version = "0.1.0"

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._settings = Settings()
        self._client: Redis | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def plugin_register(self, request: RegisterRequest) -> RegisterResponse | None:
        await self._connect()
        return None

    async def plugin_reconfigure(self, request: RegisterRequest) -> RegisterResponse | None:
        await self._connect()
        return None

    async def plugin_shutdown(self, request: ShutdownRequest) -> None:
        await self._close()

    async def credential_source_next(
        self, request: CredentialSourceRequest, ctx: Context
    ) -> CredentialSourceResponse | None:
        return _response_of(await self._answer_to(self._question(request), ctx))

    async def model_static(self, request: ModelListRequest, ctx: Context) -> ModelListResponse | None:
        if not self._settings.list_models:
            return None
        question = ModelsQuestion(**self._envelope())
        answer = await self._answer_to(question, ctx)
        try:
            found = _MODELS.decode(answer)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise PluginError(f"the coordinator's list of models cannot be read: {error}") from None
        return ModelListResponse(provider=self.id, models=found.models) if found is not None else None

    async def _answer_to(self, question: Question | ModelsQuestion, ctx: Context) -> bytes:
        """Raises PluginError `credential_source_unavailable` when nobody answers in time."""
        client, settings = self._client, self._settings
        if client is None:
            raise unavailable("`plugins.configs.redis-source.url` is not set")
        questions = f"{settings.prefix}:credential-questions"
        data = msgspec.json.encode(question)
        try:
            async with asyncio.timeout(settings.timeout_ms / 1000):
                await client.rpush(questions, data)
                found: Any = await client.blpop([question.reply_to], timeout=0)
                answer: bytes = found[1]
                return answer
        except TimeoutError:
            await _withdraw(client, questions, question, data)
            raise unavailable(f"the coordinator did not answer within {settings.timeout_ms} ms") from None
        except asyncio.CancelledError:
            # The client has gone: nobody must be handed a credential for it.
            self._start(_withdraw(client, questions, question, data))
            raise
        except (RedisError, OSError) as error:
            # Where the server is concerns the operator, not the client.
            ctx.log.error("redis_source.unreachable", reason=str(error) or type(error).__name__)
            raise unavailable("the server of the coordinator cannot be reached") from error

    def _envelope(self) -> dict[str, Any]:
        name = secrets.token_hex(12)
        return {
            "id": name,
            "reply_to": f"{self._settings.prefix}:credential-answer:{name}",
            "deadline_ms": int(self._clock() * 1000) + self._settings.timeout_ms,
        }

    def _question(self, request: CredentialSourceRequest) -> Question:
        return Question(
            **self._envelope(),
            model=request.model,
            count=request.count,
            session_id=request.session,
            headers={name.lower(): values[0] for name, values in request.headers.items() if values},
        )

    async def _connect(self) -> None:
        settings = msgspec.convert(dict(self.config), Settings)
        if settings == self._settings and self._client is not None:
            return
        if settings.timeout_ms <= 0:
            raise PluginError("`timeout-ms` has to be positive", code="invalid_config", http_status=400)
        client = _client_of(settings.url) if settings.url else None
        if self._client is not None:
            # Whoever has asked the server of before still gets its answer.
            self._start(_retire(self._client, after_s=self._settings.timeout_ms / 1000 + WITHDRAW_S))
        self._settings, self._client = settings, client

    async def _close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        client, self._client = self._client, None
        if client is not None:
            await client.aclose()

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work, name=self.id)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


async def _retire(client: Redis, *, after_s: float) -> None:
    try:
        await asyncio.sleep(after_s)
    finally:
        await client.aclose()


async def _withdraw(client: Redis, questions: str, question: Question | ModelsQuestion, data: bytes) -> None:
    """Nobody waits any more: a coordinator that comes later must not find the questions of an hour."""
    with contextlib.suppress(RedisError, OSError, TimeoutError):
        async with asyncio.timeout(WITHDRAW_S):
            await client.lrem(questions, 1, data)  # type: ignore[arg-type]  # its types know texts only
            await client.delete(question.reply_to)


def unavailable(message: str) -> PluginError:
    """Nobody could be asked: that says nothing about whether there is a credential, and may pass."""
    return PluginError(message, code=UNAVAILABLE, http_status=503, retryable=True)


def _client_of(url: str) -> Redis:
    try:
        client: Redis = Redis.from_url(url, socket_connect_timeout=CONNECT_S, retry=Retry(NoBackoff(), 0), protocol=2)
    except ValueError:
        # What the library says of it may be a part of the password.
        message = "`url` cannot be used: write redis://[user:password@]host:port/db, special characters percent-encoded"
        raise PluginError(message, code="invalid_config", http_status=400) from None
    return client


def _response_of(data: bytes) -> CredentialSourceResponse | None:
    try:
        answer = _ANSWER.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise PluginError(
            f"the coordinator's answer cannot be read: {error}", code="invalid_auth", http_status=502
        ) from None
    if answer is None:
        return None
    if answer.error is not None:
        raise _refusal(answer.error)
    if answer.credential is None:
        return None
    handed = answer.credential
    record = CredentialRecord(
        provider=handed.provider,
        id=handed.id,
        label=handed.label,
        proxy_url=handed.proxy_url,
        attributes=handed.attributes,
        storage=handed.auth,
    )
    return CredentialSourceResponse(record=record, model=answer.model)


def _refusal(error: Refusal) -> PluginError:
    status = 404 if error.type == "model_not_found" else 401 if error.type in _UNAUTHORIZED else 502
    fields: dict[str, Any] = {"code": error.code or error.type or "credential_source_error", "http_status": status}
    return PluginError(error.message or "the coordinator refused", **fields)


if __name__ == "__main__":
    serve(RedisSource)
