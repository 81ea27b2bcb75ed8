"""Auth providers for tests of the credentials: scripted answers, no plugin, no process."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec
from msgspec import Raw

from pluginabi.payloads.common import CredentialRecord
from pluginabi.payloads.credentials import (
    AuthLoginPollRequest,
    AuthLoginPollResponse,
    AuthLoginStartRequest,
    AuthLoginStartResponse,
    AuthParseRequest,
    AuthRefreshRequest,
    AuthRefreshResponse,
    AuthSaveRequest,
    AuthSaveResponse,
)

Parse = Callable[[AuthParseRequest], Sequence[CredentialRecord] | Awaitable[Sequence[CredentialRecord]]]


@dataclass(frozen=True, slots=True)
class ClaimedByScript:
    plugin_id: str
    provider: str
    records: Sequence[CredentialRecord]


@dataclass
class ScriptedAuth:
    """An `AuthPlugins`: `parsers` by provider, where the empty one is asked about files of no named provider."""

    parsers: Mapping[str, Parse] = field(default_factory=dict)
    refreshed: Mapping[str, Callable[[AuthRefreshRequest], Any]] = field(default_factory=dict)
    saved: Callable[[AuthSaveRequest], AuthSaveResponse | None] | None = None
    start: Callable[[AuthLoginStartRequest], AuthLoginStartResponse] | None = None
    poll: Callable[[AuthLoginPollRequest], Any] | None = None
    seen: list[Any] = field(default_factory=list)

    def parses(self, provider: str) -> bool:
        return provider in self.parsers

    async def parse(self, request: AuthParseRequest) -> ClaimedByScript | None:
        self.seen.append(request)
        records = await _answer(self.parsers[request.provider](request))
        return ClaimedByScript("scripted", request.provider, records) if records else None

    def refreshes(self, provider: str) -> bool:
        return provider in self.refreshed

    async def refresh(self, provider: str, request: AuthRefreshRequest) -> AuthRefreshResponse:
        self.seen.append(request)
        found: AuthRefreshResponse = await _answer(self.refreshed[provider](request))
        return found

    async def save(self, provider: str, request: AuthSaveRequest) -> AuthSaveResponse | None:
        return self.saved(request) if self.saved is not None else None

    def login_providers(self) -> tuple[str, ...]:
        return ("acme",) if self.start is not None else ()

    async def login_start(self, request: AuthLoginStartRequest) -> AuthLoginStartResponse:
        self.seen.append(request)
        if self.start is None or request.provider not in self.login_providers():
            raise KeyError(request.provider)
        found: AuthLoginStartResponse = await _answer(self.start(request))
        return found

    async def login_poll(self, request: AuthLoginPollRequest) -> AuthLoginPollResponse:
        self.seen.append(request)
        assert self.poll is not None
        found: AuthLoginPollResponse = await _answer(self.poll(request))
        return found


class Slowly:
    """An answer that says when it is asked for, and waits until it may go on."""

    def __init__(self, answer: Callable[[Any], Any]) -> None:
        self.going, self.go_on = asyncio.Event(), asyncio.Event()
        self._answer = answer

    async def __call__(self, request: Any) -> Any:
        self.going.set()
        await self.go_on.wait()
        return self._answer(request)


async def _answer(value: Any) -> Any:
    if hasattr(value, "__await__"):
        value = await value
    if isinstance(value, BaseException):
        raise value
    return value


def record(storage: Any = None, **fields: Any) -> CredentialRecord:
    """A record as a plugin answers it."""
    if storage is not None:
        fields["storage"] = Raw(msgspec.json.encode(storage))
    return CredentialRecord(**fields)
