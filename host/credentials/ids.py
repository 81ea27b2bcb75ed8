"""Stable names of credentials: ids, short indexes and provider keys (spec credentials 1.5, 1.9, 2.1)."""

import hashlib

COMPAT_FAMILY = "openai-compatibility"
COMPAT_PREFIX = "openai-compatible-"


class IdGenerator:
    """Ids of configured keys: `kind:<12 hex>`; the same key listed again gets `-1`, `-2`, … in one run."""

    def __init__(self) -> None:
        self._seen: dict[str, int] = {}

    def next(self, kind: str, *parts: str) -> tuple[str, str]:
        """The id and its short digest for a key of `kind` made of `parts`."""
        digest = hashlib.sha256(kind.encode())
        for part in parts:
            digest.update(b"\0" + part.strip().encode())
        short = digest.hexdigest()[:12]
        base = f"{kind}:{short}"
        repeats = self._seen.get(base, 0)
        self._seen[base] = repeats + 1
        return (base if repeats == 0 else f"{base}-{repeats}"), short


def auth_index(family: str, *, base_url: str, api_key: str, credential_id: str) -> str:
    """The 16 hex digits that operators see; two entries with the same key and base URL share one."""
    seed = f"{family}:{base_url}+{api_key}" if family and api_key else f"id:{credential_id}"
    return hashlib.sha256(seed.encode()).hexdigest()[:16]


def compat_provider_key(name: str) -> str:
    """The provider key of an OpenAI-compatible provider; it can never shadow a native provider of the same name."""
    folded = name.strip().lower()
    if not folded or folded == COMPAT_FAMILY:
        return COMPAT_FAMILY
    return folded if folded.startswith(COMPAT_PREFIX) else COMPAT_PREFIX + folded
