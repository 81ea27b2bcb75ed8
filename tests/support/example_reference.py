"""Scripts of the examples for scheduling, client authentication, lifecycle, normalisers, translators and usage."""

from typing import Any

from pluginabi.frames import Usage
from pluginapi import (
    Body,
    Candidate,
    CommandLineRequest,
    ExecutorRequest,
    FlagValue,
    FrontendAuthRequest,
    HostSummary,
    ManagementHandleRequest,
    ManagementRegisterRequest,
    ModelCallResponse,
    PluginError,
    RequestCompleteRequest,
    RequestInterceptRequest,
    RequestTranslateRequest,
    ResponseTranslateRequest,
    SchedulerPickRequest,
    StreamItem,
    UsageHandleRequest,
)
from pluginapi.testing import FakeHost
from tests.support.example_steps import Error, Script, Step, Streamed, chat, json_body

PICK = "scheduler.pick"
BEFORE = "request.intercept_before"
DENIED = Error(
    {
        "message": "scheduler pick denied by plugin configuration",
        "code": "scheduler_denied",
        "http_status": 403,
        "retryable": False,
    }
)


def candidates(*ids: str) -> SchedulerPickRequest:
    return SchedulerPickRequest(candidates=tuple(Candidate(id=name) for name in ids))


PINNED_SCHEDULER = Script(
    "pinned-scheduler",
    config={"auth_id": " b "},
    steps=[
        Step(PICK, candidates("a", "b"), {"auth_id": "b", "reason": "pinned by the configuration"}),
        Step(PICK, candidates("a", "c"), {}),
    ],
)


def knock(**headers: str) -> FrontendAuthRequest:
    named = {name.replace("_", "-"): (value,) for name, value in headers.items()}
    return FrontendAuthRequest(method="GET", path="/v1/models", headers=named)


EXCLUSIVE_AUTH = Script(
    "exclusive-auth",
    steps=[
        Step(
            "frontend_auth.authenticate",
            knock(x_example_frontend_auth="exclusive"),
            {"decision": "allow", "principal": "example", "metadata": {"by": "x-example-frontend-auth"}},
        ),
        Step("frontend_auth.authenticate", knock(authorization="Bearer a-key"), {}),
        Step(
            "frontend_auth.authenticate",
            knock(x_example_frontend_auth="other"),
            {"decision": "deny", "message": "x-example-frontend-auth: wrong value"},
        ),
    ],
)


def enters(request_id: str, text: str = "hi") -> RequestInterceptRequest:
    return RequestInterceptRequest(request_id=request_id, body=chat(text))


def leaves(request_id: str) -> RequestCompleteRequest:
    return RequestCompleteRequest(request_id=request_id)


def refused(status: int, code: str, message: str, **headers: list[str]) -> dict[str, Any]:
    named = {name.replace("_", "-"): values for name, values in headers.items()}
    terminate = {"headers": named} if named else {}
    return {"terminate": {"status": status, **terminate, "body": {"error": {"code": code, "message": message}}}}


TOO_MANY = refused(429, "too_many_requests", "too many requests at once", retry_after=["1"])
KEYWORD = refused(403, "rejected_keyword", "this gateway does not answer requests about 'blocked'")

CONCURRENCY_LIMIT = Script(
    "concurrency-limit",
    config={"max_concurrency": 1},
    steps=[
        Step(BEFORE, enters("r0", "a blocked word"), KEYWORD),
        Step(BEFORE, enters("r1"), {}),
        Step(BEFORE, enters("r2"), TOO_MANY),
        # Neither who was refused nor who left before frees a place.
        Step("request.complete", leaves("r2"), {}),
        Step("request.complete", leaves("r0"), {}),
        Step(BEFORE, enters("r3"), TOO_MANY),
        Step("request.complete", leaves("r1"), {}),
        Step("request.complete", leaves("r1"), {}),
        Step(BEFORE, enters("r4"), {}),
        Step(BEFORE, enters("r5"), TOO_MANY),
    ],
)


def normalise(to_format: str, model: str, body: Body) -> RequestTranslateRequest:
    return RequestTranslateRequest(from_format="openai", to_format=to_format, model=model, body=body)


CODEX_SERVICE_TIER = Script(
    "codex-service-tier",
    config={"fast": True},
    steps=[
        Step(
            "request.normalize",
            normalise("Codex", "gpt-5.5", json_body({"input": "hi", "service_tier": "auto"})),
            {"body": {"input": "hi", "service_tier": "priority"}},
        ),
        Step("request.normalize", normalise("openai", "gpt-5.5", json_body({})), {}),
        Step("request.normalize", normalise("codex", "gpt-5.5-mini", json_body({})), {}),
        Step("request.normalize", normalise("codex", "gpt-5.5", json_body([1])), {}),
        Step("request.normalize", normalise("codex", "gpt-5.5", Body(text="no JSON")), {}),
    ],
)


