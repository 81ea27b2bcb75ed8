"""Bodies in the shape of the Responses API that arrive at the chat endpoint (spec client-api 2.11)."""

from typing import Any, Final

import msgspec
from msgspec import Raw

from host.web.body import invalid

_CARRIED: Final = ("tools", "tool_choice", "parallel_tool_calls", "temperature", "top_p", "metadata", "user")
REASONING_PLACEHOLDER: Final = "(reasoning withheld)"
"""Stands for reasoning without a summary: some upstreams refuse a tool call whose reasoning is missing."""


def convert(body: bytes) -> bytes:
    """The chat request for a Responses request. Raises RequestError 400 when `input` is neither text nor a list."""
    members = msgspec.json.decode(body, type=dict[str, Raw])
    chat: dict[str, Any] = {}
    if "model" in members:
        chat["model"] = members["model"]
    chat["messages"] = _messages(members)
    if "max_output_tokens" in members:
        chat["max_tokens"] = members["max_output_tokens"]
    effort = _effort(members.get("reasoning"))
    if effort:
        chat["reasoning_effort"] = effort
    for name in _CARRIED:
        if name in members:
            chat[name] = members[name]
    if "tools" in members:
        chat["tools"] = _tools(members["tools"])
    if "tool_choice" in members:
        chat["tool_choice"] = _tool_choice(members["tool_choice"])
    chat["stream"] = bytes(members.get("stream", Raw(b"false"))) == b"true"
    return msgspec.json.encode(chat)


def _messages(members: dict[str, Raw]) -> list[dict[str, Any]]:
    messages: list[dict[str, Any]] = []
    instructions = msgspec.json.decode(members["instructions"]) if "instructions" in members else None
    if isinstance(instructions, str) and instructions:
        messages.append({"role": "system", "content": instructions})
    given = msgspec.json.decode(members["input"]) if "input" in members else None
    if isinstance(given, str):
        messages.append({"role": "user", "content": given})
    elif isinstance(given, list):
        _Conversation(messages, given).convert()
    elif given is not None:
        raise invalid("'input' must be a string or a list", param="input")
    return messages


class _Conversation:
    """Turns input items into messages: tool calls grouped, their outputs right behind them."""

    def __init__(self, messages: list[dict[str, Any]], items: list[Any]) -> None:
        self._messages = messages
        self._items = items
        outputs = (item.get("call_id") for item in items if _kind(item) == "function_call_output")
        self._with_output = {call_id for call_id in outputs if isinstance(call_id, str)}
        self._open: set[str] = set()
        self._deferred: list[dict[str, Any]] = []
        self._calls: list[dict[str, Any]] = []
        self._reasoning = ""

    def convert(self) -> None:
        for item in self._items:
            if not isinstance(item, dict):
                continue
            match _kind(item):
                case "function_call":
                    self._call(item)
                case "function_call_output":
                    self._output(item)
                case "reasoning":
                    self._close_calls()
                    self._reasoning = _summary(item)
                case "message":
                    self._message(item)
        self._close_calls()
        self._messages += self._deferred

    def _call(self, item: dict[str, Any]) -> None:
        call_id = str(item.get("call_id") or item.get("id") or "")
        function = {"name": item.get("name", ""), "arguments": _as_text(item.get("arguments", ""))}
        self._calls.append({"id": call_id, "type": "function", "function": function})
        if call_id in self._with_output:
            self._open.add(call_id)

    def _output(self, item: dict[str, Any]) -> None:
        self._close_calls()
        call_id = str(item.get("call_id", ""))
        self._messages.append({"role": "tool", "tool_call_id": call_id, "content": _output_text(item.get("output"))})
        self._open.discard(call_id)
        if not self._open:
            # Messages between a call and its output would break the pair for most upstreams.
            self._messages += self._deferred
            self._deferred.clear()

    def _message(self, item: dict[str, Any]) -> None:
        self._close_calls()
        role = item.get("role", "user")
        message: dict[str, Any] = {
            "role": "user" if role == "developer" else role,
            "content": _content(item.get("content")),
        }
        if role == "assistant" and self._reasoning:
            message["reasoning_content"], self._reasoning = self._reasoning, ""
        (self._deferred if self._open else self._messages).append(message)

    def _close_calls(self) -> None:
        if not self._calls:
            return
        message: dict[str, Any] = {"role": "assistant", "content": None, "tool_calls": self._calls}
        if self._reasoning:
            message["reasoning_content"], self._reasoning = self._reasoning, ""
        self._messages.append(message)
        self._calls = []


def _kind(item: Any) -> str:
    if not isinstance(item, dict):
        return ""
    kind = item.get("type")
    if not kind and "role" in item:
        return "message"
    return kind if isinstance(kind, str) else ""


def _as_text(value: Any) -> str:
    return value if isinstance(value, str) else msgspec.json.encode(value).decode()


def _output_text(value: Any) -> str:
    if isinstance(value, list):
        texts = [part.get("text") for part in value if isinstance(part, dict)]
        if texts and all(isinstance(text, str) for text in texts):
            return "".join(str(text) for text in texts)
    return _as_text(value if value is not None else "")


def _content(content: Any) -> Any:
    if not isinstance(content, list):
        return content if isinstance(content, str) else ""
    parts: list[dict[str, Any]] = []
    for part in content:
        if not isinstance(part, dict):
            continue
        kind = part.get("type") or "input_text"
        if kind in ("input_text", "output_text", "text"):
            parts.append({"type": "text", "text": part.get("text", "")})
        elif kind == "input_image":
            image = {"url": part.get("image_url", "")}
            if part.get("detail"):
                image["detail"] = part["detail"]
            parts.append({"type": "image_url", "image_url": image})
    return parts


def _summary(item: dict[str, Any]) -> str:
    summary = item.get("summary")
    texts = [part.get("text", "") for part in summary if isinstance(part, dict)] if isinstance(summary, list) else []
    return "\n".join(text for text in texts if isinstance(text, str) and text) or REASONING_PLACEHOLDER


def _effort(reasoning: Raw | None) -> str:
    value = msgspec.json.decode(reasoning) if reasoning is not None else None
    effort = value.get("effort") if isinstance(value, dict) else None
    return effort.strip().lower() if isinstance(effort, str) else ""


def _tools(tools: Raw) -> Any:
    """Function tools get chat's nesting; what chat has no shape for stays as it is."""
    value = msgspec.json.decode(tools)
    if not isinstance(value, list):
        return tools
    return [_tool(tool) for tool in value]


def _tool(tool: Any) -> Any:
    if not isinstance(tool, dict) or tool.get("type") != "function" or "function" in tool:
        return tool
    return {"type": "function", "function": {name: value for name, value in tool.items() if name != "type"}}


def _tool_choice(choice: Raw) -> Any:
    value = msgspec.json.decode(choice)
    if isinstance(value, dict) and value.get("type") == "function" and "name" in value:
        return {"type": "function", "function": {"name": value["name"]}}
    return choice
