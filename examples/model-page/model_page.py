"""A page that asks a model through the gateway: routing, credentials, hooks and all.

Options come in the query, or in the JSON body of the route behind the management key; the query wins.
"""

from collections.abc import Mapping
from html import escape
from typing import Any

import msgspec

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
    StreamItem,
    serve,
)

PROMPT = "Summarize host model callbacks in one short sentence."
STREAM_MODES = {"stream": True, "streaming": True}
WHOLE_MODES = dict.fromkeys(("non-stream", "non_stream", "nonstream", "sync"), False)
BOOLEANS = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}


class Options(msgspec.Struct, kw_only=True):
    """What to ask, and how."""

    model: str = "gpt-5.5"
    prompt: str = PROMPT
    mode: str = ""
    stream: bool = False
    entry_protocol: str = "openai"
    exit_protocol: str = ""
    alt: str = ""
    body: dict[str, Any] | None = None
    """Replaces the request made of `model` and `prompt`."""
    headers: dict[str, list[str]] = {}
    implicit_close: bool = False
    """Leave a stream open when it was read: it ends with the call it belongs to."""


class ModelPage(Plugin):
    async def management_register(self, request: ManagementRegisterRequest) -> ManagementRegisterResponse:
        return ManagementRegisterResponse(
            routes=(ManagementRoute(method="POST", path="/model-page", description="ask a model"),),
            resources=(ManagementRoute(path="/status", menu="Host Model Callback", description="ask a model"),),
        )

    async def management_handle(self, request: ManagementHandleRequest, ctx: Context) -> ManagementHandleResponse:
        if request.method == "GET" and not self.config.get("public"):
            return page(403, {"error": "this page is open to everybody and models cost money: set public to allow it"})
        try:
            options = read_options(request)
        except ValueError as error:
            return page(400, {"error": str(error)})
        shown: dict[str, str] = {"model": options.model, "stream": str(options.stream).lower()}
        try:
            shown |= await (_streamed if options.stream else _whole)(options, ctx)
        except PluginError as error:
            # The page worked, the model did not: its status is for reading.
            shown |= {"status": str(error.http_status), "error": f"{error.code}: {error}"}
        return page(200, shown)


async def _whole(options: Options, ctx: Context) -> dict[str, str]:
    answer = await ctx.model.execute(options.model, _chat(options), **_protocols(options))
    text = answer.body.to_bytes().decode("utf-8", "replace") if answer.body else ""
    return {"status": str(answer.status), "headers": _headers(answer.headers), "body": text}


async def _streamed(options: Options, ctx: Context) -> dict[str, str]:
    stream = await ctx.model.stream(options.model, _chat(options), **_protocols(options))
    chunks = [_item(item) async for item in stream]
    shown = {"status": str(stream.status), "headers": _headers(stream.headers), "chunks": "\n".join(chunks)}
    if options.implicit_close:
        return {**shown, "closed": "implicitly, at the end of this call"}
    await stream.aclose()
    return {**shown, "closed": "explicitly"}


def read_options(request: ManagementHandleRequest) -> Options:
    """Raises ValueError, with a sentence for whoever wrote the request."""
    try:
        given = request.body.value() if request.body else {}
    except msgspec.DecodeError as error:
        raise ValueError(f"the body is not JSON: {error}") from None
    if not isinstance(given, dict):
        raise ValueError("the body is a JSON object of options")
    for name, values in request.query.items():
        given[name] = _boolean(name, values[-1]) if name in ("stream", "implicit_close") else values[-1]
    if isinstance(given.get("body"), str):
        given["body"] = _json("body", given["body"])
    try:
        options = msgspec.convert(given, Options)
    except msgspec.ValidationError as error:
        raise ValueError(str(error)) from None
    modes = {"": options.stream} | STREAM_MODES | WHOLE_MODES
    if options.mode not in modes:
        raise ValueError(f"mode is one of {', '.join(sorted(filter(None, modes)))}")
    options.stream = modes[options.mode]
    return options


def _boolean(name: str, text: str) -> bool:
    if text.lower() not in BOOLEANS:
        raise ValueError(f"{name} is true or false, not {text!r}")
    return BOOLEANS[text.lower()]


def _json(name: str, text: str) -> Any:
    try:
        return msgspec.json.decode(text)
    except msgspec.DecodeError as error:
        raise ValueError(f"{name} is not JSON: {error}") from None


def _chat(options: Options) -> dict[str, Any]:
    if options.body is not None:
        return options.body
    messages = [{"role": "user", "content": options.prompt}]
    return {"model": options.model, "stream": options.stream, "messages": messages}


def _protocols(options: Options) -> dict[str, Any]:
    return {
        "entry_protocol": options.entry_protocol,
        "exit_protocol": options.exit_protocol,
        "alt": options.alt,
        "headers": options.headers,
    }


def _headers(headers: Mapping[str, Any]) -> str:
    return "\n".join(f"{name}: {value}" for name, values in headers.items() for value in values)


def _item(item: StreamItem) -> str:
    body = item.raw or item.body
    return f"{item.event or ''} {body.to_bytes().decode('utf-8', 'replace')}".strip() if body else ""


def page(status: int, shown: Mapping[str, str]) -> ManagementHandleResponse:
    """Every value is escaped: what a model wrote is shown, not run."""
    rows = "".join(f"<dt>{escape(name)}</dt><dd><pre>{escape(value)}</pre></dd>" for name, value in shown.items())
    html = f"<!doctype html><title>Host Model Callback</title><h1>Host Model Callback</h1><dl>{rows}</dl>"
    return ManagementHandleResponse(
        status=status, headers={"content-type": ("text/html; charset=utf-8",)}, body=Body(text=html)
    )


if __name__ == "__main__":
    serve(ModelPage)
