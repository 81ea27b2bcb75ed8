"""Which credential rests until when, per model. Survives reloads of the configuration; one per process."""

from collections.abc import Callable, Collection
from dataclasses import dataclass
from time import monotonic
from typing import Final

from host.credentials.classify import Verdict

BACKOFF_MAX_S: Final = 30 * 60.0
BACKOFF_MAX_LEVEL: Final = 11
"""2^11 s is above the cap: the level stops growing there."""
CHALLENGE_MIN_S: Final = 10.0
ALL_MODELS: Final = ""
"""Key of a block on the whole credential."""


@dataclass(slots=True)
class CoolState:
    """One credential and model."""

    until_s: float = 0.0
    reason: str = ""
    quota: bool = False
    level: int = 0


@dataclass(frozen=True, slots=True)
class Block:
    """Why a credential cannot serve a model right now."""

    until_s: float
    reason: str
    quota: bool


class CooldownBook:
    """The blocks of all credentials. Times are of the monotonic clock, in seconds."""

    def __init__(self, *, clock: Callable[[], float] = monotonic) -> None:
        self.clock = clock
        self._states: dict[str, dict[str, CoolState]] = {}

    def block(self, credential_id: str, model: str, now_s: float) -> Block | None:
        """The block of a credential for a model, whole-credential blocks included."""
        states = self._states.get(credential_id)
        if not states:
            return None
        worst: CoolState | None = None
        for key in (ALL_MODELS, model):
            state = states.get(key)
            if state is not None and state.until_s > now_s and (worst is None or state.until_s > worst.until_s):
                worst = state
        return None if worst is None else Block(worst.until_s, worst.reason, worst.quota)

    @property
    def empty(self) -> bool:
        """Whether no credential has any state: then nothing can be blocked."""
        return not self._states

    def failed(self, credential_id: str, model: str, verdict: Verdict) -> float:
        """Mark a failure; returns the seconds the credential rests from now on, 0 for none."""
        if not verdict.cooldown_s and not verdict.backoff:
            return 0.0
        now_s = self.clock()
        key = ALL_MODELS if verdict.whole_credential else model
        state = self._states.setdefault(credential_id, {}).setdefault(key, CoolState())
        if verdict.backoff:
            # A burst of failures inside one open window counts once, or ten parallel requests would mean half an hour.
            if state.quota and state.until_s > now_s:
                return state.until_s - now_s
            rest_s = min(2.0**state.level, BACKOFF_MAX_S)
            state.level = min(state.level + 1, BACKOFF_MAX_LEVEL)
        else:
            rest_s = verdict.cooldown_s
        state.until_s = max(state.until_s, now_s + rest_s)
        state.reason, state.quota = verdict.reason, verdict.quota
        return rest_s

    def succeeded(self, credential_id: str, model: str) -> None:
        """Mark a success: the model's state is forgotten. A block on the whole credential stays until its time."""
        states = self._states.get(credential_id)
        if states and states.pop(model, None) is not None and not states:
            del self._states[credential_id]

    def reset(self, credential_id: str) -> tuple[str, ...]:
        """Forget everything about one credential; returns the models that had a state."""
        return tuple(model for model in self._states.pop(credential_id, {}) if model != ALL_MODELS)

    def keep_only(self, credential_ids: Collection[str]) -> None:
        """Forget credentials that no longer exist."""
        for credential_id in [known for known in self._states if known not in credential_ids]:
            del self._states[credential_id]
