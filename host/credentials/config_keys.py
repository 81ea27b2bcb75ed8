"""Switching a configured key off and on: an edit of its `excluded-models` in the file (spec credentials 1.10)."""

import os
from dataclasses import replace
from typing import Any, Final

from host.config.editable import open_tree
from host.config.load import LoadedConfig, parse_config
from host.config.model import ProviderKey
from host.config.reread import Source
from host.config.rewrite import rewrite
from host.config.splice import spliced_source
from host.credentials.configured import PROVIDER_LISTS, ConfiguredKeys
from host.credentials.records import HandleMint

EXCLUDE_ALL: Final = "*"


def exclude_key(
    path: str | os.PathLike[str], credential_id: str, *, excluded: bool, before: LoadedConfig | None = None
) -> LoadedConfig:
    """Switch a key off or on in the file, and return the configuration that it says then. Blocks.

    `before`: what was read of the file some time before. Raises KeyError when there is no such key, ConfigError and
    OSError; the file is untouched then.
    """
    file = os.fspath(path)

    def change(text: str) -> tuple[str, LoadedConfig]:
        present = parse_config(text, file=file, before=before)
        made = set_excluded(present, file, credential_id, excluded=excluded)
        return made.text, parse_config(made.text, file=file, before=replace(present, source=made))

    return rewrite(file, change)


def set_excluded(present: LoadedConfig, file: str, credential_id: str, *, excluded: bool) -> Source:
    """The text of a config with a key switched off or on. Raises KeyError when it is no key that can be, and
    ConfigError.

    The file is read for it: what stands there counts, not what the host runs with.
    """
    place = ConfiguredKeys(HandleMint()).place_in(present.config, credential_id)
    if place is None or place.section not in PROVIDER_LISTS:
        raise KeyError(credential_id)
    wanted: ProviderKey = getattr(present.config, place.section.replace("-", "_"))[place.position]
    tree = open_tree(present.text, file, source=present.source)
    _set(_entry(tree[place.section], wanted, credential_id), excluded)
    return spliced_source(present.text, tree)


def _entry(entries: list[Any], wanted: ProviderKey, credential_id: str) -> dict[str, Any]:
    """The node of an entry. Loading drops repeats and useless entries, so its index in the file may be another one."""
    for node in entries:
        if (
            isinstance(node, dict)
            and _text(node, "api-key") == wanted.api_key
            and _text(node, "base-url").rstrip("/") == wanted.base_url
            and _text(node, "proxy-url") == wanted.proxy_url
            and _text(node, "prefix").strip("/").strip() == wanted.prefix
            and _headers(node) == {name.lower(): value for name, value in wanted.headers.items()}
        ):
            return node
    raise KeyError(credential_id)


def _set(node: dict[str, Any], excluded: bool) -> None:
    present = node.get("excluded-models")
    names = [str(name) for name in present] if isinstance(present, list) else []
    if excluded == any(name.strip() == EXCLUDE_ALL for name in names):
        return
    if not isinstance(present, list):
        present = node["excluded-models"] = []
    if excluded:
        present.append(EXCLUDE_ALL)
        return
    for index in reversed([place for place, name in enumerate(names) if name.strip() == EXCLUDE_ALL]):
        del present[index]
    if not present:
        del node["excluded-models"]


def _text(node: dict[str, Any], name: str) -> str:
    value = node.get(name)
    return value.strip() if isinstance(value, str) else "" if value is None else str(value)


def _headers(node: dict[str, Any]) -> dict[str, str]:
    headers = node.get("headers")
    pairs = headers.items() if isinstance(headers, dict) else ()
    return {str(name).strip().lower(): str(value).strip() for name, value in pairs if str(name).strip() and value}
