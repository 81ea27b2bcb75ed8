"""Endpoints for the whole configuration: as JSON and as the file, secrets masked, and replacing the file (spec 8.2)."""

import asyncio
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final

import msgspec
from aiohttp import web
from ruamel.yaml.scalarstring import SingleQuotedScalarString

from host.config.expansion import excess
from host.config.load import ConfigError, dump_subtree, parse_yaml, to_plain
from host.config.model import Config
from host.config.splice import says
from host.config.tree import MapNode, read_tree
from host.management.actions import MayEnable
from host.management.calls import Call, ManagementError, reply
from host.management.config_file import ConfigFile, problems_of
from host.management.masked_text import masked_text
from host.management.masks import MASK, Masks
from host.management.plugin_config import has_reference
from host.management.table import Endpoint
from host.observe.logs import redact

_UNSHOWN: Final = ("host", "port", "auth-dir", "remote-management", "directory")
"""Where the proxy itself lives: not part of the JSON view."""
ON_THE_MACHINE: Final = (
    *("host", "port", "tls", "workers", "state", "trusted-proxies", "auth-dir", "upstream-ca-file", "demo"),
    *("remote-management", "plugins.dir", "plugins.policy", "plugins.store-sources", "plugins.enabled"),
)
"""What nobody changes over HTTP: who is let in, which files are read, and which code runs with which rights."""

_COMMENT: Final = re.compile(r"(?:^|(?<=\s))#")
_SHORTEST_SECRET: Final = 4
_PLAIN: Final = re.compile(r"[A-Za-z][A-Za-z0-9_.]*(?:-[A-Za-z0-9_.]+)+")
"""Secrets that need no quotes: with a dash inside, so that they are no word and no number of YAML."""
_QUOTED_MASK: Final = re.compile(r"""(['"]?)(\*\*\*-[0-9a-f]{12})\1""")


class ConfigEndpoints:
    """The rows of `/config` and `/config.yaml`."""

    def __init__(
        self,
        file: ConfigFile,
        masks: Masks,
        *,
        may_enable: MayEnable,
        files_of: Callable[[str], frozenset[str]] = lambda plugin_id: frozenset(),
    ) -> None:
        """`files_of(plugin_id)`: the fields of a plugin's section that name files."""
        self._files_of: Final = files_of
        self._file: Final = file
        self._masks: Final = masks
        self._may_enable: Final = may_enable

    def endpoints(self) -> Sequence[Endpoint]:
        """For the table."""
        return (
            Endpoint("GET", "/config", self._show),
            Endpoint("GET", "/config.yaml", self._show_file),
            Endpoint("PUT", "/config.yaml", self._replace),
        )

    async def _show(self, call: Call) -> web.Response:
        # Thousands of keys: nobody else waits meanwhile.
        return await asyncio.to_thread(self._as_json, await self._file.loaded())

    def _as_json(self, config: Config) -> web.Response:
        document: dict[str, Any] = msgspec.to_builtins(config)
        for name in _UNSHOWN:
            document.pop(name, None)
        document["api-keys"] = [
            {"key": item["key"], "name": item["name"]} if item.get("name") else item["key"]
            for item in document["api-keys"]
        ]
        configs = document["plugins"]["configs"]
        document["plugins"]["configs"] = {
            plugin_id: {"enabled": section["enabled"], "priority": section["priority"], **section["config"]}
            for plugin_id, section in configs.items()
        }
        return reply(self._masks.masked(document))

    async def _show_file(self, call: Call) -> web.Response:
        text = await self._file.text()
        headers = {"ETag": self._masks.version(text)}
        shown = await asyncio.to_thread(self._shown, text)
        return web.Response(text=shown, content_type="application/yaml", charset="utf-8", headers=headers)

    async def _replace(self, call: Call) -> web.Response:
        try:
            sent = (await call.body()).decode("utf-8")
        except UnicodeDecodeError:
            raise ManagementError(400, "invalid_yaml", "the body is no UTF-8 text") from None
        if why := await asyncio.to_thread(excess, sent):
            raise ManagementError(400, "invalid_yaml", why)
        wanted = [version.strip() for value in call.headers.get("if-match", ()) for version in value.split(",")]

        def make(before: str) -> str:
            if wanted and not {"*", self._masks.version(before)} & {*wanted}:
                raise ManagementError(412, "changed_meanwhile", "the file is not the one that was read: read it again")
            return self._made(before, sent, local=call.local)

        generation = await self._file.replace(make)
        return reply({"ok": True, "changed": ["config"], "generation": generation})

    def _shown(self, text: str) -> str:
        """The file's text with its secrets masked, those in comments included."""
        try:
            tree = read_tree(text, "config.yaml")
            places = list(self._masks.places(tree))
            secrets = _longest_first(place.text for place in places)
            shown = masked_text(text, tree, places, self._masks.mask) if places else text
            if shown is None:
                shown = self._masked_anew(text)
        except ConfigError as error:
            raise ManagementError(500, "invalid_config", **problems_of(error)) from None
        lines = shown.splitlines(keepends=True)
        said = _said_in_comments(lines, secrets)
        return "".join(_without_secrets(line, said) for line in lines)

    def _masked_anew(self, text: str) -> str:
        """The same of a file whose secrets cannot be told from the text around them."""
        tree = parse_yaml(text, "config.yaml")
        for place in list(self._masks.places(tree)):
            place.holder[place.key] = SingleQuotedScalarString(self._masks.mask(place.text))
        return dump_subtree(tree, like=text)

    def _made(self, before: str, sent: str, *, local: bool) -> str:
        """The text to write for one that was sent: masks replaced, all else as sent."""
        tree = _parsed(sent)
        try:
            present = read_tree(before, "config.yaml")
        except ConfigError:
            # Nothing can be kept of a file that is broken; whoever mends it writes the secrets anew.
            present = MapNode()
        known = {self._masks.mask(place.text): place.text for place in self._masks.places(present)}
        text = _with_comments(sent, before, _longest_first(known.values()))
        if MASK in sent:
            self._masks.unmasked(tree, present)
            filled = _filled(text, known)
            text = filled if says(filled, tree) else self._filled_anew(text, present)
        if not local:
            self._check(to_plain(tree), to_plain(present))
        return text

    def _filled_anew(self, text: str, present: Mapping[Any, Any]) -> str:
        """The same where a mask stands where a secret cannot be written as it is."""
        tree = parse_yaml(text, "config.yaml")
        self._masks.unmasked(tree, present)
        return dump_subtree(tree, like=text)

    def _check(self, wanted: Mapping[str, Any], present: Mapping[str, Any]) -> None:
        """What is changed on the machine only. Raises ManagementError 403."""
        changed = [path for path in ON_THE_MACHINE if _at(wanted, path) != _at(present, path)]
        if changed:
            raise ManagementError(
                403, "not_over_http", f"changed on the machine only: {', '.join(changed)}", keys=changed
            )
        sections, known = _at(wanted, "plugins.configs") or {}, _at(present, "plugins.configs") or {}
        for plugin_id, section in sections.items() if isinstance(sections, Mapping) else ():
            before = known.get(plugin_id) or {}
            if not isinstance(section, Mapping) or section == before:
                continue
            is_enabled = section.get("enabled") is True and before.get("enabled") is not True
            if is_enabled and (reason := self._may_enable(str(plugin_id))) is not None:
                raise ManagementError(403, "not_enabled_locally", reason)
            files = self._files_of(str(plugin_id))
            changed = [name for name, value in section.items() if value != before.get(name)]
            if any(name in files or has_reference(section[name]) for name in changed):
                message = f"`plugins.configs.{plugin_id}`: references and names of files are written on the machine"
                raise ManagementError(403, "not_over_http", message)


