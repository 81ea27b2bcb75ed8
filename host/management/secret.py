"""The management key: kept as a hash, verified slowly, and refused when it is none worth having."""

import asyncio
import dataclasses
import os
from typing import Final

import argon2
import bcrypt
import structlog
from msgspec.structs import replace

from host.config.edit import set_value
from host.config.load import ConfigError, LoadedConfig

log = structlog.get_logger("host.management.secret")

KEY_PATH: Final = ("remote-management", "secret-key")
MIN_CHARACTERS: Final = 8
MAX_CHARACTERS: Final = 1024
_BCRYPT_MAX_BYTES: Final = 72
_BCRYPT: Final = ("$2a$", "$2b$", "$2y$")
_ARGON2: Final = "$argon2"
_PLACEHOLDERS: Final = frozenset(
    {
        "your-secret-key",
        "your-management-key",
        "your-management-secret",
        "management-key",
        "secret-key",
        "changeme",
        "change-me",
        "password",
        "password1",
        "12345678",
        "administrator",
    }
)
"""Keys of sample configurations and of everybody's first guess."""


def is_hashed(text: str) -> bool:
    """Whether a configured key is a hash already: Argon2, or bcrypt of a carried-over configuration."""
    return text.startswith((_ARGON2, *_BCRYPT))


def hash_key(key: str) -> str:
    """The Argon2id hash of a key, with a salt of its own. Takes tens of milliseconds and 19 MiB."""
    return _hasher().hash(key)


def matches(key: str, stored: str) -> bool:
    """Whether `key` is the one that was hashed to `stored`. As slow as `hash_key`; a broken hash matches nothing."""
    if len(key) > MAX_CHARACTERS:
        return False
    if stored.startswith(_ARGON2):
        try:
            return _hasher().verify(stored, key)
        except (argon2.exceptions.VerificationError, argon2.exceptions.InvalidHashError):
            return False
    encoded = key.encode("utf-8", "surrogateescape")
    if len(encoded) > _BCRYPT_MAX_BYTES or b"\0" in encoded:
        return False
    try:
        return bcrypt.checkpw(encoded, stored.encode())
    except ValueError:
        return False


def weakness(key: str) -> str | None:
    """Why a plain key must not be used; None when it may."""
    if key.lower() in _PLACEHOLDERS:
        return "it is a placeholder"
    if len(key) < MIN_CHARACTERS:
        return f"it has fewer than {MIN_CHARACTERS} characters"
    if len(key) > MAX_CHARACTERS:
        return f"it has more than {MAX_CHARACTERS} characters"
    return None


async def with_hashed_key(loaded: LoadedConfig, file: str | os.PathLike[str]) -> LoadedConfig:
    """`loaded` with the hash in place of a plain key, which is also written to `file`, comments kept.

    A key that is too weak is left out, so that the API stays off. A file that cannot be written keeps its plain key
    and a warning says so.
    """
    section = loaded.config.remote_management
    key = section.secret_key.strip()
    if is_hashed(key) or not key:
        return loaded
    if (why := weakness(key)) is not None:
        log.error("management.key_refused", why=why, hint="write another remote-management.secret-key")
        return _with_key(loaded, "")
    hashed = await asyncio.to_thread(hash_key, key)
    try:
        written = await asyncio.to_thread(set_value, file, KEY_PATH, hashed, expected=loaded.text)
    except (OSError, ConfigError) as error:
        log.warning("management.key_not_written", reason=str(error), hint="the plain key stays in the file")
        return _with_key(loaded, hashed)
    if written is None:
        # Whatever was saved meanwhile, another key perhaps, is a configuration of its own and has its own turn.
        return _with_key(loaded, hashed)
    log.info("management.key_hashed", path=os.fspath(file))
    return _with_key(dataclasses.replace(loaded, text=written.text, source=written.source), hashed)


def _with_key(loaded: LoadedConfig, key: str) -> LoadedConfig:
    section = replace(loaded.config.remote_management, secret_key=key)
    return dataclasses.replace(loaded, config=replace(loaded.config, remote_management=section))


def _hasher() -> argon2.PasswordHasher:
    # The second profile of OWASP's list: several attempts at a time must not cost a small machine its memory.
    return argon2.PasswordHasher(time_cost=2, memory_cost=19 * 1024, parallelism=1)
