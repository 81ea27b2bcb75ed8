"""What a scheduler plugin is shown: who could serve the attempt, without secrets, and never more than it can read.

With ten thousand credentials the list alone would be megabytes per pick. A plugin gets at most `MAX_CANDIDATES` of them
unless its inputs say `candidates:all`, and is told how many there are. Which ones: those that follow on from a place in
the tier. Requests of one session start at one place, so that whoever keeps sessions together sees the same candidates;
all others start where the last one ended, so that everybody is shown equally often.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from itertools import chain, islice
from typing import Final

from host.credentials.affinity import session_of
from host.credentials.pool import Tier
from host.credentials.records import Credential
from host.credentials.retry import Search
from host.pipeline.execution import Execution
from host.pipeline.state import Plan
from pluginabi.immutable import FrozenDict
from pluginabi.payloads.routing import Candidate

MAX_CANDIDATES: Final = 256
_SENSITIVE: Final = (
    "api_key",
    "apikey",
    "token",
    "secret",
    "cookie",
    "credential",
    "password",
    "storage",
    "authorization",
    "auth_header",
    "proxy_url",
)
_TO_UNDERSCORE: Final = str.maketrans({"-": "_", ".": "_", " ": "_"})
_REMOVED: Final = str.maketrans({"-": None, ".": None, " ": None, "_": None})


def shown_positions(
    ex: Execution, plan: Plan, tier: Tier, search: Search, *, total: int, everybody: bool
) -> Sequence[int]:
    """Where the candidates stand that a scheduler is shown, in the order of their ids. `total`: how many there are."""
    ready, credentials = tier.ready, tier.ready.members.credentials
    if total == len(credentials):
        found: Iterator[int] = iter(range(total))
    else:
        found = (position for position in ready.free() if search.allows(credentials[position]))
    if total > MAX_CANDIDATES and not everybody:
        return _sample(ex, plan, tier, search)
    order = ready.members.by_id
    if order is None:
        return list(found)
    able = set(found)
    return [position for position in order if position in able]


def _sample(ex: Execution, plan: Plan, tier: Tier, search: Search) -> Sequence[int]:
    ready, members = tier.ready, tier.ready.members
    cursors, key = ex.state.pool.health.cursors, f"{plan.cursor}#{tier.priority}#shown"
    session = _named_session(ex, plan)
    start = (session if session is not None else cursors.positions.get(key, 0)) % len(members)
    around = chain(ready.free(start), (it for it in ready.free() if it < start))
    able = (position for position in around if search.allows(members.credentials[position]))
    found = list(islice(able, MAX_CANDIDATES))
    if session is None:
        cursors.move(key, found[-1] + 1)
    return sorted(found, key=members.ids.__getitem__)


def _named_session(ex: Execution, plan: Plan) -> int | None:
    """A number of the session that the client names; None when it names none. What a conversation begins with is no
    name: thousands of strangers begin alike."""
    execution = ex.request.demands.execution_session_id
    session = session_of(ex.headers, lambda: ex.content.data, execution=execution)
    if session is None or session.source == "messages":
        return None
    key = f"{ex.request.principal.scope}\0{plan.cursor}\0{session.fallback or session.name}"
    return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "big")


def shown_at(tier: Tier, positions: Sequence[int]) -> tuple[Candidate, ...]:
    """The candidates at some positions; each is made once."""
    members = tier.ready.members
    known, credentials = members.shown, members.credentials
    found = []
    for position in positions:
        shown = known.get(position)
        if shown is None:
            shown = known[position] = candidate(credentials[position])
        found.append(shown)
    return tuple(found)


def candidate(credential: Credential) -> Candidate:
    """What a scheduler sees of a credential."""
    return Candidate(
        id=credential.id,
        provider=credential.provider,
        priority=credential.priority,
        status="active",
        attributes=shown_attributes(credential.attributes),
    )


def shown_attributes(attributes: Mapping[str, str]) -> Mapping[str, str]:
    """Attributes whose name does not sound like a secret."""
    return FrozenDict({name: value for name, value in attributes.items() if not _is_sensitive(name)})


@lru_cache(maxsize=1024)
def _is_sensitive(name: str) -> bool:
    folded = name.lower()
    spellings = (folded, folded.translate(_TO_UNDERSCORE), folded.translate(_REMOVED))
    return any(word in spelling for word in _SENSITIVE for spelling in spellings)