def _parsed(text: str) -> MapNode:
    try:
        return read_tree(text, "config.yaml")
    except ConfigError as error:
        raise ManagementError(400, "invalid_yaml", **problems_of(error)) from None


def _at(tree: Any, path: str) -> Any:
    for name in path.split("."):
        tree = tree.get(name) if isinstance(tree, Mapping) else None
    return tree or None


def _longest_first(secrets: Iterable[str]) -> list[str]:
    return sorted(set(secrets), key=len, reverse=True)


def _said_in_comments(lines: Iterable[str], secrets: Sequence[str]) -> list[str]:
    """Those of the secrets that some comment has: few of thousands, and each line is searched for them only."""
    comments = "\n".join(line[found.start() :] for line in lines if (found := _COMMENT.search(line)) is not None)
    return [secret for secret in secrets if len(secret) >= _SHORTEST_SECRET and secret in comments]


def _without_secrets(line: str, secrets: Sequence[str]) -> str:
    """A line whose comment, if it has one, says none of the secrets, and none that looks like one."""
    found = _COMMENT.search(line)
    if found is None:
        return line
    comment = line[found.start() :]
    for secret in secrets:
        comment = comment.replace(secret, MASK)
    return line[: found.start()] + redact(comment)


def _with_comments(sent: str, before: str, secrets: Sequence[str]) -> str:
    """The text that was sent, with the comments of the file that were shown without their secrets as they were."""
    originals: dict[str, str] = {}
    lines = before.splitlines()
    said = _said_in_comments(lines, secrets)
    for line in lines:
        if line.lstrip().startswith("#") and (shown := _without_secrets(line, said)) != line:
            originals.setdefault(shown.strip(), line.strip())
    if not originals:
        return sent
    lines = sent.splitlines(keepends=True)
    return "".join(
        line.replace(line.strip(), originals[line.strip()]) if line.strip() in originals else line for line in lines
    )


def _filled(text: str, secrets: Mapping[str, str]) -> str:
    """The text with every mask replaced by its secret."""

    def secret_of(found: re.Match[str]) -> str:
        secret = secrets.get(found[2])
        if secret is None:
            return found[0]
        return secret if _PLAIN.fullmatch(secret) else msgspec.json.encode(secret).decode()

    return _QUOTED_MASK.sub(secret_of, text)
