"""What became of the models that clients may ask for, for the log."""

from collections.abc import Iterable
from typing import Final

import structlog

from host.registry.models import Catalogue

log = structlog.get_logger("host.registry.changes")

_NAMED: Final = 20


def log_changes(before: Catalogue, after: Catalogue) -> None:
    """Say which models came and which went; nothing when they are the same."""
    added = after.entries.keys() - before.entries.keys()
    removed = before.entries.keys() - after.entries.keys()
    if added or removed:
        log.info("models.changed", added=_named(added), removed=_named(removed), models=len(after.entries))


def _named(names: Iterable[str]) -> list[str]:
    """The first of them, and how many more there are."""
    ordered = sorted(names)
    left = len(ordered) - _NAMED
    return ordered if left <= 0 else [*ordered[:_NAMED], f"and {left} more"]