def telegram(text: str, **more: Any) -> Body:
    return json_body({"to": "telegraph", "lines": [{"who": "user", "text": text}], **more})


def wired(*, stream: bool = False, **more: Any) -> ResponseTranslateRequest:
    return ResponseTranslateRequest(
        request_id="r1", from_format="telegram", to_format="openai", model="telegraph", stream=stream, **more
    )


def words_of(word: str) -> StreamItem:
    return StreamItem(event="word", body=json_body({"word": word}))


def office(body: Body, *, stream: bool = False) -> ExecutorRequest:
    return ExecutorRequest(model="telegraph", source_format="telegram", format="telegram", stream=stream, body=body)


def completion_chunk(delta: dict[str, Any], reason: str | None = None, **more: Any) -> dict[str, Any]:
    head = {"id": "telegram-r1", "object": "chat.completion.chunk", "created": 0, "model": "telegraph"}
    return {"body": {**head, "choices": [{"index": 0, "delta": delta, "finish_reason": reason}], **more}}


CHARGE = {"in": 2, "out": 3}
CHARGED = {"prompt_tokens": 2, "completion_tokens": 3, "total_tokens": 5}
USED = Usage(input_tokens=2, output_tokens=3, total_tokens=5)
PARTS = [{"type": "text", "text": "good"}, {"type": "image_url"}, {"type": "text", "text": "luck"}]

TELEGRAPH = Script(
    "telegraph",
    config={"office": "PARIS"},
    steps=[
        Step(
            "request.normalize",
            normalise("telegram", "telegraph", json_body({"messages": [{"role": "user", "content": PARTS}]})),
            {"body": {"messages": [{"role": "user", "content": "good luck"}]}},
        ),
        Step("request.normalize", normalise("openai", "other", chat("good luck")), {}),
        Step(
            "request.translate",
            normalise("telegram", "telegraph", chat("good luck", max_tokens=3)),
            {"body": {"to": "telegraph", "lines": [{"who": "user", "text": "good luck"}], "limit": 3}},
        ),
        Step("request.translate", normalise("claude", "other", chat("good luck")), {}),
        Step(
            "executor.execute",
            office(telegram("good luck", limit=3)),
            {"body": {"words": ["RECEIVED", "GOOD", "LUCK"], "charge": CHARGE}},
            usage=USED,
        ),
        Step(
            "executor.execute_stream",
            office(telegram("good luck", limit=3), stream=True),
            Streamed(
                items=[
                    {"event": "word", "body": {"word": "RECEIVED"}},
                    {"event": "word", "body": {"word": "GOOD"}},
                    {"event": "word", "body": {"word": "LUCK"}},
                    {"event": "charge", "body": {"charge": CHARGE}},
                ],
                usage=USED,
            ),
        ),
        Step(
            "executor.execute",
            office(json_body({"to": "telegraph", "lines": []})),
            Error(
                {
                    "message": "no message, no telegram",
                    "code": "empty_telegram",
                    "http_status": 422,
                    "retryable": False,
                }
            ),
        ),
        Step(
            "response.normalize_before",
            wired(body=json_body({"words": ["HI", "STOP"], "charge": CHARGE})),
            {"body": {"words": [" HI", "."], "charge": CHARGE}},
        ),
        Step(
            "response.normalize_before",
            wired(stream=True, items=(words_of("STOP"),)),
            {"items": [{"event": "word", "body": {"word": "."}}]},
        ),
        Step(
            "response.translate",
            wired(body=json_body({"words": [" HI", "."], "charge": CHARGE})),
            {
                "body": {
                    "id": "telegram-r1",
                    "object": "chat.completion",
                    "created": 0,
                    "model": "telegraph",
                    "choices": [
                        {"index": 0, "message": {"role": "assistant", "content": "HI."}, "finish_reason": "stop"}
                    ],
                    "usage": CHARGED,
                }
            },
        ),
        Step(
            "response.translate",
            wired(stream=True, items=(words_of(" HI"), words_of("."))),
            {
                "items": [
                    completion_chunk({"role": "assistant", "content": "HI"}),
                    completion_chunk({"content": "."}),
                ]
            },
        ),
        Step(
            "response.translate",
            wired(
                stream=True,
                index=2,
                items=(StreamItem(event="charge", body=json_body({"charge": CHARGE})),),
            ),
            {"items": [completion_chunk({}, "stop", usage=CHARGED)]},
        ),
        Step("response.translate", wired(stream=True, index=3, last=True), {"items": []}),
        Step(
            "response.normalize_after",
            wired(body=json_body({"id": "x"})),
            {"body": {"id": "x", "system_fingerprint": "PARIS"}},
        ),
        Step("response.normalize_after", ResponseTranslateRequest(from_format="openai", body=json_body({})), {}),
    ],
)


def used(model: str, *, failed: bool = False) -> UsageHandleRequest:
    return UsageHandleRequest(model=model, credential_id="c1", failed=failed, usage=Usage(input_tokens=2))


