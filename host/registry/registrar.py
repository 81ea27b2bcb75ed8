"""Asking which models each credential serves, in the background and in batches (spec credentials 2.2, plugin-abi 7.6).

A batch is every credential that nobody was asked about yet. Configured keys come first, then everything else; of one
kind at most five are asked at a time, twenty of OpenAI-compatible providers. What was found is published once a batch
is done, and now and then before that when it takes long: making the next state is not cheap.
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final

import msgspec

from host.credentials.ids import COMPAT_FAMILY, COMPAT_PREFIX
from host.credentials.records import Credential
from host.registry.groups import Infos
from host.tasks import TaskGroup
from pluginabi.payloads.common import ModelInfo

PARALLEL: Final = 5
PARALLEL_COMPAT: Final = 20
PUBLISH_EVERY_S: Final = 2.0
RETRY_S: Final = 15.0
"""After somebody could not be asked: the upstream is away, say."""
MAX_RETRY_S: Final = 15 * 60.0


@dataclass(frozen=True, slots=True)
class Question:
    """A credential to ask about. `asked` differs when there is reason to ask again."""

    credential: Credential
    asked: Hashable


Ask = Callable[[Credential], Awaitable[Sequence[ModelInfo] | None]]
"""The models of a credential; None when nobody has an opinion. Raises LookupError when the answer could not be had:
what was known stays, and the question is asked again later."""
Later = Callable[[float, Callable[[], None]], object]
"""Does something after so many seconds."""


class Registrar:
    """Keeps `listed` up to date: models by credential id, equal lists being the same object."""

    def __init__(
        self,
        listed: dict[str, Infos],
        ask: Ask,
        *,
        publish: Callable[[], None],
        tasks: TaskGroup,
        publish_every_s: float = PUBLISH_EVERY_S,
        later: Later | None = None,
    ) -> None:
        self._listed: Final = listed
        self._ask: Final = ask
        self._publish: Final = publish
        self._tasks: Final = tasks
        self._publish_every_s: Final = publish_every_s
        self._later: Final = later or _later
        self._present: dict[str, Question] = {}
        self._unanswered = False
        self._retries_later = False
        self._pause_s = RETRY_S
        self._asked: dict[str, Hashable] = {}
        self._waiting: dict[str, Question] = {}
        self._settled: dict[str, Hashable] = {}
        self._lists: dict[bytes, Infos] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._running = False
        self._dirty = False

    def follow(self, questions: Iterable[Question]) -> bool:
        """These are all credentials that can be asked about. Whether something known was dropped.

        Starts a batch for those that are new or changed; one that is running takes them on.
        """
        present = self._present = {it.credential.id: it for it in questions}
        gone = [credential_id for credential_id in self._asked if credential_id not in present]
        for credential_id in gone:
            del self._asked[credential_id]
        dropped = [self._listed.pop(it) for it in gone if it in self._listed]
        self._waiting = {
            credential_id: question
            for credential_id, question in present.items()
            if self._asked.get(credential_id) != question.asked
        }
        self._start()
        return bool(dropped)

    def _start(self) -> None:
        if self._waiting and not self._running:
            self._running = True
            self._unanswered = False
            self._tasks.start(self._run(), name="model-lists")

    def _retry(self) -> None:
        """Ask those who could not be asked, less and less often while that goes on."""
        self._retries_later = False
        self._pause_s = min(2 * self._pause_s, MAX_RETRY_S)
        self._waiting |= {it: question for it, question in self._present.items() if it not in self._asked}
        with contextlib.suppress(RuntimeError):  # the proxy is stopping
            self._start()

    def settle(self, question: Question) -> None:
        """The answer that is being given has changed the credential itself: that is no reason to ask again."""
        credential_id = question.credential.id
        if credential_id in self._asked:
            self._asked[credential_id] = self._settled[credential_id] = question.asked
            self._waiting.pop(credential_id, None)

    async def _run(self) -> None:
        self._publish_later()
        try:
            while self._waiting:
                batch = list(self._waiting.values())
                self._waiting = {}
                for question in batch:
                    self._asked[question.credential.id] = question.asked
                for phase in (True, False):
                    await self._ask_all([it for it in batch if (it.credential.source_kind == "config") is phase])
        finally:
            self._running = False
            if self._timer is not None:
                self._timer.cancel()
        if not self._unanswered:
            self._pause_s = RETRY_S
        elif not self._retries_later:
            self._retries_later = True
            self._later(self._pause_s, self._retry)
        self._publish_some()

    async def _ask_all(self, questions: Sequence[Question]) -> None:
        places: dict[str, asyncio.Semaphore] = {}
        asked: list[asyncio.Task[None]] = []
        for question in questions:
            credential = question.credential
            kind = f"{credential.provider}:{credential.auth_kind}"
            is_compat = credential.provider == COMPAT_FAMILY or credential.provider.startswith(COMPAT_PREFIX)
            place = places.setdefault(kind, asyncio.Semaphore(PARALLEL_COMPAT if is_compat else PARALLEL))
            asked.append(self._tasks.start(self._ask_one(question, place), name=f"models-of:{credential.id}"))
        if asked:
            await asyncio.wait(asked)

    async def _ask_one(self, question: Question, place: asyncio.Semaphore) -> None:
        credential_id = question.credential.id
        async with place:
            if self._asked.get(credential_id) != question.asked:
                return  # gone, or to be asked again anyway
            answered = False
            try:
                models = await self._ask(question.credential)
                answered = True
            except LookupError:
                return
            finally:
                asked = self._settled.pop(credential_id, question.asked)
                if not answered:
                    self._asked.pop(credential_id, None)
                    self._unanswered = True
        if self._asked.get(credential_id) != asked:
            return
        before = self._listed.pop(credential_id, None)
        if models is not None:
            self._listed[credential_id] = self._one_object(models)
        self._dirty = self._dirty or self._listed.get(credential_id) is not before

    def _one_object(self, models: Sequence[ModelInfo]) -> Infos:
        content = msgspec.json.encode(models)
        if len(self._lists) > 2 * len(self._listed) + 64:
            self._lists = {msgspec.json.encode(it): it for it in self._listed.values()}
        return self._lists.setdefault(content, tuple(models))

    def _publish_some(self) -> None:
        if self._dirty:
            self._dirty = False
            self._publish()
        if self._running:
            self._publish_later()

    def _publish_later(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(self._publish_every_s, self._publish_some)


def _later(wait_s: float, action: Callable[[], None]) -> object:
    return asyncio.get_running_loop().call_later(wait_s, action)
