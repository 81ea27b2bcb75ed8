"""Logins through plugins: from the address for the browser to the stored credentials (spec credentials 8.5, 12.8).

A login is named by its state, lives half an hour at most, and is asked about by polling. What the browser brought back
is handed to the plugin in the next poll. A question to the plugin is a task of its own: whoever asked may go away, what
the provider gives out once does not get lost with them.
"""

import asyncio
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal
from urllib.parse import parse_qs, urlsplit

import structlog

from host.credentials.editor import CredentialEditor, CredentialError
from host.credentials.plugin_port import AuthPlugins
from host.credentials.values import time_like
from host.observe.logs import redact
from host.tasks import TaskGroup
from pluginabi.errors import PluginError, PluginTransportError
from pluginabi.payloads.credentials import AuthLoginPollRequest, AuthLoginPollResponse, AuthLoginStartRequest

log = structlog.get_logger("host.credentials.login")

LIFETIME_S: Final = 30 * 60.0
REMEMBERED_S: Final = 60.0
"""How long a login that is over is still known as such."""
MAX_SESSIONS: Final = 256
MAX_POLL_AFTER_S: Final = 60.0
POLL_WAIT_S: Final = 5.0
"""How long one who asks waits for the plugin's answer; the next who asks gets it then."""
_STATE: Final = re.compile(r"[A-Za-z0-9_.-]{1,128}")
_PROVIDER: Final = re.compile(r"[a-z0-9-]+")
UNKNOWN_TEXT: Final = "unknown or expired state"
CANCELLED_TEXT: Final = "the login was cancelled"
FAILED_TEXT: Final = "Authentication failed"


@dataclass(frozen=True, slots=True)
class LoginStarted:
    """What the operator needs: where to go, and under which state to ask how it went."""

    provider: str
    url: str
    state: str
    user_code: str = ""
    lifetime_s: float = LIFETIME_S


@dataclass(frozen=True, slots=True)
class LoginStatus:
    """How a login stands. `ids`: the credentials it brought."""

    status: Literal["wait", "ok", "error"]
    error: str = ""
    ids: tuple[str, ...] = ()


@dataclass(slots=True)
class _Session:
    provider: str
    metadata: Mapping[str, Any]
    ends_s: float
    not_before_s: float = 0.0
    code: str | None = None
    error: str | None = None
    outcome: LoginStatus | None = None
    question: asyncio.Task[LoginStatus] | None = None
    """To the plugin, while it is open."""
    is_storing: bool = False
    """Its credentials are being written: too late to give it up."""


