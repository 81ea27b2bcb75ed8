"""Routes behind the key and public pages that plugins serve themselves (spec plugin-abi 7.7)."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final

import structlog
from aiohttp import web
from msgspec import UNSET, UnsetType

from host.management.calls import Call, ManagementError
from host.management.escape import escape_json, looks_like_json
from host.management.paths import BASE, RESOURCE_BASE, resource_path, route_method, route_path
from host.management.rows import Menu
from host.management.table import Handler
from host.runtime.handle import Binding, PluginHandle, PluginSnapshot, PluginState
from host.runtime.invoke import Invoker
from host.runtime.projection import select_body, visible_headers, visible_query
from host.runtime.scope import RequestScope
from host.tasks import TaskGroup
from host.web.headers import safe_headers
from pluginabi.body import Body
from pluginabi.errors import AbiError, host_error
from pluginabi.immutable import FrozenDict, Headers
from pluginabi.payloads.management import (
    ManagementHandleRequest,
    ManagementHandleResponse,
    ManagementRegisterRequest,
    ManagementRegisterResponse,
    ManagementRoute,
)

log = structlog.get_logger("host.management.pages")

REGISTER: Final = "management.register"
HANDLE: Final = "management.handle"
NEVER_SHOWN: Final = frozenset({"authorization", "x-management-key"})
"""They hold the management key, which is nobody's but the host's."""

DEFAULT_POLICY: Final = (
    "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none';"
    " frame-ancestors 'self'; sandbox"
)
SANDBOX: Final = "sandbox allow-scripts allow-forms allow-popups allow-downloads"
"""Beside a policy of the plugin's own: its page never shares an origin with the management API."""


@dataclass(frozen=True, slots=True)
class Page:
    """One route or resource and whose it is."""

    plugin_id: str
    method: str
    path: str
    menu: str = ""
    description: str = ""
    public: bool = False


@dataclass(frozen=True, slots=True)
class _Declared:
    """What a plugin registered, and which of its generations and registrations said so."""

    handle: PluginHandle
    registration: Any
    pages: tuple[Page, ...]


@dataclass(frozen=True, slots=True)
class _Pages:
    """Who serves what; rebuilt as a whole."""

    routes: Mapping[tuple[str, str], Page] = field(default_factory=dict)
    resources: Mapping[str, Page] = field(default_factory=dict)


class PluginPages:
    """Asks plugins for their pages when the plugins change, and calls the plugin a page belongs to.

    A plugin that is down keeps its pages: they answer with its fault until it is back. `native` says which routes
    are the host's.
    """

    def __init__(
        self,
        invoker: Invoker,
        *,
        snapshot: Callable[[], PluginSnapshot],
        state: Callable[[], Any],
        native: Callable[[str, str], bool],
        tasks: TaskGroup,
    ) -> None:
        self._invoker = invoker
        self._snapshot = snapshot
        self._state = state
        self._native = native
        self._tasks = tasks
        self._declared: dict[str, _Declared] = {}
        self._pages = _Pages()
        self._dirty = False
        self._working = False
        self._idle = asyncio.Event()
        self._idle.set()

    def sync(self) -> None:
        """The plugins may have changed: ask those that did, soon. Safe to call as often as one likes."""
        self._dirty = True
        if not self._working:
            self._working = True
            self._idle.clear()
            self._tasks.start(self._work(), name="plugin-pages")

    async def synced(self) -> None:
        """Wait until everything that changed so far is taken in."""
        await self._idle.wait()

    def route(self, method: str, path: str) -> Handler | None:
        """As `host.management.app.PluginPages`."""
        page = self._pages.routes.get((method, path))
        return partial(self._serve, page) if page is not None else None

    def resource(self, path: str) -> Handler | None:
        """As `host.management.app.PluginPages`."""
        page = self._pages.resources.get(path)
        return partial(self._serve, page) if page is not None else None

    def menus(self, plugin_id: str) -> Sequence[Menu]:
        """The pages of a plugin that want to be linked to."""
        pages = (*self._pages.routes.values(), *self._pages.resources.values())
        return [
            Menu(path=page.path, menu=page.menu, description=page.description, public=page.public)
            for page in pages
            if page.plugin_id == plugin_id and page.menu
        ]

    async def _work(self) -> None:
        try:
            while self._dirty:
                self._dirty = False
                bindings = self._snapshot().implementers(REGISTER)
                declared = await asyncio.gather(*(self._declaration(binding) for binding in bindings))
                named = zip(bindings, declared, strict=True)
                self._declared = {binding.plugin_id: found for binding, found in named if found is not None}
                self._pages = self._built(bindings)
        finally:
            self._working = False
            self._idle.set()

    async def _declaration(self, binding: Binding) -> _Declared | None:
        """What the plugin serves; asked only when it is another generation or was configured anew."""
        before = self._declared.get(binding.plugin_id)
        registration = getattr(binding.handle, "registration", None)
        if before is not None and before.handle is binding.handle and before.registration is registration:
            return before
        if binding.handle.state is not PluginState.READY:
            return before
        plugin_id = binding.plugin_id
        request = ManagementRegisterRequest(base_path=BASE, resource_base_path=f"{RESOURCE_BASE}/{plugin_id}")
        try:
            answer = await self._invoker.call(binding, lambda _: request, None)
        except AbiError as error:
            log.warning("management.register_failed", plugin_id=plugin_id, error=str(error))
            return before
        if answer.failed_open:
            return before
        return _Declared(binding.handle, registration, tuple(_pages_of(plugin_id, answer.value)))

    def _built(self, bindings: Sequence[Binding]) -> _Pages:
        """All pages; of two plugins with the same route the one of higher priority has it, and the host before all."""
        routes: dict[tuple[str, str], Page] = {}
        resources: dict[str, Page] = {}
        for binding in bindings:
            declared = self._declared.get(binding.plugin_id)
            for page in declared.pages if declared is not None else ():
                if page.public:
                    resources.setdefault(page.path, page)
                    continue
                owner = "the host" if self._native(page.method, page.path.removeprefix(BASE)) else ""
                taken = routes.get((page.method, page.path))
                owner = owner or (taken.plugin_id if taken is not None else "")
                if owner:
                    log.warning(
                        "management.route_taken",
                        plugin_id=page.plugin_id,
                        method=page.method,
                        path=page.path,
                        by=owner,
                    )
                else:
                    routes[page.method, page.path] = page
        return _Pages(routes, resources)

    async def _serve(self, page: Page, call: Call) -> web.StreamResponse:
        """Call the plugin. Raises what it raises: a status of its own stays, a fault is 502, 503 or 504."""
        binding = self._snapshot().binding(page.plugin_id, HANDLE)
        if binding is None:
            raise ManagementError(404, "not_found", f"plugin {page.plugin_id!r} does not handle its pages any more")
        body: Body | UnsetType = UNSET
        if not page.public:
            body = await _body_of(call)
        headers = FrozenDict({name: values for name, values in call.headers.items() if name not in NEVER_SHOWN})
        scope = RequestScope(
            request_id=call.request_id, inbound_headers=headers, inbound_query=call.query, state=self._state()
        )

        def build(binding: Binding) -> ManagementHandleRequest:
            may_see = binding.may("client_credentials")
            return ManagementHandleRequest(
                request_id=call.request_id,
                method=page.method,
                path=page.path,
                headers=visible_headers(headers, may_see),
                query=visible_query(call.query, may_see),
                body=body if body is UNSET else select_body(binding.inputs, body),
            )

        answer = await self._invoker.call(binding, build, scope)
        if answer.failed_open and answer.error is not None:
            raise ManagementError(answer.error.http_status, answer.error.code, answer.error.message)
        return _response(page, answer.value)


