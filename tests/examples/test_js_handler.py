"""The JavaScript handler behind a real proxy: what scripts change, how they fail, and what they cannot reach."""

import asyncio
import os
import shutil
from contextlib import asynccontextmanager
from pathlib import Path

import openai
import pytest
import trustme
from structlog.testing import capture_logs

from tests.support.example_proxy import CHAT, acme, config_text, example_proxy
from tests.support.fake_upstream import Behaviour
from tests.support.proxy import running_proxy

HANDLER = Path(__file__).resolve().parents[2] / "plugins" / "js_handler"
SCRIPT = "handlers/own.js"
FAIL = {"js-handler": {"on-error": {"request.intercept_before": "fail", "response.intercept_after": "fail"}}}
EMAIL, CARD, KEY = "jane@example.com", "4111 1111 1111 1111", "sk-abcdefghijklmnopqrstuvwxyz"
NO_CARD = "4111 1111 1111 1112"

pytestmark = pytest.mark.skipif(shutil.which("node") is None and "CI" not in os.environ, reason="needs Node")


@pytest.fixture(autouse=True)
def few_certificates(monkeypatch, tmp_path):
    """The SDK loads all the certificates there are otherwise, which takes longer than the tests."""
    trustme.CA().cert_pem.write_to_path(tmp_path / "ca.pem")
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))


def write(folder: Path, source: str) -> None:
    """Put the script there at once and whole, as editors do."""
    target = folder / SCRIPT
    target.parent.mkdir(exist_ok=True)
    fresh = target.with_suffix(".new")
    fresh.write_text(source)
    fresh.replace(target)


@asynccontextmanager
async def scripted(folder, upstream, source, *, policy=None, models=("m",), **section):
    """A proxy whose handler runs `source`."""
    write(folder, source)
    config = {"js-handler": {"script": SCRIPT, **section}}
    async with example_proxy(folder, config, policy=policy, **acme(upstream, *models)) as proxy:
        yield proxy


async def ask(http, proxy, body=None, **headers):
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    url = f"{proxy.url}/v1/chat/completions"
    async with http.post(url, json={"model": "m", **CHAT, **(body or {})}, headers=named) as response:
        text = await response.text()
        return response, await response.json() if response.content_type == "application/json" else text


def decisions(proxy, response, kind):
    """What the decision trace says of a request."""
    traced = proxy.proxy.trace.get(response.headers["X-Request-Id"])
    return [decision.fields for decision in traced.decisions if decision.kind == kind]


async def test_the_redacting_script_keeps_secrets_from_the_upstream_and_from_the_client(tmp_path, upstream):
    upstream.behave("m", Behaviour(text=f"write {EMAIL} or pay {CARD} not {NO_CARD}, key {KEY}"))
    # The fake provider sends a chunk per word and leaves the spaces out: these three are cut in pieces.
    upstream.behave(
        "cut", Behaviour(text="to:jane@exam ple.com, 4111 1111 1111 1111 then: sk-abcdefghij klmnopqrstuvwxyz")
    )
    source = (HANDLER / "examples" / "redact.js").read_text()
    async with scripted(tmp_path, upstream, source, models=("m", "cut")) as proxy:
        async with openai.AsyncOpenAI(api_key="none", base_url=f"{proxy.url}/v1", max_retries=0, timeout=60) as client:
            said = f"I am {EMAIL}, card {CARD}, order {NO_CARD}, key {KEY}"
            asked = {"messages": [{"role": "user", "content": said}], "user": EMAIL}
            headers = {"X-User-Email": EMAIL, "X-Note": f"from {EMAIL}"}
            answer = await client.chat.completions.create(model="m", **asked, extra_headers=headers)
            expected = f"write [email] or pay [card] not {NO_CARD}, key [api key]"
            assert answer.choices[0].message.content == expected
            stream = await client.chat.completions.create(model="cut", **asked, stream=True)
            chunks = [chunk async for chunk in stream]
            pieces = [chunk.choices[0].delta.content for chunk in chunks if chunk.choices]
    assert "".join(piece or "" for piece in pieces) == "to:[email],[card]then:[api key]"
    assert chunks[-1].usage.total_tokens == 12
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1] == "stop"
    seen = upstream.requests[0]
    assert seen.json["messages"][0]["content"] == f"I am [email], card [card], order {NO_CARD}, key [api key]"
    assert seen.json["user"] == "[email]"


