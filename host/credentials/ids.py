"""Stable names of credentials: ids, short indexes and provider keys (spec credentials 1.5, 1.9, 2.1)."""

import hashlib
import os
import sys
from collections.abc import Mapping
from typing import Final

COMPAT_FAMILY: Final = "openai-compatibility"
COMPAT_PREFIX: Final = "openai-compatible-"


class IdGenerator:
    """Ids of configured keys: `kind:<12 hex>`; the same key listed again gets `-1`, `-2`, … in one run."""

    def __init__(self) -> None:
        self._seen: Final[dict[str, int]] = {}

    def next(self, kind: str, short: str) -> str:
        """The id for a key of `kind` with this digest."""
        base = f"{kind}:{short}"
        repeats = self._seen.get(base, 0)
        self._seen[base] = repeats + 1
        return base if repeats == 0 else f"{base}-{repeats}"


def short_digest(kind: str, *parts: str) -> str:
    """The 12 hex digits for a key of `kind` made of `parts`."""
    text = "\0".join((kind, *(part.strip() for part in parts)))
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def extra_parts(*, proxy_url: str = "", prefix: str = "", headers: Mapping[str, str]) -> tuple[str, ...]:
    """Further parts of an id, for entries that differ only here; none for an entry that has none of them."""
    if not (proxy_url or prefix or headers):
        return ()
    parts = [f"{name}={value.strip()}" for name, value in (("proxy", proxy_url), ("prefix", prefix)) if value.strip()]
    folded = sorted((name.strip().lower(), value.strip()) for name, value in headers.items())
    return (*parts, *(f"header={name}:{value}" for name, value in folded if name and value))


def auth_index(family: str, *, base_url: str, api_key: str, credential_id: str) -> str:
    """The 16 hex digits that operators see; two entries with the same key and base URL share one."""
    return _digest(f"{family}:{base_url}+{api_key}" if family and api_key else f"id:{credential_id}")


def file_index(kind: str, path: str) -> str:
    """The index of a credential file: of its type (else provider) and absolute path."""
    return _digest(f"{kind.strip().lower()}:{os.path.abspath(path)}")


def virtual_seed(provider: str, path: str, name: str, ordinal: int) -> str:
    """What the index of one of several credentials of a file is made of; `name`: its id or file name, else ordinal."""
    return f"{provider}|{path}|{name or ordinal}|{ordinal}"


def seeded_index(seed: str) -> str:
    """The index of a credential that brings its own seed."""
    return _digest(f"auth_index_seed:{seed}")


def file_id(path: str, auth_dir: str) -> str:
    """The id of a file in the auth directory: its path relative to it, with `/`; the whole path of any other file."""
    folder, name = os.path.split(path)
    inside = name if folder == auth_dir else os.path.relpath(path, auth_dir)
    found = (path if inside.startswith("..") else inside).replace(os.sep, "/")
    return found.lower() if sys.platform == "win32" else found


def compat_provider_key(name: str) -> str:
    """The provider key of an OpenAI-compatible provider; it can never shadow a native provider of the same name."""
    folded = name.strip().lower()
    if not folded or folded == COMPAT_FAMILY:
        return COMPAT_FAMILY
    return folded if folded.startswith(COMPAT_PREFIX) else COMPAT_PREFIX + folded


def _digest(seed: str) -> str:
    return hashlib.sha256(seed.encode()).hexdigest()[:16]
