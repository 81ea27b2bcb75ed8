"""The same fixed script of calls for each example, whatever carries it, and the transcript it must give."""

from typing import Any

from pluginapi import (
    Candidate,
    HttpResponse,
    RequestInterceptRequest,
    ResponseInterceptRequest,
    SchedulerPickRequest,
    Usage,
)
from pluginapi.testing import FakeHost
from tests.support.example_auth import CREDENTIALS
from tests.support.example_languages import LANGUAGES
from tests.support.example_reference import REFERENCE
from tests.support.example_steps import ROUTE, Error, Script, Step, Streamed, chat, execute, route

CHEAP_FIRST = Script(
    "cheap-first",
    config={"provider": "acme", "cheap": "acme-small", "strong": "acme-large"},
    steps=[
        Step(
            ROUTE,
            route("auto"),
            {
                "target_kind": "provider",
                "target": "acme",
                "target_model": "acme-small",
                "reason": "no tools, the cheap model will do",
            },
        ),
        Step(
            ROUTE,
            route("auto", body_parts={"/tools": [{"type": "function"}]}),
            {
                "target_kind": "provider",
                "target": "acme",
                "target_model": "acme-large",
                "reason": "the request brings tools",
            },
        ),
        Step(ROUTE, route("gpt-x"), {}),
    ],
)


def pick(session: str | None, *candidates: str) -> SchedulerPickRequest:
    headers = {"x-session-id": [session]} if session else {}
    return SchedulerPickRequest(candidates=tuple(Candidate(id=name) for name in candidates), headers=headers)


STICKY_SCHEDULER = Script(
    "sticky-scheduler",
    steps=[
        Step("scheduler.pick", pick("s1", "a", "b", "c"), {"auth_id": "b", "reason": "session s1 stays here"}),
        Step("scheduler.pick", pick("s1", "c", "b"), {"auth_id": "b", "reason": "session s1 stays here"}),
        Step("scheduler.pick", pick("s2", "a", "b", "c"), {"auth_id": "a", "reason": "session s2 stays here"}),
        Step("scheduler.pick", pick(None, "a", "b"), {}),
    ],
)

HOUSE_RULES = Script(
    "house-rules",
    config={"max_temperature": 0.5, "user": "lab"},
    steps=[
        Step(
            "request.intercept_before",
            RequestInterceptRequest(body_parts={"/temperature": 1.5}, headers={"x-debug": ["1"]}),
            {
                "clear_headers": ["x-debug"],
                "headers": {"x-house-rules": ["applied"]},
                "patch": {"user": "lab", "temperature": 0.5},
            },
        ),
        Step(
            "request.intercept_before",
            RequestInterceptRequest(body_parts={"/temperature": 0.1}),
            {"clear_headers": ["x-debug"], "headers": {"x-house-rules": ["applied"]}, "patch": {"user": "lab"}},
        ),
        Step(
            "response.intercept_after",
            ResponseInterceptRequest(headers={"server": ["x"]}),
            {"clear_headers": ["server"], "headers": {"x-answered-for": ["lab"]}},
        ),
    ],
)

CARD_GATE = Script(
    "card-gate",
    steps=[
        Step(
            "request.intercept_before",
            RequestInterceptRequest(body=chat("my card is 4111 1111-1111 1111, thanks")),
            {
                "terminate": {
                    "status": 403,
                    "headers": {"content-type": ["application/json"], "x-refused-by": ["card-gate"]},
                    "body": {
                        "error": {
                            "type": "card_number",
                            "message": "This request contains a payment card number. Remove it and try again.",
                        }
                    },
                }
            },
        ),
        Step("request.intercept_before", RequestInterceptRequest(body=chat("order 4111 1111 1111 1112")), {}),
        Step("request.intercept_before", RequestInterceptRequest(), {}),
    ],
)


def story_chunk(word: str) -> dict[str, Any]:
    choice = {"index": 0, "delta": {"content": f"{word} "}, "finish_reason": None}
    return {**story_head("chat.completion.chunk"), "choices": [choice]}


def story_head(kind: str) -> dict[str, Any]:
    return {"id": "story-r1", "object": kind, "created": 0, "model": "storyteller"}


STORYTELLER = Script(
    "storyteller",
    steps=[
        Step(ROUTE, route("storyteller"), {"target_kind": "self", "reason": "this plugin is the model"}),
        Step(ROUTE, route("other"), {}),
        Step(
            "executor.execute",
            execute("storyteller", chat("tell me", max_tokens=2)),
            {
                "body": {
                    **story_head("chat.completion"),
                    "choices": [
                        {
                            "index": 0,
                            "message": {"role": "assistant", "content": "Once upon "},
                            "finish_reason": "stop",
                        }
                    ],
                }
            },
            usage=Usage(input_tokens=0, output_tokens=2, total_tokens=2),
        ),
        Step(
            "executor.execute_stream",
            execute("storyteller", chat("tell me", max_tokens=2), stream=True),
            Streamed(
                items=[
                    {"body": story_chunk("Once")},
                    {"body": story_chunk("upon")},
                    {
                        "body": {
                            **story_head("chat.completion.chunk"),
                            "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}],
                        }
                    },
                ],
                usage=Usage(input_tokens=0, output_tokens=2, total_tokens=2),
            ),
        ),
        Step(
            "executor.execute",
            execute("storyteller", chat("tell me", max_tokens=0)),
            Error(
                {
                    "message": "a story needs at least one word",
                    "code": "story_too_short",
                    "http_status": 422,
                    "retryable": False,
                }
            ),
        ),
        Step(
            "executor.execute_stream",
            execute("storyteller", chat("tell me", max_tokens=0), stream=True),
            Error(
                {
                    "message": "a story needs at least one word",
                    "code": "story_too_short",
                    "http_status": 422,
                    "retryable": False,
                }
            ),
        ),
    ],
)