REWRITES = """
function on_before_request(ctx) {
  ctx.state.asked = ctx.body.messages.length;
  ctx.body.added = ctx.options.word;
  delete ctx.body.seed;
  const { "x-gone": gone, ...headers } = ctx.headers;
  return { body: ctx.body, headers: { ...headers, "X-New": ["a", "b"] }, response_headers: { "X-Early": "yes" } };
}
async function on_after_auth_request(ctx) {
  await null;
  ctx.body.seen = { ...ctx.headers, to: ctx.to_format, attempt: ctx.attempt, credential: Object.keys(ctx.credential) };
  return { body: ctx.body };
}
const on_response = (ctx) => ({
  body: { ...ctx.body, asked: ctx.state.asked },
  headers: { "x-answered": ctx.options.word },
});
"""


async def test_what_a_script_returns_is_authoritative_and_what_it_does_not_return_stays(tmp_path, upstream, http):
    upstream.behave("m", Behaviour(headers={"x-upstream": "1"}))
    top = {**acme(upstream, "m"), "passthrough-headers": True}
    write(tmp_path, REWRITES)
    config = {"js-handler": {"script": SCRIPT, "options": {"word": "hello"}}}
    async with example_proxy(tmp_path, config, **top) as proxy:
        response, answer = await ask(http, proxy, {"seed": 1}, x_gone="1", x_kept="1", authorization="Bearer k")
    seen = upstream.requests[0].json
    assert seen["added"] == "hello" and "seed" not in seen
    assert seen["seen"]["x-new"] == ["a", "b"] and seen["seen"]["x-kept"] == "1" and "x-gone" not in seen["seen"]
    assert "authorization" not in seen["seen"] and seen["seen"]["credential"] == [
        "handle",
        "provider",
        "label",
        "attributes",
    ]
    assert (seen["seen"]["to"], seen["seen"]["attempt"]) == ("openai", 1)
    assert answer["asked"] == 1
    assert response.headers["x-early"] == "yes"
    assert response.headers["x-answered"] == "hello" and "x-upstream" not in response.headers


STREAMS = """
function on_stream_start(ctx) { return { headers: { "x-script": "streams" } }; }
function on_response_chunk(ctx) {
  const delta = ctx.body.choices[0]?.delta;
  if (delta?.content === "drop") return { drop: true };
  if (delta?.content === "twice") return [{ body: ctx.body }, { body: ctx.body }];
  if (delta?.content === "shout") { delta.content = "SHOUT"; return ctx; }
}
function on_stream_end(ctx) {
  return { body: { choices: [{ index: 0, delta: { content: "end" }, finish_reason: null }] } };
}
"""


async def test_chunks_of_a_stream_stay_go_change_and_become_several(tmp_path, upstream, http):
    upstream.behave("m", Behaviour(text="keep drop twice shout"))
    async with scripted(tmp_path, upstream, STREAMS) as proxy:
        response, text = await ask(http, proxy, {"stream": True})
    said = [word for word in ("keep", "drop", "twice", "shout", "SHOUT", "end") for _ in range(text.count(f'"{word}"'))]
    assert said == ["keep", "twice", "twice", "SHOUT", "end"]
    assert response.headers["x-script"] == "streams"
    assert text.endswith("data: [DONE]\n\n")


async def test_a_script_may_end_a_request_with_an_answer_of_its_own(tmp_path, upstream, http):
    source = """function on_before_request(ctx) {
      return { terminate: { status: 451, headers: { "x-why": "law" }, body: { said: ctx.body.messages[0].content } } };
    }"""
    async with scripted(tmp_path, upstream, source) as proxy:
        response, answer = await ask(http, proxy)
    assert (response.status, response.headers["x-why"], answer) == (451, "law", {"said": "hi"})
    assert upstream.requests == []


BREAKS = """function on_before_request(ctx) {
  const how = ctx.headers["x-how"];
  if (how === "throw") {
    return ctx.body.nothing.here;
  }
  if (how === "status") throw { message: "not today", http_status: 422, code: "no_mondays" };
  if (how === "number") return 5;
  if (how === "loop") for (;;);
  if (how === "later") return Promise.resolve().then(() => { for (;;); });
  if (how === "never") return new Promise(() => {});
  if (how === "memory") { const all = []; for (;;) all.push(new Array(1e6).fill(how)); }
}"""
TYPE_ERROR = "own.js:4:29: TypeError: Cannot read properties of undefined (reading 'here') (in on_before_request)"


