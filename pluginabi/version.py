"""The numbers of the contract and how two sides agree on them.

`proto/README.md` keeps the history table; a test compares its newest row with these constants.
"""

from collections.abc import Sequence
from typing import Final

from msgspec import Struct

ABI_VERSIONS: Final[tuple[int, ...]] = (1,)
"""Versions of frames and handshake this code speaks, ascending; the highest common one is used."""
SCHEMA_VERSION: Final = 1
"""Version of the payload fields. The host's must be at least the plugin's."""
FEATURES: Final[tuple[str, ...]] = ("callback_streams", "cancel", "credit", "goaway", "ping")
"""Optional behaviours; both sides use the intersection of their hellos."""


class Chosen(Struct, frozen=True):
    """What both sides use from now on."""

    abi: int
    features: frozenset[str]


class Refusal(Struct, frozen=True):
    """Why two sides cannot talk, in a sentence that names both and says what to upgrade."""

    message: str


def negotiate(
    *, plugin: str, plugin_abi: Sequence[int], plugin_schema: int, plugin_features: Sequence[str]
) -> Chosen | Refusal:
    """The host's decision about a plugin's hello."""
    common = set(plugin_abi) & set(ABI_VERSIONS)
    if not common:
        older = max(plugin_abi, default=0) < min(ABI_VERSIONS)
        upgrade = f"upgrade the plugin {plugin!r}" if older else "upgrade Jackfield"
        return Refusal(
            f"plugin {plugin!r} speaks ABI {_listed(plugin_abi)}, this host speaks {_listed(ABI_VERSIONS)}: {upgrade}"
        )
    if plugin_schema > SCHEMA_VERSION:
        return Refusal(
            f"plugin {plugin!r} needs payload schema {plugin_schema}, this host has {SCHEMA_VERSION}: upgrade Jackfield"
        )
    return Chosen(max(common), frozenset(plugin_features) & frozenset(FEATURES))


def _listed(versions: Sequence[int]) -> str:
    return ", ".join(str(version) for version in versions) or "no version"
