"""Scripts of the examples in Go, Rust, C and shell, and how they are built."""

import shutil
from dataclasses import replace
from typing import Any

from pluginapi import (
    ModelInfo,
    RequestInterceptRequest,
    ThinkingApplyRequest,
    ThinkingConfig,
    ThinkingSupport,
    Usage,
)
from tests.support import toolchains
from tests.support.example_steps import EXAMPLES, ROUTE, Error, Script, Step, Streamed, chat, execute, json_body, route

COMPILED = {"go-thinking": "go", "go-countdown": "go", "rust-thinking": "cargo", "c-router": "cc"}
"""Compiler by folder."""


def build_examples() -> None:
    """Those whose compiler is there; a test of another one says what it needs."""
    for folder, compiler in COMPILED.items():
        if shutil.which(compiler) is not None:
            toolchains.make(EXAMPLES / folder)


def need_compiler(folder: str) -> None:
    """Skip where an example cannot be built (never in CI)."""
    if folder in COMPILED:
        toolchains.need(COMPILED[folder])


APPLY = "thinking.apply"


def think(body: dict[str, Any], *, support: ThinkingSupport | None = None, **config: Any) -> Step:
    """A step of `thinking.apply`; what it must come to is set with `becomes`."""
    model = ModelInfo(id="m", thinking=support)
    params = ThinkingApplyRequest(provider="acme", model=model, config=ThinkingConfig(**config), body=json_body(body))
    return Step(APPLY, params, None)


def becomes(step: Step, body: dict[str, Any]) -> Step:
    return replace(step, expected={"body": body})


GO_THINKING = Script(
    "go-thinking",
    in_python=False,
    steps=[
        becomes(think({"a": 1}, mode="level", level="high"), {"a": 1, "reasoning_effort": "high"}),
        becomes(
            think({}, support=ThinkingSupport(levels=("low", "medium")), mode="budget", budget=100_000),
            {"reasoning_effort": "medium"},
        ),
        becomes(think({"reasoning_effort": "low"}, mode="auto"), {}),
        Step(
            APPLY,
            ThinkingApplyRequest(body=json_body([])),
            Error(
                {
                    "message": "the body is no JSON object: json: cannot unmarshal array into Go value of type"
                    " map[string]json.RawMessage",
                    "code": "invalid_body",
                    "http_status": 400,
                }
            ),
        ),
    ],
)

RUST_THINKING = Script(
    "rust-thinking",
    in_python=False,
    steps=[
        becomes(
            think({"max_tokens": 9000}, mode="budget", budget=8192),
            {"max_tokens": 9000, "thinking": {"type": "enabled", "budget_tokens": 8192}},
        ),
        becomes(
            think({"max_tokens": 10}, support=ThinkingSupport(min=1024, max=2000), mode="level", level="high"),
            {"max_tokens": 3024, "thinking": {"type": "enabled", "budget_tokens": 2000}},
        ),
        becomes(think({}, mode="none"), {"thinking": {"type": "disabled"}}),
        Step(
            APPLY,
            ThinkingApplyRequest(body=json_body([])),
            Error({"message": "the body is no JSON object", "code": "invalid_body", "http_status": 400}),
        ),
    ],
)

C_ROUTER = Script(
    "c-router",
    in_python=False,
    config={"teams": {"a": "first", "a/b": "second", "bad": 1}},
    steps=[
        Step(
            ROUTE,
            route("a/x"),
            {"target_kind": "provider", "target": "first", "target_model": "x", "reason": "prefix a"},
        ),
        Step(
            ROUTE,
            route("a/b/c/\u00e9"),
            {"target_kind": "provider", "target": "second", "target_model": "c/\u00e9", "reason": "prefix a/b"},
        ),
        Step(ROUTE, route("ab/x"), {}),
        Step(
            ROUTE,
            route("bad/x"),
            Error({"message": "teams maps prefixes to provider keys", "code": "bad_configuration"}),
        ),
    ],
)


def counted(content: str | None) -> dict[str, Any]:
    """One item of the countdown's stream; the last one without content."""
    delta = {} if content is None else {"content": content}
    choice = {"index": 0, "delta": delta, "finish_reason": "stop" if content is None else None}
    return {"body": {**HEAD, "object": "chat.completion.chunk", "choices": [choice]}}


HEAD = {"id": "countdown-r1", "created": 0, "model": "countdown"}
TOO_LONG = Error({"message": "nobody can count down from 100001", "code": "too_long", "http_status": 422})
GO_COUNTDOWN = Script(
    "go-countdown",
    in_python=False,
    config={"pause_ms": 0},
    steps=[
        Step(ROUTE, route("countdown"), {"target_kind": "self", "reason": "this plugin is the model"}),
        Step(ROUTE, route("up"), {}),
        Step(
            "executor.execute",
            execute("countdown", chat("from 2")),
            {
                "body": {
                    **HEAD,
                    "object": "chat.completion",
                    "choices": [
                        {"index": 0, "message": {"role": "assistant", "content": "2 1 0"}, "finish_reason": "stop"}
                    ],
                }
            },
            usage=Usage(input_tokens=0, output_tokens=3, total_tokens=3),
        ),
        Step(
            "executor.execute_stream",
            execute("countdown", chat("from 100"), stream=True),
            Streamed(
                items=[*(counted(f"{number} ") for number in range(100, -1, -1)), counted(None)],
                usage=Usage(input_tokens=0, output_tokens=101, total_tokens=101),
            ),
        ),
        Step("executor.execute_stream", execute("countdown", chat("from 100001"), stream=True), TOO_LONG),
    ],
)

SHELL_GATE = Script(
    "shell-gate",
    in_python=False,
    config={"sign": "/dev/null"},
    steps=[
        Step(
            "request.intercept_before",
            RequestInterceptRequest(request_id="r1"),
            {
                "terminate": {
                    "status": 503,
                    "headers": {"retry-after": ["60"]},
                    "body": {"error": {"message": "closed: ", "type": "maintenance"}},
                }
            },
        ),
        Step(ROUTE, route("m"), Error({"message": "no model.route", "code": "method_not_found"})),
    ],
)

LANGUAGES = [GO_THINKING, GO_COUNTDOWN, RUST_THINKING, C_ROUTER, SHELL_GATE]