@pytest.mark.parametrize("mode", ["skip", "fail"])
async def test_an_error_names_file_and_line_and_does_what_the_policy_says(tmp_path, upstream, http, mode):
    policy = FAIL if mode == "fail" else None
    async with scripted(tmp_path, upstream, BREAKS, policy=policy) as proxy:
        response, answer = await ask(http, proxy, x_how="throw")
        (call,) = [call for call in decisions(proxy, response, "call") if "message" in call]
        assert (call["message"], call["code"], call["failed_open"]) == (TYPE_ERROR, "script_error", mode == "skip")
        if mode == "skip":
            assert response.status == 200 and len(upstream.requests) == 1
            return
        assert (response.status, answer["error"]["code"], answer["error"]["message"]) == (
            500,
            "script_error",
            TYPE_ERROR,
        )
        response, answer = await ask(http, proxy, x_how="status")
        assert (response.status, answer["error"]["code"]) == (422, "no_mondays")
        response, answer = await ask(http, proxy, x_how="number")
        assert response.status == 500 and "on_before_request returned 5" in answer["error"]["message"]
        assert upstream.requests == []


async def test_a_script_that_hangs_or_swells_is_stopped_and_the_next_request_is_served(tmp_path, upstream, http):
    async with scripted(tmp_path, upstream, BREAKS, policy=FAIL, timeout_ms=500, memory_mb=16) as proxy:
        for how in ("loop", "later", "never"):
            response, answer = await ask(http, proxy, x_how=how)
            assert response.status == 500
            assert "own.js: request.intercept_before took longer than 500 ms" in answer["error"]["message"], how
            assert (await ask(http, proxy))[0].status == 200
        # Calls that wait behind one that hangs are not lost with it.
        hanging = asyncio.create_task(ask(http, proxy, x_how="loop"))
        others = [asyncio.create_task(ask(http, proxy)) for _ in range(4)]
        assert [(await other)[0].status for other in others] == [200] * 4
        assert (await hanging)[0].status == 500
        (status,) = [status for status in proxy.proxy.registry.statuses() if status.id == "js-handler"]
        assert (status.state, status.restarts) == ("ready", 0)


async def test_a_script_that_uses_too_much_memory_is_stopped(tmp_path, upstream, http):
    async with scripted(tmp_path, upstream, BREAKS, policy=FAIL, timeout_ms=20_000, memory_mb=16) as proxy:
        response, answer = await ask(http, proxy, x_how="memory")
        assert response.status == 500 and "memory" in answer["error"]["message"]
        assert (await ask(http, proxy))[0].status == 200


VERSION = "function on_response(ctx) {{ return {{ body: {{ version: {} }} }}; }}\nfunction on_before_request() {{}}\n"


async def test_a_changed_file_counts_from_the_next_request_and_a_broken_one_changes_nothing(tmp_path, upstream, http):
    async with scripted(tmp_path, upstream, VERSION.format(1)) as proxy:
        assert (await ask(http, proxy))[1] == {"version": 1}
        write(tmp_path, VERSION.format(2))
        assert (await ask(http, proxy))[1] == {"version": 2}
        with capture_logs() as logs:
            write(tmp_path, "function on_response(ctx) {\n  return }}\n")
            assert [(await ask(http, proxy))[1] for _ in range(2)] == [{"version": 2}] * 2
            (proxy.config_file.parent / SCRIPT).unlink()
            assert (await ask(http, proxy))[1] == {"version": 2}
        write(tmp_path, VERSION.format(3))
        assert (await ask(http, proxy))[1] == {"version": 3}
    rejected = [entry["message"] for entry in logs if entry["event"] == "script.rejected"]
    assert rejected[0].startswith("own.js:2: SyntaxError") and rejected[1].endswith("there is no such file")
    assert len(rejected) == 2


SLOW = """let started = 0;
async function on_before_request(ctx) { ctx.state.version = %d; }
function on_response(ctx) { return { body: { began: ctx.state.version, ends: %d } }; }
"""