async def _body_of(call: Call) -> Body | UnsetType:
    try:
        data = await call.body()
    except ManagementError as error:
        if error.status != 400:
            raise
        raise ManagementError(400, "failed to read plugin management request body") from error
    return Body.from_bytes(data) if data else UNSET


def _pages_of(plugin_id: str, declared: ManagementRegisterResponse) -> Sequence[Page]:
    """The pages whose paths can be served; the others are reported."""
    pages: list[Page] = []
    for route in declared.routes:
        method, path = route_method(route.method), route_path(route.path)
        if method is None or path is None:
            _refuse(plugin_id, route)
        else:
            pages.append(Page(plugin_id, method, path, route.menu.strip(), route.description.strip()))
    for resource in declared.resources:
        path = resource_path(plugin_id, resource.path)
        if path is None:
            _refuse(plugin_id, resource)
        else:
            pages.append(Page(plugin_id, "GET", path, resource.menu.strip(), resource.description.strip(), True))
    return pages


def _refuse(plugin_id: str, route: ManagementRoute) -> None:
    log.warning("management.route_refused", plugin_id=plugin_id, method=route.method, path=route.path)


def _response(page: Page, answer: ManagementHandleResponse) -> web.Response:
    status = answer.status or 200
    if not 200 <= status <= 599:
        raise host_error("plugin_protocol_error", f"plugin {page.plugin_id!r} answered its page with status {status}")
    body = b"" if answer.body is UNSET else answer.body.to_bytes()
    headers: Headers = {name.lower(): values for name, values in answer.headers.items()}
    content_type = next(iter(headers.get("content-type", ())), "")
    if not page.public and looks_like_json(content_type, body):
        body = escape_json(body)
    response = web.Response(status=status, body=body)
    response.headers.popall("Content-Type", None)
    for name, value in safe_headers(headers, keep_content_type=True):
        if name.lower() == "content-type":
            response.headers[name] = value
        else:
            response.headers.add(name, value)
    if body and not content_type:
        response.headers["Content-Type"] = _type_of(answer.body)
    _protect(response, own_policy="content-security-policy" in headers)
    return response


def _protect(response: web.Response, *, own_policy: bool) -> None:
    response.headers["X-Content-Type-Options"] = "nosniff"
    response.headers["Referrer-Policy"] = "no-referrer"
    response.headers["Server"] = "Jackfield"
    response.headers.add("Content-Security-Policy", SANDBOX if own_policy else DEFAULT_POLICY)


def _type_of(body: Body | UnsetType) -> str:
    if body is not UNSET and body.json is not UNSET:
        return "application/json"
    return "text/plain; charset=utf-8" if body is not UNSET and body.text is not UNSET else "application/octet-stream"
