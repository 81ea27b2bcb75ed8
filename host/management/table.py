"""Which handler serves a method and a path: each group of endpoints brings its rows, `Table` joins them.

A further group is a function that returns endpoints and one line in `host.management.wiring`.
"""

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from aiohttp import web

from host.management.calls import Call, ManagementError
from host.management.paths import segments_of

Handler = Callable[[Call], Awaitable[web.StreamResponse]]

READING: Final = frozenset({"GET", "HEAD"})


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One row. `path` is a template below the base, like `/plugins/{id}/config`; a name stands for one
    segment, or with a text behind it, like `{provider}-auth-url`, for its beginning."""

    method: str
    path: str
    handler: Handler
    public: bool = False
    """Served without the key, wherever management is reachable."""
    audited: bool = False
    """Written into the audit log although it is read: it begins something."""

    @property
    def writes(self) -> bool:
        """Such a call is written into the audit log, and goes on when its client hangs up."""
        return self.method not in READING


@dataclass(frozen=True, slots=True)
class Found:
    """An endpoint and what its template's names stand for in a path."""

    endpoint: Endpoint
    params: Mapping[str, str]


class Table:
    """All endpoints of the host; a template's literal segments win over its names."""

    def __init__(self, endpoints: Iterable[Endpoint]) -> None:
        """Raises ValueError for two endpoints of the same method and path."""
        self._rows: dict[tuple[str, ...], dict[str, Endpoint]] = {}
        for endpoint in endpoints:
            row = self._rows.setdefault(tuple(segments_of(endpoint.path)), {})
            if endpoint.method in row:
                raise ValueError(f"two endpoints {endpoint.method} {endpoint.path}")
            row[endpoint.method] = endpoint

    def find(self, method: str, segments: Sequence[str]) -> Found | None:
        """The endpoint; None for an unknown path. Raises ManagementError 405 when the path has other methods."""
        methods: set[str] = set()
        for template, row in self._matching(segments):
            endpoint = row.get(method) or (row.get("GET") if method == "HEAD" else None)
            if endpoint is not None:
                named = zip(template, segments, strict=True)
                return Found(endpoint, dict(_named(part, text) for part, text in named if _is_name(part)))
            methods |= row.keys()
        if methods:
            allowed = ", ".join(sorted(methods))
            raise ManagementError(405, "method_not_allowed", f"allowed: {allowed}", headers={"Allow": allowed})
        return None

    def is_public(self, method: str, segments: Sequence[str]) -> bool:
        """Whether this is an endpoint that needs no key."""
        return any((found := row.get(method)) is not None and found.public for _, row in self._matching(segments))

    def has(self, method: str, path: str) -> bool:
        """Whether the host itself serves this, so that no plugin may."""
        segments = segments_of(path)
        return any(method in row or (method == "HEAD" and "GET" in row) for _, row in self._matching(segments))

    def _matching(self, segments: Sequence[str]) -> list[tuple[tuple[str, ...], dict[str, Endpoint]]]:
        """Templates that fit, those with the fewest names first."""
        found = [
            (template, row)
            for template, row in self._rows.items()
            if len(template) == len(segments)
            and all(_fits(part, text) for part, text in zip(template, segments, strict=True))
        ]
        return sorted(found, key=lambda item: sum(_is_name(part) for part in item[0]))


def _fits(part: str, text: str) -> bool:
    """Whether a segment is what the template says; a name stands for at least one character."""
    return bool(_named(part, text)[1]) and text.endswith(_ending(part)) if _is_name(part) else part == text


def _named(part: str, text: str) -> tuple[str, str]:
    """The name in a part of a template, and what it stands for."""
    return part[1:].partition("}")[0], text.removesuffix(_ending(part))


def _ending(part: str) -> str:
    return part.partition("}")[2]


def _is_name(part: str) -> bool:
    return part.startswith("{")
