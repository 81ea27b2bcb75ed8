"""Endpoints for single values of the configuration: GET says `{"<key>": value}`, PUT and PATCH take `{"value": v}`
(spec credentials 8.2, convention S)."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from aiohttp import web

from host.config.known_keys import no_effect
from host.config.load import to_plain
from host.config.model import Config
from host.management.calls import INVALID, Call, ManagementError, only, reply
from host.management.config_file import ConfigFile
from host.management.masks import Masks
from host.management.table import Endpoint, Handler

STRATEGIES: Final[Mapping[str, str]] = {
    **dict.fromkeys(("", "round-robin", "roundrobin", "rr"), "round-robin"),
    **dict.fromkeys(("weighted-round-robin", "weightedroundrobin", "wrr"), "weighted-round-robin"),
    **dict.fromkeys(("fill-first", "fillfirst", "ff"), "fill-first"),
}
MAX_COUNT: Final = 2**31 - 1
WITHOUT_EFFECT: Final = (
    *("request-log", "ws-auth", "error-logs-max-files"),
    *("quota-exceeded/switch-project", "quota-exceeded/switch-preview-model"),
    *("xai-api-key", "interactions-api-key"),
)
"""Values that the reference has and nothing here looks at: the answer says why."""


class Invalid(Exception):
    """A value cannot be taken; the text is the answer's `error`."""


@dataclass(frozen=True, slots=True)
class Setting:
    """One value. `checked` makes of a JSON value what is written; raises Invalid."""

    path: str
    shown: Callable[[Config], Any]
    checked: Callable[[Any], Any]
    may_be_removed: bool = False

    @property
    def keys(self) -> tuple[str, ...]:
        return tuple(self.path.split("/"))


def _boolean(value: Any) -> bool:
    if not isinstance(value, bool):
        raise Invalid(INVALID)
    return value


def _count(value: Any) -> int:
    """A whole number; negative ones are none."""
    if isinstance(value, bool) or not isinstance(value, int) or value > MAX_COUNT:
        raise Invalid(INVALID)
    return max(0, value)


def _duration(value: Any) -> str | int | float:
    if isinstance(value, str):
        return value  # whether it is one, the configuration's own check says
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise Invalid(INVALID)
    return max(0, value)


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise Invalid(INVALID)
    return value.strip()


def _strategy(value: Any) -> str:
    if not isinstance(value, str):
        raise Invalid(INVALID)
    if value.strip().lower() not in STRATEGIES:
        raise Invalid("invalid strategy")
    return STRATEGIES[value.strip().lower()]


SETTINGS: Final = (
    Setting("debug", lambda config: config.debug, _boolean),
    Setting("logging-to-file", lambda config: config.logging_to_file, _boolean),
    Setting("logs-max-total-size-mb", lambda config: max(0, config.logs_max_total_size_mb), _count),
    Setting("usage-statistics-enabled", lambda config: config.usage_statistics_enabled, _boolean),
    Setting("force-model-prefix", lambda config: config.force_model_prefix, _boolean),
    Setting("disable-cooling", lambda config: config.disable_cooling, _boolean),
    Setting("request-retry", lambda config: max(0, config.request_retry), _count),
    Setting("max-retry-credentials", lambda config: config.max_retry_credentials, _count),
    Setting("max-retry-interval", lambda config: config.max_retry_interval, _duration),
    Setting("proxy-url", lambda config: config.proxy_url, _text, may_be_removed=True),
    Setting("routing/strategy", lambda config: STRATEGIES[config.routing.strategy], _strategy),
    Setting("routing/session-affinity", lambda config: config.routing.session_affinity, _boolean),
)


class SettingEndpoints:
    """The rows of all settings."""

    def __init__(self, file: ConfigFile, masks: Masks) -> None:
        self._file: Final = file
        self._masks: Final = masks

    def endpoints(self) -> Iterator[Endpoint]:
        """For the table."""
        for setting in SETTINGS:
            path = f"/{setting.path}"
            yield Endpoint("GET", path, self._shows(setting))
            for method in ("PUT", "PATCH"):
                yield Endpoint(method, path, self._sets(setting))
            if setting.may_be_removed:
                yield Endpoint("DELETE", path, self._removes(setting))
        for name in WITHOUT_EFFECT:
            for method in ("GET", "PUT", "PATCH"):
                yield Endpoint(method, f"/{name}", _refuses(name))

    def _shows(self, setting: Setting) -> Handler:
        async def handle(call: Call) -> web.Response:
            document = {setting.keys[-1]: setting.shown(await self._file.loaded())}
            return reply(self._masks.masked(document))

        return handle

    def _sets(self, setting: Setting) -> Handler:
        async def handle(call: Call) -> web.Response:
            fields = await call.json_object(INVALID)
            only(fields, ("value",))
            if "value" not in fields:
                raise ManagementError(400, INVALID, "value is required")
            try:
                value = setting.checked(fields["value"])
            except Invalid as error:
                raise ManagementError(400, str(error)) from None

            def edit(tree: dict[Any, Any]) -> None:
                sent = {setting.keys[-1]: value}
                self._masks.unmasked(sent, {setting.keys[-1]: _value_at(tree, setting.keys)})
                _node(tree, setting.keys[:-1])[setting.keys[-1]] = sent[setting.keys[-1]]

            return reply(await self._file.change(edit))

        return handle

    def _removes(self, setting: Setting) -> Handler:
        async def handle(call: Call) -> web.Response:
            def edit(tree: dict[Any, Any]) -> None:
                _node(tree, setting.keys[:-1]).pop(setting.keys[-1], None)

            return reply(await self._file.change(edit))

        return handle


def _refuses(name: str) -> Handler:
    async def handle(call: Call) -> web.Response:
        key = name.partition("/")[0]
        raise ManagementError(404, "without_effect", f"`{key}` {no_effect(key) or 'has no effect in this version'}")

    return handle


def _node(tree: dict[Any, Any], keys: tuple[str, ...]) -> dict[Any, Any]:
    for key in keys:
        if not isinstance(tree.get(key), dict):
            tree[key] = {}
        tree = tree[key]
    return tree


def _value_at(tree: Any, keys: tuple[str, ...]) -> Any:
    for key in keys:
        tree = tree.get(key) if isinstance(tree, dict) else None
    return to_plain(tree)
