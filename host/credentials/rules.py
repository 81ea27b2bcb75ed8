"""The operator's rules about upstream errors, from the configuration and from credential files (spec 12.2)."""

import re
from collections.abc import Iterable, Mapping
from typing import Any, cast

from host.config.model import Config, ErrorRuleEntry
from host.credentials.classify import ACTIONS, Action, ErrorRule
from host.credentials.values import int_like, text


def error_rules(entries: Iterable[ErrorRuleEntry]) -> tuple[ErrorRule, ...]:
    """Rules of the configuration, which was checked when it was loaded."""
    return tuple(_rule(it.status, it.action, it.match, it.match_regexr) for it in entries)


def rules_by_provider(config: Config) -> Mapping[str, tuple[ErrorRule, ...]]:
    """`oauth-request-scoped-errors`: for credential files, by provider key."""
    return {
        provider.strip().lower(): error_rules(entries)
        for provider, entries in config.oauth_request_scoped_errors.items()
    }


def rules_of_document(listed: Any) -> tuple[ErrorRule, ...]:
    """`request_scoped_errors` of a credential file; what cannot be read is left out. Raises ValueError for a pattern
    that is no regular expression."""
    found = []
    for item in listed if isinstance(listed, (list, tuple)) else ():
        if not isinstance(item, Mapping):
            continue
        status, action = int_like(item.get("status")), text(item.get("action"))
        if status is None or action not in ACTIONS:
            continue
        patterns = _texts(item.get("match-regexr", item.get("match_regexr")))
        try:
            found.append(_rule(status, cast(Action, action), _texts(item.get("match")), patterns))
        except re.error as error:
            raise ValueError(f"`request_scoped_errors`: {error}") from None
    return tuple(found)


def _rule(status: int, action: Action, texts: Iterable[str], patterns: Iterable[str]) -> ErrorRule:
    return ErrorRule(
        status=status,
        action=action,
        texts=tuple(it.lower() for it in texts if it),
        patterns=tuple(re.compile(it) for it in patterns),
    )


def _texts(value: Any) -> tuple[str, ...]:
    items = value if isinstance(value, (list, tuple)) else (value,)
    return tuple(item for item in items if isinstance(item, str) and item)
