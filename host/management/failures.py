"""Who has failed to authenticate, and who is banned for it: bounded, by the address of the client."""

import ipaddress
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

FAILURES_TO_BAN: Final = 5
BAN_S: Final = 30 * 60.0
IDLE_S: Final = 2 * 60 * 60.0
MAX_ADDRESSES: Final = 4096


@dataclass(slots=True)
class _Record:
    failures: int = 0
    banned_until_s: float = 0.0
    seen_s: float = 0.0


class FailureTable:
    """Counts failures per address, oldest first. A full table forgets whoever is not banned before anybody who is."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic, max_addresses: int = MAX_ADDRESSES) -> None:
        self._clock = clock
        self._max = max_addresses
        self._records: OrderedDict[str, _Record] = OrderedDict()

    def banned_for_s(self, address: str) -> float:
        """How long the address stays banned; 0 when it is not."""
        record = self._records.get(_network(address))
        return max(0.0, record.banned_until_s - self._clock()) if record is not None else 0.0

    def failed(self, address: str) -> None:
        """One failure more; the fifth bans the address, and its count begins anew."""
        now_s = self._clock()
        self._forget_idle(now_s)
        key = _network(address)
        record = self._records.pop(key, None) or _Record()
        record.seen_s = now_s
        record.failures += 1
        if record.failures >= FAILURES_TO_BAN:
            record.failures, record.banned_until_s = 0, now_s + BAN_S
        while len(self._records) >= self._max:
            self._forget_one(now_s)
        self._records[key] = record

    def succeeded(self, address: str) -> bool:
        """The address had the right key: its failures are forgotten. Whether there were any."""
        return self._records.pop(_network(address), None) is not None

    def __len__(self) -> int:
        return len(self._records)

    def _forget_idle(self, now_s: float) -> None:
        while self._records:
            oldest = next(iter(self._records.values()))
            if now_s - oldest.seen_s < IDLE_S:
                break
            self._records.popitem(last=False)

    def _forget_one(self, now_s: float) -> None:
        free = next((key for key, record in self._records.items() if record.banned_until_s <= now_s), None)
        if free is not None:
            del self._records[free]
        else:
            self._records.popitem(last=False)


def _network(address: str) -> str:
    """The address, or for IPv6 the /64 it is in: one client has all of them."""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return address
    if isinstance(parsed, ipaddress.IPv6Address):
        if parsed.ipv4_mapped is not None:
            return str(parsed.ipv4_mapped)
        return str(ipaddress.ip_network((parsed, 64), strict=False))
    return str(parsed)
