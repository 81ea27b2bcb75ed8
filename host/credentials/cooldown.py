"""Which credential rests until when, per model. Survives reloads of the configuration; one per process.

Everything here is done in memory, in the same step in which a failure becomes known: the next pick sees it. A block
ends by itself, through a queue of expiries; nobody has to look at all credentials to find out who is back.
"""

import heapq
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import count
from typing import Final
from weakref import WeakValueDictionary

from host.credentials.classify import PASSING, Verdict

BACKOFF_MAX_LEVEL: Final = 11
"""2^11 s is above the cap: the level stops growing there."""
FORGET_AFTER_S: Final = 3600.0
"""How long the level of a block that has ended is remembered."""
MAX_MODELS_PER_CREDENTIAL: Final = 4096
"""Names come from clients where a credential serves a pattern: they must not fill the memory."""
ALL_MODELS: Final = ""
"""Key of a block on the whole credential."""
REFUSED_TOKEN: Final = frozenset({"unauthorized", "invalid_grant"})
"""Reasons that end when the token is renewed."""
_LOG_MAX: Final = 1024
_MAX_MESSAGE: Final = 200


@dataclass(frozen=True, slots=True)
class Cause:
    """What a credential rests for, as the upstream put it."""

    status: int = 0
    code: str = ""
    message: str = ""


NO_CAUSE: Final = Cause()
_GOES_ON: Final = getattr(time, "CLOCK_BOOTTIME", None)


def elapsed_s() -> float:
    """Seconds of a clock that nobody can set, and that goes on while the machine sleeps, where there is one: what
    rests for five hours has rested them in the morning."""
    return time.monotonic() if _GOES_ON is None else time.clock_gettime(_GOES_ON)


@dataclass(slots=True, eq=False)
class CoolState:
    """One credential and model."""

    credential_id: str
    model: str
    shelf: "Shelf"
    since_s: float = 0.0
    """When the evidence came."""
    until_s: float = 0.0
    reason: str = ""
    quota: bool = False
    exact: bool = False
    """The end is what the upstream said."""
    level: int = 0
    blocked: bool = False
    forced: bool = False
    """Rests although cooling is disabled."""
    cause: Cause = NO_CAUSE
    restored: bool = False
    """An earlier process left it: no news."""
    due_s: float = 0.0
    """When its place in the queue of expiries comes up."""


@dataclass(frozen=True, slots=True)
class Block:
    """Why a credential cannot serve a model right now."""

    until_s: float
    reason: str
    quota: bool