class LoginSessions:
    """The logins in progress. What cannot be done raises CredentialError, with the status for whoever asked."""

    def __init__(
        self,
        plugins: AuthPlugins,
        editor: CredentialEditor,
        tasks: TaskGroup,
        *,
        clock: Callable[[], float] = time.monotonic,
        poll_wait_s: float = POLL_WAIT_S,
    ) -> None:
        self._plugins: Final = plugins
        self._editor: Final = editor
        self._tasks: Final = tasks
        self._clock: Final = clock
        self._poll_wait_s: Final = poll_wait_s
        self._sessions: dict[str, _Session] = {}

    def providers(self) -> tuple[str, ...]:
        """Who can be logged in to."""
        return self._plugins.login_providers()

    async def start(self, provider: str, callback_url: str) -> LoginStarted:
        """Begin a login. `callback_url` is where the browser may come back to.

        404 for a provider that nobody logs in to, 502 for a plugin whose answer cannot be used or whose process failed;
        what the plugin answered as an error keeps its status.
        """
        folded = checked_provider(provider)
        try:
            answer = await self._plugins.login_start(AuthLoginStartRequest(provider=folded, callback_url=callback_url))
        except KeyError:
            raise CredentialError(404, f"no plugin logs in to {folded!r}") from None
        except (PluginError, PluginTransportError) as error:
            body = error.body if isinstance(error, PluginError) else error.to_error_body()
            log.warning("login.start_failed", provider=folded, status=body.http_status, reason=body.message)
            message = f"failed to generate authorization url: {redact(body.message)}"
            raise CredentialError(body.http_status, message) from None
        if not answer.url.lower().startswith(("https://", "http://")):
            # It is opened in somebody's browser: nothing but a web page.
            raise CredentialError(502, "the plugin gave no address" + (" of a web page" if answer.url else ""))
        if not is_state(answer.state):
            raise CredentialError(502, "invalid oauth state")
        self._forget_ended()
        if answer.state in self._sessions or len(self._sessions) >= MAX_SESSIONS:
            raise CredentialError(502, "oauth state is in use already")
        lifetime_s = LIFETIME_S
        if (expires_s := time_like(answer.expires_at)) is not None:
            lifetime_s = max(0.0, min(LIFETIME_S, expires_s - time.time()))
        now_s = self._clock()
        self._sessions[answer.state] = _Session(
            folded, answer.metadata, now_s + lifetime_s, not_before_s=now_s + _pause_s(answer.poll_after_ms)
        )
        log.info("login.started", provider=folded)
        return LoginStarted(folded, answer.url, answer.state, answer.user_code, lifetime_s)

    def callback(self, state: str, *, code: str = "", error: str = "", provider: str = "") -> None:
        """The browser came back (vector M139). 400 for what makes no sense, 404 for an unknown state, 409 for a login
        that is over."""
        if not state:
            raise CredentialError(400, "state is required")
        if not is_state(state):
            raise CredentialError(400, "invalid state")
        if not code and not error:
            raise CredentialError(400, "code or error is required")
        session = self._living(state)
        if session is None:
            raise CredentialError(404, UNKNOWN_TEXT)
        named = checked_provider(provider) if provider.strip() else session.provider
        if session.outcome is not None and session.outcome.status == "error":
            raise CredentialError(409, session.outcome.error)
        if named != session.provider:
            raise CredentialError(400, "provider does not match state")
        if session.outcome is not None:
            raise CredentialError(409, "oauth flow is not pending")
        session.code, session.error = code or None, error or None
        session.not_before_s = 0.0

    async def poll(self, state: str) -> LoginStatus:
        """How the login stands; asks the plugin while it is pending. 400 for a malformed state.

        An unknown or expired state is an error status, and so is a failure, which stays.
        """
        if not is_state(state):
            raise CredentialError(400, "invalid state")
        session = self._living(state)
        if session is None:
            return LoginStatus("error", UNKNOWN_TEXT)
        if session.outcome is not None:
            return session.outcome
        if session.question is not None or self._clock() < session.not_before_s:
            return LoginStatus("wait")
        question = self._tasks.start(self._ask(state, session), name=f"login:{session.provider}")
        session.question = question
        await asyncio.wait({question}, timeout=self._poll_wait_s)
        if question.cancelled():
            return LoginStatus("error", CANCELLED_TEXT)
        return question.result() if question.done() else LoginStatus("wait")

    def cancel(self, state: str) -> bool:
        """Give a login up: whatever it still brings is not stored. Whether there was one that could still be."""
        session = self._living(state)
        if session is None or session.outcome is not None or session.is_storing:
            return False
        del self._sessions[state]
        if session.question is not None:
            session.question.cancel()
        return True

    async def _ask(self, state: str, session: _Session) -> LoginStatus:
        """One question to the plugin, and what follows from its answer."""
        try:
            outcome = await self._outcome(state, session)
        finally:
            session.question, session.is_storing = None, False
        if outcome.status != "wait":
            session.outcome = outcome
            session.ends_s = self._clock() + REMEMBERED_S
        return outcome

    async def _outcome(self, state: str, session: _Session) -> LoginStatus:
        request = AuthLoginPollRequest(
            provider=session.provider,
            state=state,
            code=session.code,
            error=session.error,
            metadata=session.metadata,
        )
        try:
            answer = await self._plugins.login_poll(request)
        except KeyError:
            return LoginStatus("error", f"no plugin logs in to {session.provider!r} any more")
        except PluginTransportError as error:
            # The plugin is starting again, say; the login may still go on with it.
            log.warning("login.poll_failed", provider=session.provider, reason=str(error))
            return LoginStatus("wait")
        except PluginError as error:
            log.warning("login.failed", provider=session.provider, reason=error.body.message)
            return LoginStatus("error", redact(error.body.message) or FAILED_TEXT)
        return await self._judge(request, session, answer)

    async def _judge(
        self, request: AuthLoginPollRequest, session: _Session, answer: AuthLoginPollResponse
    ) -> LoginStatus:
        if answer.status == "error":
            log.warning("login.failed", provider=session.provider, reason=answer.message)
            return LoginStatus("error", redact(answer.message) or FAILED_TEXT)
        if answer.status != "success":
            session.metadata = answer.metadata or session.metadata
            if (session.code, session.error) == (request.code, request.error):
                # The browser, should it have come back meanwhile, is not kept waiting.
                session.not_before_s = self._clock() + _pause_s(answer.poll_after_ms)
            return LoginStatus("wait")
        records = [record for record in answer.records if record is not None]
        if not records:
            return LoginStatus("error", FAILED_TEXT)

        def admit() -> bool:
            session.is_storing = self._living(request.state) is session
            return session.is_storing

        try:
            saved = await self._editor.save_login(session.provider, records, admit=admit)
        except CredentialError as error:
            return LoginStatus("error", str(error))
        ids = tuple(record.id for record in saved)
        log.info("login.succeeded", provider=session.provider, credentials=ids)
        return LoginStatus("ok", ids=ids)

    def _living(self, state: str) -> _Session | None:
        session = self._sessions.get(state)
        if session is not None and self._clock() >= session.ends_s and not session.is_storing:
            del self._sessions[state]
            return None
        return session

    def _forget_ended(self) -> None:
        for state in list(self._sessions):
            self._living(state)


def is_state(state: str) -> bool:
    """Whether this may be the state of a login."""
    return _STATE.fullmatch(state) is not None and ".." not in state


def checked_provider(provider: str) -> str:
    """The provider as it is compared: in lower case. Nothing is renamed. Raises CredentialError 400."""
    folded = provider.strip().lower()
    if not _PROVIDER.fullmatch(folded):
        raise CredentialError(400, "unsupported provider")
    return folded


@dataclass(frozen=True, slots=True)
class Redirect:
    """What a browser brings back to the callback address."""

    state: str = ""
    code: str = ""
    error: str = ""
    provider: str = ""


def redirect_of(url: str) -> Redirect:
    """What stands in the query of an address the browser was sent to. Raises CredentialError 400 when it is none."""
    try:
        parts = urlsplit(url.strip())
    except ValueError:
        raise CredentialError(400, "invalid redirect_url") from None
    if not parts.query:
        raise CredentialError(400, "invalid redirect_url")
    query = {name: values[0] for name, values in parse_qs(parts.query).items()}
    return Redirect(
        state=query.get("state", ""),
        code=query.get("code", ""),
        error=query.get("error", "") or query.get("error_description", ""),
        provider=query.get("provider", ""),
    )


def _pause_s(poll_after_ms: int | None) -> float:
    return min(MAX_POLL_AFTER_S, max(0, poll_after_ms or 0) / 1000)
