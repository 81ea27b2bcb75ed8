"""Which models clients are shown: a model that no credential can serve for long is left out (spec credentials 2.3)."""

from collections.abc import Mapping
from typing import Final

from host.credentials.cooldown import CooldownBook, CoolState
from host.registry.groups import Group
from host.registry.models import Entry, ModelRegistry
from pluginabi.payloads.common import ModelInfo

SUSPENDING: Final = frozenset({"unauthorized", "invalid_grant", "payment_required", "not_found", "model_not_supported"})
"""Reasons that speak against the credential or the model. A limit that is used up never hides a model."""
LIMITS: Final = frozenset({"quota", "credential_quota"})


def listed_models(registry: ModelRegistry, groups: Mapping[str, Group], book: CooldownBook) -> tuple[ModelInfo, ...]:
    """The models of the registry, by id, without those that are suspended."""
    book.tick()
    everything = registry.list()
    blocked = _blocked_by_model(book)
    if not blocked:
        return everything
    entries = registry.catalogue.entries
    return tuple(info for info in everything if _is_listed(entries[info.id.lower()], groups, book, blocked))


def _blocked_by_model(book: CooldownBook) -> set[str]:
    return {state.model for _, states in book.all_states() for state in states.values() if state.blocked}


def _is_listed(entry: Entry, groups: Mapping[str, Group], book: CooldownBook, blocked: set[str]) -> bool:
    registered = limited = suspended = 0
    for source_id, offer in entry.offers.items():
        group = groups.get(source_id)
        if group is None:
            continue
        registered += len(group.members)
        everywhere = book.everywhere.blocks
        shelves = [book.shelf(key).blocks for key in offer.keys if key in blocked]
        if len(shelves) < len(offer.keys):
            # One model of the pool is blocked for nobody.
            shelves = []
        for credential_id in {*everywhere, *(shelves[0] if shelves else ())}:
            if credential_id not in group.ids:
                continue
            states = [everywhere[credential_id]] if credential_id in everywhere else []
            if not states and shelves and all(credential_id in shelf for shelf in shelves):
                states = [shelf[credential_id] for shelf in shelves]
            kind = _kind(states)
            limited, suspended = limited + (kind == "limited"), suspended + (kind == "suspended")
    if not registered:
        return False
    return registered - limited - suspended > 0 or (limited > 0 and suspended == 0) or not (limited or suspended)


def _kind(states: list[CoolState]) -> str:
    if states and all(state.reason in SUSPENDING for state in states):
        return "suspended"
    return "limited" if any(state.reason in LIMITS for state in states) else ""
