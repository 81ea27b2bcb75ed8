"""Which models clients are shown: a model that no credential can serve for long is left out (spec credentials 2.3)."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import inf
from typing import Final

from host.credentials.cooldown import CooldownBook, CoolState
from host.registry.groups import Group
from host.registry.models import Entry, ModelRegistry
from pluginabi.payloads.common import ModelInfo

SUSPENDING: Final = frozenset({"unauthorized", "invalid_grant", "payment_required", "not_found", "model_not_supported"})
"""Reasons that speak against the credential or the model. A limit that is used up never hides a model."""
LIMITS: Final = frozenset({"quota", "credential_quota"})
LIMIT_COUNTS_S: Final = 300.0
"""A limit that was reached longer ago does not count against its credential any more: it may be back any moment."""


@dataclass(frozen=True, slots=True)
class Listing:
    """What clients are shown, unless a block begins or ends; at the latest until `until_s` (the book's clock)."""

    models: tuple[ModelInfo, ...]
    until_s: float = inf


def listed_models(
    registry: ModelRegistry, groups: Mapping[str, Group], book: CooldownBook, *, unserved: frozenset[str] = frozenset()
) -> Listing:
    """The models of the registry, by id, without those that are suspended, or that only `unserved` sources offer."""
    book.tick()
    everything = registry.list()
    blocked = book.blocked_models()
    if not blocked and not book.everywhere.blocks and not unserved:
        return Listing(everything)
    if unserved:
        groups = {source_id: group for source_id, group in groups.items() if source_id not in unserved}
    census = _Census(groups, book, blocked)
    entries = registry.catalogue.entries
    models = tuple(info for info in everything if census.is_listed(entries[info.id.lower()]))
    return Listing(models, census.until_s)


class _Census:
    """Who of each group is blocked, and whether that is a limit or speaks against the model."""

    def __init__(self, groups: Mapping[str, Group], book: CooldownBook, blocked: set[str]) -> None:
        self._groups: Final = groups
        self._book: Final = book
        self._blocked: Final = blocked
        self._now_s: Final = book.clock()
        self.until_s = inf
        """When the next limit stops to count."""
        everywhere = book.everywhere.blocks
        self._whole: Final = {
            source_id: {it: everywhere[it] for it in group.ids & everywhere.keys()}
            for source_id, group in groups.items()
            if everywhere
        }

    def is_listed(self, entry: Entry) -> bool:
        registered = limited = counted = suspended = 0
        for source_id, offer in entry.offers.items():
            group = self._groups.get(source_id)
            if group is None:
                continue
            registered += len(group.members)
            for state in self._states(source_id, group, offer.keys):
                suspended += state.reason in SUSPENDING
                if state.reason in LIMITS:
                    limited += 1
                    counted += self._counts(state)
        if not registered:
            return False
        return registered - counted - suspended > 0 or (limited > 0 and suspended == 0)

    def _counts(self, state: CoolState) -> bool:
        ends_s = state.since_s + LIMIT_COUNTS_S
        if ends_s <= self._now_s:
            return False
        self.until_s = min(self.until_s, ends_s)
        return True

    def _states(self, source_id: str, group: Group, keys: tuple[str, ...]) -> Iterator[CoolState]:
        """What blocks the members of a group: one state for each of them."""
        whole = self._whole.get(source_id, {})
        yield from whole.values()
        if not all(key in self._blocked for key in keys):
            return  # one model of the pool is blocked for nobody
        shelves = [self._book.shelf(key).blocks for key in keys]
        for credential_id in group.ids.intersection(*shelves) - whole.keys():
            states = [shelf[credential_id] for shelf in shelves]
            # Of a pool the mildest reason counts: one model with a limit is back one day.
            yield min(states, key=lambda state: state.reason in SUSPENDING)
