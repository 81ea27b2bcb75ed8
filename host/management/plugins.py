"""Endpoints for plugins (spec plugin-abi 8.1). Nothing here installs code, and nothing first enables it."""

from collections.abc import Sequence
from typing import Final

from aiohttp import web

from host.management.actions import MAX_LOG_LINES, PluginActions
from host.management.calls import Call, ManagementError, reply
from host.management.table import Endpoint

DEFAULT_LOG_LINES: Final = 100


class PluginEndpoints:
    """The rows of `/plugins` and `/plugin-store`."""

    def __init__(self, actions: PluginActions) -> None:
        self._actions = actions

    def endpoints(self) -> Sequence[Endpoint]:
        """For the table."""
        return (
            Endpoint("GET", "/plugins", self._list),
            Endpoint("GET", "/plugins/{id}", self._describe),
            Endpoint("GET", "/plugins/{id}/config", self._config),
            Endpoint("PUT", "/plugins/{id}/config", self._replace_config),
            Endpoint("PATCH", "/plugins/{id}/config", self._merge_config),
            Endpoint("PATCH", "/plugins/{id}/enabled", self._set_enabled),
            Endpoint("POST", "/plugins/{id}/enable", self._enable),
            Endpoint("POST", "/plugins/{id}/disable", self._disable),
            Endpoint("POST", "/plugins/{id}/reset", self._reset),
            Endpoint("POST", "/plugins/{id}/reload", self._reload),
            Endpoint("GET", "/plugins/{id}/logs", self._logs),
            Endpoint("GET", "/plugins/{id}/gone", self._gone),
            Endpoint("DELETE", "/plugins/{id}", self._refuse_delete),
            Endpoint("POST", "/plugin-store/{id}/install", self._refuse_install),
        )

    async def _list(self, call: Call) -> web.Response:
        return reply(self._actions.listing(escape=not call.local))

    async def _describe(self, call: Call) -> web.Response:
        return reply(self._actions.describe(call.params["id"], escape=not call.local))

    async def _config(self, call: Call) -> web.Response:
        return reply(await self._actions.config_of(call.params["id"]))

    async def _replace_config(self, call: Call) -> web.Response:
        return await self._change_config(call, replace=True)

    async def _merge_config(self, call: Call) -> web.Response:
        return await self._change_config(call, replace=False)

    async def _change_config(self, call: Call, *, replace: bool) -> web.Response:
        values = await call.json_object()
        return reply(await self._actions.change_config(call.params["id"], values, replace=replace, local=call.local))

    async def _set_enabled(self, call: Call) -> web.Response:
        fields = await call.fields(enabled=bool)
        return reply(await self._actions.set_enabled(call.params["id"], fields["enabled"], local=call.local))

    async def _enable(self, call: Call) -> web.Response:
        return reply(await self._actions.set_enabled(call.params["id"], True, local=call.local))

    async def _disable(self, call: Call) -> web.Response:
        return reply(await self._actions.set_enabled(call.params["id"], False, local=call.local))

    async def _reset(self, call: Call) -> web.Response:
        return reply(await self._actions.reset(call.params["id"]))

    async def _reload(self, call: Call) -> web.Response:
        return reply(await self._actions.reload(call.params["id"]))

    async def _logs(self, call: Call) -> web.Response:
        limit = call.number("limit", DEFAULT_LOG_LINES, highest=MAX_LOG_LINES)
        return reply(self._actions.logs(call.params["id"], limit=limit))

    async def _gone(self, call: Call) -> web.Response:
        if not call.local:
            raise ManagementError(404, "not_found", "only `jackfield plugins remove` waits for this")
        return reply(await self._actions.gone(call.params["id"]))

    async def _refuse_delete(self, call: Call) -> web.Response:
        raise _on_the_machine(f"jackfield plugins remove {call.params['id']}", allow="GET")

    async def _refuse_install(self, call: Call) -> web.Response:
        raise _on_the_machine(f"jackfield plugins install {call.params['id']}", allow="")


def _on_the_machine(command: str, *, allow: str) -> ManagementError:
    """Code comes onto a machine, and leaves it, by the hand of somebody who has access to it."""
    return ManagementError(
        405, "not_over_http", f"run on the machine: {command}", headers={"Allow": allow}, command=command
    )
