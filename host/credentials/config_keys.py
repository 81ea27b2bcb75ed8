"""Switching a configured key off and on: an edit of its `excluded-models` in the file (spec credentials 1.10)."""

import os
from typing import Any, Final

from ruamel.yaml.comments import CommentedMap, CommentedSeq

from host.config.load import LoadedConfig, dump_subtree, parse_config, parse_yaml
from host.config.model import ProviderKey
from host.config.rewrite import rewrite
from host.credentials.configured import PROVIDER_LISTS, ConfiguredKeys
from host.credentials.records import HandleMint

EXCLUDE_ALL: Final = "*"


def exclude_key(path: str | os.PathLike[str], credential_id: str, *, excluded: bool) -> LoadedConfig:
    """Switch a key off or on in the file, and return the configuration that it says then. Blocks.

    Raises KeyError when there is no such key, ConfigError and OSError; the file is untouched then.
    """
    file = os.fspath(path)

    def change(before: str) -> tuple[str, LoadedConfig]:
        text = dump_subtree(set_excluded(before, file, credential_id, excluded=excluded), like=before)
        return text, parse_config(text, file=file)

    return rewrite(file, change)


def set_excluded(text: str, file: str, credential_id: str, *, excluded: bool) -> Any:
    """The YAML tree of a config with a key switched off or on. Raises KeyError when it is no key that can be, and
    ConfigError.

    The file is read again for it: what stands there counts, not what the host runs with.
    """
    config = parse_config(text, file=file).config
    keys = ConfiguredKeys(HandleMint())
    keys.read(config)
    place = keys.places.get(credential_id)
    if place is None or place.section not in PROVIDER_LISTS:
        raise KeyError(credential_id)
    wanted: ProviderKey = getattr(config, place.section.replace("-", "_"))[place.position]
    tree = parse_yaml(text, file)
    _set(_entry(tree[place.section], wanted, credential_id), excluded)
    return tree


def _entry(entries: CommentedSeq, wanted: ProviderKey, credential_id: str) -> CommentedMap:
    """The node of an entry. Loading drops repeats and useless entries, so its index in the file may be another one."""
    for node in entries:
        if (
            isinstance(node, CommentedMap)
            and _text(node, "api-key") == wanted.api_key
            and _text(node, "base-url").rstrip("/") == wanted.base_url
            and _text(node, "proxy-url") == wanted.proxy_url
            and _text(node, "prefix").strip("/").strip() == wanted.prefix
            and _headers(node) == {name.lower(): value for name, value in wanted.headers.items()}
        ):
            return node
    raise KeyError(credential_id)


def _set(node: CommentedMap, excluded: bool) -> None:
    present = node.get("excluded-models")
    names = [str(name) for name in present] if isinstance(present, CommentedSeq) else []
    if excluded == any(name.strip() == EXCLUDE_ALL for name in names):
        return
    if not isinstance(present, CommentedSeq):
        present = node["excluded-models"] = CommentedSeq()
    if excluded:
        present.append(EXCLUDE_ALL)
        return
    for index in reversed([place for place, name in enumerate(names) if name.strip() == EXCLUDE_ALL]):
        del present[index]
    if not present:
        del node["excluded-models"]


def _text(node: CommentedMap, name: str) -> str:
    value = node.get(name)
    return value.strip() if isinstance(value, str) else "" if value is None else str(value)


def _headers(node: CommentedMap) -> dict[str, str]:
    headers = node.get("headers")
    pairs = headers.items() if isinstance(headers, CommentedMap) else ()
    return {str(name).strip().lower(): str(value).strip() for name, value in pairs if str(name).strip() and value}
