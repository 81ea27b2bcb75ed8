"""Which handler serves a method and path: a table instead of a router, one lookup per request."""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass

from host.web.answer import Written
from host.web.exchange import Exchange

Handler = Callable[[Exchange, str], Awaitable[Written]]
"""Gets the exchange and what follows the route's prefix."""


@dataclass(frozen=True, slots=True)
class Route:
    """One route. `label` is its template."""

    label: str
    handler: Handler


@dataclass(frozen=True, slots=True)
class Routes:
    """Exact paths, and prefixes whose rest (not empty, may hold slashes) is an argument."""

    exact: Mapping[tuple[str, str], Route]
    prefixes: tuple[tuple[str, str, Route], ...]
    """Method, prefix with its last slash, route."""

    def find(self, method: str, path: str) -> tuple[Route, str] | None:
        """The route and the rest of the path."""
        route = self.exact.get((method, path))
        if route is not None:
            return route, ""
        for prefix_method, prefix, prefixed in self.prefixes:
            if method == prefix_method and path.startswith(prefix) and len(path) > len(prefix):
                return prefixed, path[len(prefix) :]
        return None

    def is_route(self, method: str, path: str) -> bool:
        """Whether anybody serves this."""
        return self.find(method, path) is not None

    def canonical(self, method: str, path: str) -> str | None:
        """The path without its trailing slash, if that is a route."""
        shorter = path.rstrip("/")
        return shorter if shorter and shorter != path and (method, shorter) in self.exact else None
