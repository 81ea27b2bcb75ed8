"""How long credentials rest, in a form that outlives the process: the records, and what keeps them."""

from collections.abc import Collection, Mapping, Sequence
from typing import Final, Protocol

import msgspec
from msgspec import Struct


class QuotaRecord(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A limit that was hit. Times are RFC 3339."""

    exceeded: bool = False
    reason: str = ""
    next_recover_at: str | None = None
    backoff_level: int = 0


class ErrorRecord(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What the upstream answered."""

    message: str = ""
    code: str = ""
    http_status: int = 0
    retryable: bool = False


class CooldownRecord(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One block: of a model of a credential, or without `model` of the whole credential."""

    auth_id: str
    status: str
    """Always `cooling`."""
    next_retry_after: str
    provider: str = ""
    model: str = ""
    reason: str = ""
    exact: bool = False
    """The end is what the upstream said."""
    forced: bool = False
    """Rests although cooling is disabled."""
    quota: QuotaRecord = QuotaRecord()
    last_error: ErrorRecord | None = None
    since: str = ""
    """When the evidence came."""
    updated_at: str = ""


class CooldownSet(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Everything about one credential; no records mean that it is usable."""

    version: int
    auth_id: str
    provider: str = ""
    updated_at: str = ""
    path: str = ""
    """Of the credential's own file, for stores that keep theirs beside it; not stored."""
    records: Sequence[CooldownRecord] = ()


VERSION: Final = 1
DECODER: Final = msgspec.json.Decoder(CooldownSet)


class CooldownStore(Protocol):
    """Keeps the blocks of all credentials over a restart."""

    async def load(self) -> Sequence[CooldownSet]:
        """Everything that is kept; what cannot be read is reported and left out. Raises OSError and StateError."""

    async def save(self, every: Mapping[str, CooldownSet], changed: Collection[str]) -> None:
        """Keep `every` set, by credential, and nothing else; `changed` differ from the save before. Raises OSError and
        StateError; the same sets are handed over again then."""
