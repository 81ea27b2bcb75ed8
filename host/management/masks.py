"""Secrets of the configuration as they are shown: `***-` and 12 hex digits, good for recognising one and for nothing
else. A mask that comes back stands for the secret it was made of, as long as that goes to the same place.
"""

import hashlib
import hmac
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import urlsplit

from host.config.secret_names import sounds_secret
from host.management.calls import ManagementError
from host.runtime.resolve import is_reference

MASK: Final = "***"
_DIGITS: Final = 12
_MASKED: Final = re.compile(rf"\*\*\*-[0-9a-f]{{{_DIGITS}}}")
_VALUES_ARE_SECRET: Final = frozenset({"headers", "environment"})
"""Maps of which every value may be one."""
_ADDRESS: Final = frozenset({"base-url", "base_url"})

_QUERY_PASSWORD: Final = re.compile(r"://\S*[?&]password=")
_STORES: Final = ("redis://", "rediss://", "unix://")

Container = Any
"""A dict or list of a tree, changeable in place."""


@dataclass(frozen=True, slots=True)
class SecretPlace:
    """A secret in a tree: `holder[key]`. `binding`: where it goes; a mask is worth nothing with another one."""

    holder: Container
    key: Any
    path: tuple[str, ...]
    """Names from the top, without the positions in lists."""
    binding: tuple[str, ...]

    @property
    def text(self) -> str:
        return str(self.holder[self.key])


PluginSecrets = Callable[[str, Mapping[str, Any]], frozenset[str]]
"""`secrets(plugin_id, section)`: names of the secret fields of a plugin's section."""


class Masks:
    """Makes masks; `key` is what makes them useless for guessing. All workers of a proxy have the same."""

    def __init__(self, key: Callable[[], bytes], *, plugin_secrets: PluginSecrets) -> None:
        self._key: Final = key
        self._plugin_secrets: Final = plugin_secrets

    def mask(self, secret: str) -> str:
        """How a secret is shown; an empty one is none, and a mask hides itself."""
        if not secret or is_mask(secret):
            return secret
        return f"{MASK}-{hmac.digest(self._key(), secret.encode(), hashlib.sha256).hex()[:_DIGITS]}"

    def version(self, text: str) -> str:
        """An `ETag` of a text, from which its secrets cannot be guessed."""
        return f'"{hmac.digest(self._key(), text.encode(), hashlib.sha256).hex()[:32]}"'

    def places(self, tree: Any) -> Iterator[SecretPlace]:
        """Every secret of a configuration's tree, of plain values or of YAML nodes."""
        for name, value in tree.items() if isinstance(tree, Mapping) else ():
            if name == "plugins" and isinstance(value, Mapping):
                yield from self._of_plugins(value)
            else:
                yield from self._walk(tree, name, (str(name),), ())

    def masked(self, tree: Any) -> Any:
        """The same tree, its secrets masked in place."""
        for place in self.places(tree):
            place.holder[place.key] = self.mask(place.text)
        return tree

    def unmasked(self, tree: Any, present: Any) -> Any:
        """The same tree, masks replaced in place by the secrets of `present` that they stand for.

        Raises ManagementError 400 for a mask of nothing, or of a secret that went to another address.
        """
        masks = [place for place in self.places(tree) if place.text.startswith(MASK)]
        if not masks:
            return tree
        known: dict[tuple[str, str], list[SecretPlace]] = {}
        for place in self.places(present):
            known.setdefault((place.path[0], self.mask(place.text)), []).append(place)
        for place in masks:
            place.holder[place.key] = _kept(place, known.get((place.path[0], place.text), ()))
        return tree

    def _of_plugins(self, plugins: Mapping[str, Any]) -> Iterator[SecretPlace]:
        for name in plugins:
            if name != "configs":
                yield from self._walk(plugins, name, ("plugins", str(name)), ())
        configs = plugins.get("configs")
        for plugin_id, section in configs.items() if isinstance(configs, Mapping) else ():
            if not isinstance(section, Mapping):
                continue
            secret = self._plugin_secrets(str(plugin_id), section)
            for name in section:
                path = ("plugins", "configs", str(plugin_id), str(name))
                yield from self._all_of(section, name, path) if name in secret else self._walk(section, name, path, ())

    def _all_of(self, holder: Container, key: Any, path: tuple[str, ...]) -> Iterator[SecretPlace]:
        """Every text of a value that is secret as a whole, references to the environment and to files excepted."""
        value = holder[key]
        if isinstance(value, Mapping):
            for member in () if is_reference(value) else value:
                yield from self._all_of(value, member, (*path, str(member)))
        elif isinstance(value, (list, tuple)):
            for index in range(len(value)):
                yield from self._all_of(value, index, path)
        elif _hides(value, True):
            yield SecretPlace(holder, key, path, path)

    def _walk(
        self, holder: Container, key: Any, path: tuple[str, ...], binding: tuple[str, ...], *, secret: bool = False
    ) -> Iterator[SecretPlace]:
        value = holder[key]
        if isinstance(value, str):  # most of thousands
            if _hides(value, secret):
                yield SecretPlace(holder, key, path, (*path, *binding))
            return
        name = path[-1]
        if isinstance(value, Mapping):
            here = (*binding, *(self.address(str(value[member])) for member in value if member in _ADDRESS))
            for member in value:
                is_key = name in _VALUES_ARE_SECRET or sounds_secret(str(member))
                if member == "key" and path == ("api-keys",):
                    yield from self._walk(value, member, path, here, secret=True)
                else:
                    yield from self._walk(value, member, (*path, str(member)), here, secret=is_key)
        elif isinstance(value, (list, tuple)):
            of_list = secret or sounds_secret(name)
            for index in range(len(value)):
                yield from self._walk(value, index, path, binding, secret=of_list)
        elif _hides(value, secret):
            yield SecretPlace(holder, key, path, (*path, *binding))

    def address(self, url: str) -> str:
        """An address as it is shown; one with a password is masked as a whole."""
        plain = url.strip().rstrip("/")
        return self.mask(plain) if _has_password(plain) else plain


def is_mask(text: str) -> bool:
    """Whether a text is a mask."""
    return _MASKED.fullmatch(text) is not None


def _kept(place: SecretPlace, known: Any) -> str:
    where = ".".join(place.path)
    if not known:
        raise ManagementError(400, "invalid_config", f"`{where}`: {place.text} stands for nothing that is there")
    for candidate in known:
        if candidate.binding == place.binding:
            kept: str = candidate.text
            return kept
    raise ManagementError(400, "invalid_config", f"`{where}`: a key that goes to another `base-url` is written anew")


def _hides(value: Any, secret: bool) -> bool:
    """Whether a value is a secret: by the name it has, or because it is an address with a password."""
    if isinstance(value, bool) or value is None or value == "":
        return False
    if secret:
        return isinstance(value, (str, int))
    return isinstance(value, str) and (is_mask(value) or _has_password(value))


def _has_password(text: str) -> bool:
    if _QUERY_PASSWORD.search(text):
        return True
    if "@" not in text or "://" not in text:
        return False
    if text.startswith(_STORES):
        # Without percent-encoding it is no valid address, and a password all the same.
        return True
    try:
        return urlsplit(text).username is not None
    except ValueError:
        return True
