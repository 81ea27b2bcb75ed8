"""A page about the gateway's credentials, made of the four callbacks that plugins have for them.

The public page only looks: a page without a key that writes could be made to write by any other web page. What writes,
and what shows a file, is behind the management key.
"""

import html
import json
from collections.abc import Mapping
from typing import Any, ClassVar

from pluginapi import (
    Body,
    Context,
    ManagementHandleRequest,
    ManagementHandleResponse,
    ManagementRegisterRequest,
    ManagementRegisterResponse,
    ManagementRoute,
    Plugin,
    PluginError,
    serve,
)

PATH = "/host-auth-files"
PUBLIC = frozenset({"list", "runtime", "get_runtime"})


class AuthFilesPage(Plugin):
    inputs: ClassVar = {"management.handle": ("body",)}

    async def management_register(self, request: ManagementRegisterRequest) -> ManagementRegisterResponse:
        page = ManagementRoute(path="/status", menu="Host Auth Files", description="the credentials of the gateway")
        routes = [ManagementRoute(method=method, path=PATH) for method in ("GET", "POST")]
        return ManagementRegisterResponse(resources=[page], routes=routes)

    async def management_handle(self, request: ManagementHandleRequest, ctx: Context) -> ManagementHandleResponse:
        try:
            options = _options(request)
        except ValueError as error:
            return _page(400, "error", str(error))
        op = options.get("op") or "list"
        if not request.path.endswith(PATH) and op not in PUBLIC:
            return _page(403, op, f"this needs the management key: /v0/management{PATH}")
        if op == "save" and request.method != "POST":
            return _page(405, op, "saving is a POST")
        try:
            return _page(200, op, await _result(op, options, ctx))
        except (PluginError, LookupError) as error:
            return _page(200, op, str(error))


async def _result(op: str, options: Mapping[str, Any], ctx: Context) -> Any:
    """What the gateway says. Raises LookupError for an operation or argument that is not there."""
    if op == "list":
        return {"files": list(await ctx.auth.list())}
    if op == "save":
        saved = await ctx.auth.save(_given(options, "name"), _given(options, "json"))
        return {"name": saved.name, "path": saved.path}
    if op in ("runtime", "get_runtime"):
        return dict(await ctx.auth.get_runtime(_given(options, "auth_index")))
    if op == "get":
        found = await ctx.auth.get(_given(options, "auth_index"))
        return {"name": found.name, "path": found.path, "json": json.loads(bytes(found.file or b"null"))}
    raise LookupError(f"there is no operation {op!r}: list, get, runtime, save")


def _given(options: Mapping[str, Any], name: str) -> Any:
    if not options.get(name):
        raise LookupError(f"{name} is missing")
    return options[name]


def _options(request: ManagementHandleRequest) -> dict[str, Any]:
    """What was asked for, in the query or in a JSON body; the query wins. Raises ValueError for what is no JSON."""
    body = request.body.value() if request.body and request.body.to_bytes() else {}
    if not isinstance(body, dict):
        raise ValueError("the body is no JSON object")
    query: dict[str, Any] = {name: values[0] for name, values in request.query.items() if values}
    if "json" in query:
        query["json"] = json.loads(query["json"])
    return {**body, **query}


def _page(status: int, op: str, result: Any) -> ManagementHandleResponse:
    text = html.escape(result if isinstance(result, str) else json.dumps(result, indent=2))
    document = f"<!doctype html><title>Host auth files</title><h1>{html.escape(op)}</h1><pre>{text}</pre>"
    headers = {"content-type": ["text/html; charset=utf-8"]}
    return ManagementHandleResponse(status=status, headers=headers, body=Body(text=document))


if __name__ == "__main__":
    serve(AuthFilesPage)