async def test_a_request_under_way_keeps_the_version_it_began_with(tmp_path, upstream, http):
    upstream.behave("m", Behaviour(text="one"), Behaviour(text="two"))
    async with scripted(tmp_path, upstream, SLOW % (1, 1)) as proxy:
        hold = asyncio.Event()
        handle = upstream.handle

        async def held(request):
            answer = await handle(request)
            if len(upstream.requests) == 1:
                await hold.wait()
            return answer

        upstream.handle = held
        first = asyncio.create_task(ask(http, proxy))
        await upstream.request(0)
        write(tmp_path, SLOW % (2, 2))
        second = asyncio.create_task(ask(http, proxy))
        await upstream.request(1)
        hold.set()
        assert (await second)[1] == {"began": 2, "ends": 2}
        assert (await first)[1] == {"began": 1, "ends": 1}


async def test_a_function_that_a_new_version_adds_is_called_after_a_reload(tmp_path, upstream, http):
    source = "function on_before_request() {}\n"
    async with scripted(tmp_path, upstream, source) as proxy:
        with capture_logs() as logs:
            write(tmp_path, VERSION.format(1))
            assert "version" not in (await ask(http, proxy))[1]
            await proxy.proxy.registry.reload("js-handler")
        assert (await ask(http, proxy))[1] == {"version": 1}
    (added,) = [entry for entry in logs if entry["event"] == "script.hooks_added"]
    assert "response.intercept_after" in added["missing"] and "plugins reload js-handler" in added["message"]


ESCAPES = """function on_before_request(ctx) {
  const tries = {
    require: () => require("fs"),
    process: () => process.env,
    timers: () => setTimeout(() => {}, 1),
    fetch: () => fetch("http://127.0.0.1/"),
    eval: () => eval("1"),
    own: () => new Function("return 1")(),
    outer: () => console.log.constructor("return process")(),
    given: () => URL.constructor.constructor("return process")(),
    ctx: () => ctx.constructor.constructor("return process")(),
    module: () => import("node:fs"),
  };
  const outcome = {};
  const told = [];
  for (const [name, attempt] of Object.entries(tries)) {
    try {
      const reached = () => { outcome[name] = "reached"; };
      told.push(Promise.resolve(attempt()).then(reached, (error) => { outcome[name] = error.name; }));
    } catch (error) {
      outcome[name] = error.name;
    }
  }
  console.warn("tried", tries.length ?? 10);
  return Promise.all(told).then(() => ({ terminate: { body: outcome } }));
}"""


async def test_a_script_has_no_way_out_of_its_context_that_everybody_knows(tmp_path, upstream, http):
    with capture_logs() as logs:
        async with scripted(tmp_path, upstream, ESCAPES) as proxy:
            response, outcome = await ask(http, proxy)
    assert response.status == 200
    assert outcome == {
        **dict.fromkeys(("require", "process", "timers", "fetch"), "ReferenceError"),
        **dict.fromkeys(("eval", "own", "outer", "given", "ctx"), "EvalError"),
        "module": "TypeError",
    }
    (said,) = [entry for entry in logs if entry["event"] == "script.says"]
    assert (said["message"], said["log_level"]) == ("tried 10", "warning")
    assert said["plugin_id"] == "js-handler" and said["request_id"] == response.headers["X-Request-Id"]


@pytest.mark.parametrize(
    ("source", "said"),
    [
        (None, "own.js: there is no such file"),
        ("function on_before_request( {}", "own.js:1: SyntaxError"),
        ("throw new Error('at the top');", "own.js:1:7: Error: at the top"),
        ("function on_request() {}", "none of on_before_request, on_after_auth_request"),
        ("for (;;);", "own.js: its top level took longer than 400 ms"),
    ],
    ids=["no-file", "syntax", "throws", "no-function", "loops"],
)
async def test_a_script_that_cannot_be_used_is_refused_with_the_reason(tmp_path, upstream, source, said):
    (tmp_path / "handlers").mkdir()
    if source is not None:
        write(tmp_path, source)
    config = config_text({"js-handler": {"script": SCRIPT}}, **acme(upstream, "m"))
    async with running_proxy(config, directory=tmp_path) as proxy:
        (status,) = [status for status in proxy.proxy.registry.statuses() if status.id == "js-handler"]
        assert status.state != "ready" and said in status.reason