USAGE_LOG = Script(
    "usage-log",
    config={"file": "usage.jsonl"},
    steps=[Step("usage.handle", used("m1"), {}), Step("usage.handle", used("m2", failed=True), {})],
)


def opened(method: str = "GET", *, body: Body | None = None, **query: str) -> ManagementHandleRequest:
    path = "/v0/management/model-page" if method == "POST" else "/v0/resource/plugins/model-page/status"
    named = {name: (value,) for name, value in query.items()}
    more = {} if body is None else {"body": body}
    return ManagementHandleRequest(request_id="r1", method=method, path=path, query=named, **more)


def shows(http_status: int, /, **rows: str) -> dict[str, Any]:
    """The page with these rows, as an answer."""
    listed = "".join(f"<dt>{name}</dt><dd><pre>{value}</pre></dd>" for name, value in rows.items())
    html = f"<!doctype html><title>Host Model Callback</title><h1>Host Model Callback</h1><dl>{listed}</dl>"
    answer = {"headers": {"content-type": ["text/html; charset=utf-8"]}, "body": html}
    return answer if http_status == 200 else {"status": http_status, **answer}


def with_models() -> FakeHost:
    """A gateway whose models answer with markup, or not at all."""
    host = FakeHost()

    def whole(request: Any) -> ModelCallResponse:
        if request.model == "full":
            raise PluginError("no quota", code="quota", http_status=429)
        said = request.body.value()["messages"][0]["content"]
        return ModelCallResponse(headers={"x-model": [request.model]}, body=json_body({"said": f"<b>{said}</b>"}))

    host.on("host.model.execute", whole)
    host.on_stream("host.model.execute_stream", ModelCallResponse(), [{"n": 1}, ("stop", {"n": 2})])
    return host


ESCAPED = "{&quot;said&quot;:&quot;&lt;b&gt;hi&lt;/b&gt;&quot;}"
CHUNKS = "{&quot;n&quot;:1}\nstop {&quot;n&quot;:2}"

MODEL_PAGE = Script(
    "model-page",
    config={"public": True},
    permissions=("model",),
    host=with_models,
    steps=[
        Step(
            "management.register",
            ManagementRegisterRequest(),
            {
                "routes": [{"method": "POST", "path": "/model-page", "description": "ask a model"}],
                "resources": [{"path": "/status", "menu": "Host Model Callback", "description": "ask a model"}],
            },
        ),
        Step(
            "management.handle",
            opened(model="m", prompt="hi"),
            shows(200, model="m", stream="false", status="200", headers="x-model: m", body=ESCAPED),
        ),
        Step(
            "management.handle",
            opened("POST", body=json_body({"model": "m", "mode": "streaming"}), implicit_close="true"),
            shows(
                200,
                model="m",
                stream="true",
                status="200",
                headers="",
                chunks=CHUNKS,
                closed="implicitly, at the end of this call",
            ),
        ),
        Step(
            "management.handle",
            opened(model="full"),
            shows(200, model="full", stream="false", status="429", error="quota: no quota"),
        ),
        Step(
            "management.handle",
            opened(stream="maybe"),
            shows(400, error="stream is true or false, not &#x27;maybe&#x27;"),
        ),
        Step(
            "management.handle",
            opened("POST", body=Body(text="{")),
            shows(400, error="the body is not JSON: Input data was truncated"),
        ),
    ],
)


def line(kind: str = "text", *triggered: str) -> CommandLineRequest:
    flags = {
        "config-card": FlagValue(name="config-card", value="true"),
        "config-card-format": FlagValue(name="config-card-format", type="string", value=kind),
    }
    return CommandLineRequest(
        config_path="/etc/c.yaml",
        flags=flags,
        triggered_flags={name: flags[name] for name in triggered},
        host=HostSummary(auth_dir="/var/auths"),
    )


CONFIG_CARD = Script(
    "config-card",
    steps=[
        Step(
            "command_line.execute",
            line("text", "config-card"),
            {"stdout": "config: /etc/c.yaml\nauth_dir: /var/auths\n"},
        ),
        Step(
            "command_line.execute",
            line("json", "config-card", "config-card-format"),
            {"stdout": '{"config":"/etc/c.yaml","auth_dir":"/var/auths"}\n'},
        ),
        Step(
            "command_line.execute",
            line("xml", "config-card", "config-card-format"),
            {"stderr": "--config-card-format is text or json, not xml\n", "exit_code": 2},
        ),
        Step(
            "command_line.execute",
            line("json", "config-card-format"),
            {"stderr": "--config-card-format says how; give --config-card as well\n", "exit_code": 2},
        ),
    ],
)

REFERENCE = [
    PINNED_SCHEDULER,
    EXCLUSIVE_AUTH,
    CONCURRENCY_LIMIT,
    CODEX_SERVICE_TIER,
    TELEGRAPH,
    USAGE_LOG,
    MODEL_PAGE,
    CONFIG_CARD,
]