SSE = [b'data: {"n": 1}\n\n', b'data: {"n":', b' 2}\n\ndata: "\xc3', b'\xa9"\n\n', b"data: [DONE]\n\n"]


def upstream() -> FakeHost:
    """An upstream that streams, whole for a request without `stream`, and refuses a model called `full`."""
    host = FakeHost()

    def opened(request: Any) -> HttpResponse:
        model = request.body.value()["model"]
        return HttpResponse(status=429 if model == "full" else 200, headers={"x-upstream": [model]})

    host.on_stream("host.http.do_stream", opened, SSE)
    return host


RELAY = Script(
    "relay",
    config={"url": "https://upstream.test/v1/chat/completions"},
    permissions=("http",),
    host=upstream,
    steps=[
        Step(ROUTE, route("relay/m1"), {"target_kind": "self", "reason": "asked for with relay/"}),
        Step(
            "executor.execute_stream",
            execute("relay/m1", chat("hi", stream=True), stream=True),
            Streamed(
                items=[{"raw": b"".join(SSE).decode()}],
                result={"headers": {"x-upstream": ["m1"]}},
            ),
        ),
        Step(
            "executor.execute",
            execute("relay/m2", chat("hi")),
            {"headers": {"x-upstream": ["m2"]}, "body": b"".join(SSE).decode()},
        ),
        Step(
            "executor.execute",
            execute("relay/full", chat("hi")),
            Error(
                {
                    "message": "the upstream answered 429",
                    "http_status": 429,
                    "headers": {"x-upstream": ["full"]},
                    "body": b"".join(SSE).decode(),
                    "body_protocol": "openai",
                }
            ),
        ),
    ],
)


def shout_head(kind: str) -> dict[str, Any]:
    return {"id": "shout-r1", "object": kind, "created": 0, "model": "shouter"}


SHOUTER = Script(
    "shouter",
    steps=[
        Step(ROUTE, route("shouter"), {"target_kind": "self"}),
        Step(
            "executor.execute",
            execute("shouter", chat("hi there")),
            {
                "body": {
                    **shout_head("chat.completion"),
                    "choices": [
                        {
                            "index": 0,
                            "message": {"role": "assistant", "content": "HI THERE!"},
                            "finish_reason": "stop",
                        }
                    ],
                }
            },
            usage=Usage(output_tokens=2, total_tokens=2),
        ),
        Step("executor.count_tokens", execute("shouter", chat("one two three")), {"body": {"input_tokens": 3}}),
        Step(
            "executor.execute_stream",
            execute("shouter", chat("é"), stream=True),
            Streamed(
                items=[
                    {
                        "body": {
                            **shout_head("chat.completion.chunk"),
                            "choices": [{"index": 0, "delta": {"content": letter}, "finish_reason": reason}],
                        }
                    }
                    for letter, reason in (("É", None), ("!", "stop"))
                ],
                usage=Usage(output_tokens=1, total_tokens=1),
            ),
        ),
    ],
)

NODE_ROUTER = Script(
    "node-router",
    in_python=False,
    config={"teams": {"team-a": "openai"}},
    steps=[
        Step(
            ROUTE,
            route("team-a/gpt-x"),
            {"target_kind": "provider", "target": "openai", "target_model": "gpt-x", "reason": "team team-a"},
        ),
        Step(ROUTE, route("gpt-x"), {}),
        Step(
            ROUTE,
            route("team-b/gpt-x"),
            Error({"message": "unknown team team-b", "code": "unknown_team", "http_status": 404}),
        ),
    ],
)

JQ_ROUTER = Script(
    "jq-router",
    in_python=False,
    steps=[
        Step(
            ROUTE,
            route("by-length", body_parts={"/messages/-1": {"role": "user", "content": "hi"}}),
            {
                "target_kind": "executor",
                "target": "echo",
                "reason": "a short question",
            },
        ),
        Step(
            ROUTE,
            route("by-length", body_parts={"/messages/-1": {"role": "user", "content": "hi" * 200}}),
            {
                "target_kind": "provider",
                "target": "openai-compatible-acme",
                "target_model": "acme-large",
                "reason": "a long question",
            },
        ),
        Step(
            ROUTE,
            route("by-length", body_parts={"/messages/-1": "no object"}),
            {
                "target_kind": "executor",
                "target": "echo",
                "reason": "a short question",
            },
        ),
        Step(ROUTE, route("gpt-x"), {}),
        Step(
            "executor.execute",
            execute("m", chat("hi")),
            Error({"message": "this plugin has no executor.execute", "code": "method_not_found"}),
        ),
    ],
)

SCRIPTS = [
    CHEAP_FIRST,
    STICKY_SCHEDULER,
    HOUSE_RULES,
    CARD_GATE,
    STORYTELLER,
    RELAY,
    SHOUTER,
    NODE_ROUTER,
    JQ_ROUTER,
    *REFERENCE,
    *CREDENTIALS,
    *LANGUAGES,
]
