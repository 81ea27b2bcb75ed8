"""Secrets that cannot be printed, formatted, pickled or encoded by accident."""

import hmac
from collections.abc import Mapping
from typing import Any, NoReturn

from pluginabi.immutable import FrozenDict, freeze

MASK = "***"


class Secret:
    """Holds one secret text. Every way of showing it shows `***`; `reveal` is the only way out."""

    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        self._text = text

    def reveal(self) -> str:
        """The secret itself; for the code that puts it on the wire."""
        return self._text

    def __repr__(self) -> str:
        return f"Secret({MASK})"

    def __str__(self) -> str:
        return MASK

    def __format__(self, format_spec: str) -> str:
        return MASK

    def __bool__(self) -> bool:
        return bool(self._text)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and hmac.compare_digest(self._text.encode(), other._text.encode())

    def __hash__(self) -> int:
        return hash((Secret, self._text))

    def __reduce__(self) -> NoReturn:
        raise TypeError("a secret is never serialised")


class SecretDocument:
    """A JSON object with secrets in it: the content of a credential file. Shown as its member names only."""

    __slots__ = ("_members",)

    def __init__(self, members: Mapping[str, Any]) -> None:
        self._members: Mapping[str, Any] = members if isinstance(members, FrozenDict) else freeze(members)

    def reveal(self) -> Mapping[str, Any]:
        """The members, deeply immutable; never for logs, listings or plugins without `credential_secrets`."""
        return self._members

    def __repr__(self) -> str:
        return f"SecretDocument({', '.join(sorted(self._members))})"

    def __bool__(self) -> bool:
        return bool(self._members)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, SecretDocument) and self._members == other._members

    def __hash__(self) -> int:
        return hash(frozenset(self._members))

    def __reduce__(self) -> NoReturn:
        raise TypeError("a secret is never serialised")


EMPTY_DOCUMENT = SecretDocument(FrozenDict())
