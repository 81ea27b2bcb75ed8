"""The four protocols a client can speak to the proxy, each with a bundled provider behind it that speaks the same."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

MODEL = "m1"
TEXT = "Hello from upstream"
"""What `FakeUpstream` says."""
Document = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """One protocol: where and what a client sends, and the section of the config that serves it."""

    name: str
    section: str
    """Key of the config."""
    path: Callable[[str, bool], str]
    """Of the proxy, by model and whether a stream is wanted."""
    upstream_path: Callable[[str, bool], str]
    body: Callable[[str, bool], Document]
    secret: Callable[[str], tuple[str, str]]
    """Header name (lower case) and value that carry an upstream key."""
    own: Mapping[str, Any]

    def request(self, *, model: str = MODEL, stream: bool = False) -> tuple[str, bytes]:
        """Path and body of a request."""
        return self.path(model, stream), json.dumps(self.body(model, stream)).encode()

    def entries(
        self, url: str, keys: Sequence[str], *, models: Sequence[Mapping[str, Any]] = ({"name": MODEL},), **more: Any
    ) -> list[Document]:
        """The section's list: the upstream at `url` with these keys. `more` are further keys of each entry."""
        listed: Document = {"models": list(models), **{name.replace("_", "-"): value for name, value in more.items()}}
        if self.section == "openai-compatibility":
            provider = {"name": "acme", "base-url": f"{url}/v1", "api-key-entries": [{"api-key": k} for k in keys]}
            return [{**provider, **self.own, **listed}]
        return [{"api-key": key, "base-url": url, **self.own, **listed} for key in keys]

    def config(self, url: str, *keys: str, top: Mapping[str, Any] | None = None, **more: Any) -> str:
        """A whole config with one upstream; JSON is YAML. `top` are further keys of the file."""
        return json.dumps({self.section: self.entries(url, keys or ("up-key",), **more), **(top or {})})


def _bearer(key: str) -> tuple[str, str]:
    return "authorization", f"Bearer {key}"


def _messages(model: str, stream: bool) -> Document:
    return {"model": model, "messages": [{"role": "user", "content": "Hi"}], **({"stream": True} if stream else {})}


def _gemini_path(model: str, stream: bool) -> str:
    action = "streamGenerateContent?alt=sse" if stream else "generateContent"
    return f"/v1beta/models/{model}:{action}"


OPENAI = Family(
    name="openai",
    section="openai-compatibility",
    path=lambda model, stream: "/v1/chat/completions",
    upstream_path=lambda model, stream: "/v1/chat/completions",
    body=_messages,
    secret=_bearer,
    own={},
)
RESPONSES = Family(
    name="responses",
    section="openai-compatibility",
    path=lambda model, stream: "/v1/responses",
    upstream_path=lambda model, stream: "/v1/responses",
    body=lambda model, stream: {"model": model, "input": "Hi", **({"stream": True} if stream else {})},
    secret=_bearer,
    own={"responses": True},
)
CLAUDE = Family(
    name="claude",
    section="claude-api-key",
    path=lambda model, stream: "/v1/messages",
    upstream_path=lambda model, stream: "/v1/messages",
    body=lambda model, stream: {**_messages(model, stream), "max_tokens": 50},
    secret=lambda key: ("x-api-key", key),
    own={},
)
GEMINI = Family(
    name="gemini",
    section="gemini-api-key",
    path=_gemini_path,
    upstream_path=lambda model, stream: _gemini_path(model, stream).partition("?")[0],
    body=lambda model, stream: {"contents": [{"role": "user", "parts": [{"text": "Hi"}]}]},
    secret=lambda key: ("x-goog-api-key", key),
    own={},
)
FAMILIES = (OPENAI, RESPONSES, CLAUDE, GEMINI)