class Shelf:
    """Who is blocked for one model, and a log of changes from which an older picture can be brought up to date."""

    __slots__ = ("__weakref__", "blocks", "log", "start")

    def __init__(self) -> None:
        self.blocks: dict[str, CoolState] = {}
        self.log: list[str] = []
        """Ids of credentials whose block began, ended, or ends earlier than it was to, the latest last."""
        self.start = 0
        """How many changes came before the log."""

    @property
    def version(self) -> int:
        """The number of changes so far."""
        return self.start + len(self.log)

    def since(self, version: int) -> list[str] | None:
        """Who changed after `version`; None when the log does not reach back that far."""
        return self.log[version - self.start :] if version >= self.start else None

    def note(self, credential_id: str) -> None:
        """Write down that a block began, ended, or ends earlier."""
        self.log.append(credential_id)
        if len(self.log) > _LOG_MAX:
            del self.log[: _LOG_MAX // 2]
            self.start += _LOG_MAX // 2


class CooldownBook:
    """The blocks of all credentials. Times are of a clock that nobody can set, in seconds."""

    def __init__(self, *, clock: Callable[[], float] = elapsed_s) -> None:
        self.clock = clock
        self.version = 0
        """Grows with every block that begins or ends."""
        self.listeners: list[Callable[[str], None]] = []
        """Told the id of a credential whose blocks are not what they were."""
        self.everywhere = Shelf()
        """The blocks on whole credentials."""
        self._states: dict[str, dict[str, CoolState]] = {}
        self._shelves: WeakValueDictionary[str, Shelf] = WeakValueDictionary()
        self._queue: list[tuple[float, int, CoolState]] = []
        self._tick = count()
        self._live = 0

    @property
    def empty(self) -> bool:
        """Whether no credential has any state: then nothing can be blocked."""
        return not self._states

    def shelf(self, model: str) -> Shelf:
        """The blocks for one model. Kept as long as somebody holds it or a credential has a state for the model."""
        if model == ALL_MODELS:
            return self.everywhere
        found = self._shelves.get(model)
        if found is None:
            found = self._shelves[model] = Shelf()
        return found

    @property
    def is_due(self) -> bool:
        """Whether the time of a block has come."""
        return bool(self._queue) and self._queue[0][0] <= self.clock()

    def tick(self) -> None:
        """End the blocks whose time has come."""
        if self._queue and self._queue[0][0] <= (now_s := self.clock()):
            self._expire(now_s)

    def _expire(self, now_s: float) -> None:
        queue = self._queue
        while queue and queue[0][0] <= now_s:
            at_s, _, state = heapq.heappop(queue)
            if at_s != state.due_s:
                continue
            if not state.blocked or not state.level:
                self._drop(state, tell=False)  # whoever keeps blocks knows when they end
                continue
            # The level of a limit is remembered for a while: the next failure may mean that it was too short.
            self._set_blocked(state, False)
            self._schedule(state, state.until_s + FORGET_AFTER_S)

    def block(self, credential_id: str, model: str) -> Block | None:
        """The block of a credential for a model, whole-credential blocks included."""
        states = self._states.get(credential_id)
        if not states:
            return None
        worst: CoolState | None = None
        now_s = self.clock()
        for key in (ALL_MODELS, model):
            state = states.get(key)
            if state is not None and state.until_s > now_s and (worst is None or state.until_s > worst.until_s):
                worst = state
        return None if worst is None else Block(worst.until_s, worst.reason, worst.quota)

    def failed(self, credential_id: str, model: str, verdict: Verdict, *, cause: Cause = NO_CAUSE) -> float:
        """Mark a failure; returns the seconds the credential rests from now on, 0 for none."""
        if not verdict.rests:
            return 0.0
        now_s = self.clock()
        state = self._state_of(credential_id, ALL_MODELS if verdict.whole_credential else model)
        is_open = state.until_s > now_s
        is_same = state.reason == verdict.reason
        rest_s = verdict.cooldown_s
        if verdict.backoff:
            rest_s = max(min(2.0**state.level, verdict.at_most_s), rest_s)
            # A burst of failures inside one open window counts once, or ten parallel requests would mean half an hour.
            if is_open and (is_same or state.until_s >= now_s + rest_s):
                return state.until_s - now_s
            state.level = min(state.level + 1, BACKOFF_MAX_LEVEL)
        until_s = now_s + rest_s
        # What the upstream says beats what we guessed; but a limit that ends soon does not mend a key that was refused.
        is_corrected = verdict.exact and not state.exact and (is_same or state.reason in PASSING)
        if is_open and until_s < state.until_s and not is_corrected:
            if not is_same:
                return state.until_s - now_s  # what it rests for longer is also what ends that rest
            until_s = state.until_s
            verdict = replace(verdict, exact=verdict.exact or state.exact)
        state.restored = False
        self._fill(state, verdict, now_s, until_s, cause)
        return until_s - now_s

    def restore(
        self, credential_id: str, model: str, verdict: Verdict, *, since_s: float, level: int, cause: Cause
    ) -> None:
        """Take over a block that an earlier process left, unless a later one is known. `since_s`: when its evidence
        came, which is what it counts from also now; above the present it is the present."""
        state = self._state_of(credential_id, ALL_MODELS if verdict.whole_credential else model)
        now_s = self.clock()
        state.level = max(state.level, min(level, BACKOFF_MAX_LEVEL))
        if now_s + verdict.cooldown_s > state.until_s:
            state.restored = True
            self._fill(state, verdict, min(since_s, now_s), now_s + verdict.cooldown_s, cause)

    def adopt(
        self,
        credential_id: str,
        model: str,
        verdict: Verdict,
        *,
        since_s: float,
        until_s: float,
        level: int,
        cause: Cause,
    ) -> None:
        """Take over what somebody else knows of a credential and model, in place of what is known here."""
        state = self._state_of(credential_id, model)
        state.level = max(0, min(level, BACKOFF_MAX_LEVEL))
        state.restored = False
        self._fill(state, verdict, since_s, until_s, cause)

    def forget(self, credential_id: str, model: str) -> None:
        """End what is known of one credential and model."""
        state = self._states.get(credential_id, {}).get(model)
        if state is not None:
            self._drop(state)

    def succeeded(
        self, credential_id: str, model: str, *, began_s: float, seen_s: float, quota_left: bool = False
    ) -> None:
        """Mark a success, which ends what it disproves.

        `began_s`: when the attempt began; `seen_s`: when the upstream accepted it; `quota_left`: its answer says that
        something is left of every limit. What we guessed about the model ends at once. A time that the upstream named,
        and a block on the whole credential, end only when the attempt began later or `quota_left`: requests of the same
        moment may have passed just before the limit was reached.
        """
        states = self._states.get(credential_id)
        if not states:
            return
        for state in (states.get(model), states.get(ALL_MODELS)):
            if state is None:
                continue
            is_guess = state.model != ALL_MODELS and not state.exact
            later = state.since_s <= seen_s and (is_guess or (quota_left and state.quota))
            if not state.blocked or later or state.since_s < began_s:
                self._drop(state)

    def reset(self, credential_id: str) -> tuple[str, ...]:
        """Forget everything about one credential; returns the models that had a state."""
        states = tuple(self._states.get(credential_id, {}).values())
        for state in states:
            self._drop(state)
        return tuple(state.model for state in states if state.model != ALL_MODELS)

    def lift(self, credential_id: str, reasons: Collection[str], *, models: Collection[str] | None = None) -> None:
        """End the blocks for some reasons: what caused them is no longer so. `models` None: all of them."""
        for state in tuple(self._states.get(credential_id, {}).values()):
            if state.reason in reasons and (models is None or state.model in models):
                self._drop(state)

    def lift_unless_forced(self, credential_id: str) -> None:
        """End the blocks of a credential that shall not cool down, but for those that are no matter of cooling."""
        for state in tuple(self._states.get(credential_id, {}).values()):
            if not state.forced:
                self._drop(state)

    def blocked_models(self) -> set[str]:
        """The models that somebody is blocked for, blocks on whole credentials apart."""
        return {model for model, shelf in self._shelves.items() if shelf.blocks}

    def states(self, credential_id: str) -> Mapping[str, CoolState]:
        """What is known of one credential, by model. Blocks may have ended meanwhile."""
        return self._states.get(credential_id, {})

    def all_states(self) -> Iterator[tuple[str, Mapping[str, CoolState]]]:
        """What is known of every credential that has a state."""
        return iter(tuple(self._states.items()))

    def _state_of(self, credential_id: str, model: str) -> CoolState:
        states = self._states.setdefault(credential_id, {})
        state = states.get(model)
        if state is None:
            if len(states) >= MAX_MODELS_PER_CREDENTIAL:
                self._drop(next(state for state in states.values() if state.model != ALL_MODELS))
            state = states[model] = CoolState(credential_id, model, self.shelf(model))
            self._live += 1
        return state

    def _fill(self, state: CoolState, verdict: Verdict, since_s: float, until_s: float, cause: Cause) -> None:
        is_told = until_s < state.until_s or verdict.quota != state.quota or self._may_overtake(state)
        state.since_s, state.until_s, state.cause = since_s, until_s, cause
        state.reason, state.quota = verdict.reason, verdict.quota
        state.exact, state.forced = verdict.exact, verdict.forced
        self._schedule(state, state.until_s)
        if state.blocked:
            # Nobody's picture of who is free changes, but that of when the first is back. That an end is later is found
            # out by whoever comes to it; of many that rest it would be told too often.
            if is_told:
                state.shelf.note(state.credential_id)
            self.version += 1
        self._set_blocked(state, True)
        self._tell(state)

    def _may_overtake(self, state: CoolState) -> bool:
        """Whether a longer rest may be a rest for another reason: what its credential rests for longest counts."""
        states = self._states[state.credential_id].values()
        return len(states) > 1 and any(it.blocked and it.quota is not state.quota for it in states)

    def _drop(self, state: CoolState, *, tell: bool = True) -> None:
        state.due_s = -1.0
        states = self._states.get(state.credential_id)
        if states is not None and states.pop(state.model, None) is not None:
            self._live -= 1
            if not states:
                del self._states[state.credential_id]
        self._set_blocked(state, False)
        if tell:
            self._tell(state)

    def _tell(self, state: CoolState) -> None:
        for listener in self.listeners:
            listener(state.credential_id)

    def _set_blocked(self, state: CoolState, blocked: bool) -> None:
        if state.blocked == blocked:
            return
        state.blocked = blocked
        if blocked:
            state.shelf.blocks[state.credential_id] = state
        else:
            del state.shelf.blocks[state.credential_id]
        state.shelf.note(state.credential_id)
        self.version += 1

    def _schedule(self, state: CoolState, due_s: float) -> None:
        if state.due_s == due_s:
            return
        state.due_s = due_s
        heapq.heappush(self._queue, (due_s, next(self._tick), state))
        if len(self._queue) > 64 + 4 * self._live:
            # A state that is renewed again and again leaves an entry each time.
            current = {id(entry[2]): entry for entry in self._queue if entry[0] == entry[2].due_s}
            self._queue = list(current.values())
            heapq.heapify(self._queue)


def cause_of(status: int, code: str, message: str) -> Cause:
    """A cause short enough to be kept and stored."""
    return Cause(status, code[:_MAX_MESSAGE], message[:_MAX_MESSAGE])
