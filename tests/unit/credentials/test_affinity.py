"""Which session a request belongs to."""

import json

import pytest

from host.credentials.affinity import session_of
from host.credentials.provenance import made_by_answer, made_by_event, references_in

UUID = "ac980658-63bd-4fb3-97ba-8da64cb1e344"
BOTH, USER_ONLY = "msg:6e5bcd8224bc957a", "msg:2f68951593d97234"
CLAUDE_USER = f"user_1_account__session_{UUID}"


def session(body: object = None, **headers: str):
    folded = {name.replace("__", "-"): (value,) for name, value in headers.items()}
    return session_of(folded, lambda: json.dumps(body or {}).encode())


def name(body: object = None, **headers: str) -> str | None:
    found = session(body, **headers)
    return found.name if found is not None else None


def user(value: object) -> dict:
    return {"metadata": {"user_id": value}}


def messages(*texts: str) -> dict:
    roles = {"s": "system", "u": "user", "a": "assistant"}
    return {"messages": [{"role": roles[text[0]], "content": text[2:]} for text in texts]}


@pytest.mark.parametrize(
    ("vector", "body", "headers", "expected"),
    [
        ("E1", user(CLAUDE_USER), {}, f"claude:{UUID}"),
        ("E2", user('{"device_id":"d","session_id":"e26d"}'), {}, "claude:e26d"),
        ("E3", user('{"device_id":"d"}'), {}, 'user:{"device_id":"d"}'),
        ("E4", user("user_abc123"), {}, "user:user_abc123"),
        ("E6", None, {"x__session__id": "s"}, "header:s"),
        ("E7", None, {"session_id": "c", "x__client__request__id": "r"}, "codex:c"),
        ("E8", user(CLAUDE_USER), {"x__session__id": "s"}, f"claude:{UUID}"),
        ("E9", messages("s You are helpful", "u hi"), {}, BOTH),
        ("E11", messages("u hi"), {}, USER_ONLY),
        ("E12", {"model": "x"}, {}, None),
        ("12.6", user(CLAUDE_USER), {"x__claude__code__session__id": "s"}, "claude:s"),
        ("12.6", {"session_id": "b"}, {"x__session__affinity": "a"}, "affinity:a"),
        ("12.6", {"sessionId": "b", "prompt_cache_key": "p"}, {}, "session:b"),
        ("12.6", {"prompt_cache_key": "p", "conversation_id": "c"}, {}, "pck:p"),
        ("12.6", {"conversation": {"id": "c"}, **user("u")}, {}, "conv:c"),
        ("12.6", {"conversation_id": "c", **user("u")}, {}, "user:u"),
        ("text", {"system": [{"type": "text", "text": "You are helpful"}], **messages("u hi")}, {}, BOTH),
        ("text", {"contents": [{"role": "user", "parts": [{"text": "hi"}]}]}, {}, USER_ONLY),
        ("text", {"instructions": "You are helpful", "input": "hi"}, {}, BOTH),
        ("text", {"input": [{"type": "reasoning"}, {"role": "user", "content": [{"text": "hi"}]}]}, {}, USER_ONLY),
        ("bounds", {"session_id": "x" * 600}, {"x__session__id": "a\x01b"}, None),
    ],
)  # fmt: skip
def test_a_session_is_known_by_the_first_thing_that_tells_it_apart(vector, body, headers, expected):
    assert name(body, **headers) == expected


def test_E17_with_an_answer_in_it_a_conversation_is_also_known_by_what_came_before():
    first, second = messages("s sys", "u hi"), messages("s sys", "u hi", "a hello", "u more")
    found = session(second)
    assert found is not None
    assert (found.fallback, found.name != found.fallback) == (name(first), True)


def test_a_header_decides_without_a_look_at_the_body():
    def never() -> bytes:
        raise AssertionError("the body was read")

    assert session_of({"x-claude-code-session-id": ("s",)}, never) is not None


def test_the_key_of_a_session_differs_by_caller_and_model():
    found = session({"session_id": "s"})
    assert found is not None
    assert len({found.key(found.name, *parts) for parts in (("a", "m"), ("b", "m"), ("a", "n"))}) == 3


@pytest.mark.parametrize("body", [b"", b"[1]", b"{", b'{"input":{"a":1}}', b'{"messages":[1,"x"]}'])
def test_what_is_no_usable_body_has_no_session(body):
    assert session_of({}, lambda: body) is None


ANSWER = {"id": "resp_1", "output": [{"type": "reasoning", "id": "rs_1", "encrypted_content": "gAAA"}, {"id": "msg_1"}]}


def references(body: dict) -> list[str]:
    return references_in(json.dumps(body).encode())


@pytest.mark.parametrize(
    "request_body",
    [
        {"previous_response_id": "resp_1"},
        {"input": [{"role": "user"}, {"type": "reasoning", "id": "other", "encrypted_content": "gAAA"}]},
    ],
)
def test_what_an_answer_made_is_recognised_in_a_later_request(request_body):
    made = made_by_answer(json.dumps(ANSWER).encode())
    assert set(references(request_body)) & set(made)
    event = json.dumps({"type": "response.completed", "response": ANSWER}).encode()
    assert made_by_event(event) == made


def test_items_and_conversations_that_are_stored_upstream_are_recognised_too():
    answer = {"id": "r", "conversation": {"id": "conv_1"}, "output": [{"type": "reasoning", "id": "rs_9"}]}
    made = made_by_answer(json.dumps(answer).encode())
    for body in ({"conversation": "conv_1"}, {"input": [{"type": "item_reference", "id": "rs_9"}]}):
        assert set(references(body)) & set(made)


def test_the_latest_reference_comes_first_and_a_request_that_stands_alone_has_none():
    old, new = {"encrypted_content": "old"}, {"encrypted_content": "new"}
    assert references({"input": [old, new]}) == references({"input": [new]}) + references({"input": [old]})
    assert references({"input": "hi"}) == []
    assert references_in(b'"encrypted_content" but no JSON') == []


def everything(value: str) -> tuple[dict[str, str], dict]:
    """Headers and a body in which every source of a session says something."""
    names = ("x-claude-code-session-id", "session-id", "session_id", "x-session-id", "x-session-affinity")
    headers = dict.fromkeys([*names, "x-client-request-id"], value)
    body = {
        "metadata": {"user_id": value},
        "session_id": value,
        "sessionId": value,
        "prompt_cache_key": value,
        "conversation": {"id": value},
        "conversation_id": value,
    }
    return headers, body


def found_in(headers: dict[str, str], body: dict, execution: str = "") -> list[str]:
    """The sources in the order in which they count: each is taken away when it was found."""
    headers, body, order = dict(headers), dict(body), []
    texts = {"messages": [{"role": "user", "content": "hi"}]}
    while True:
        raw = json.dumps(body | texts).encode()
        given = {name: (value,) for name, value in headers.items()}
        found = session_of(given, lambda raw=raw: raw, execution=execution)
        assert found is not None
        order.append(f"{found.source} {found.name.partition(':')[0]}")
        if found.source == "messages":
            return order
        if found.source == "execution":
            execution = ""
        if headers.pop(found.source, None) is None:
            body.pop(found.source.partition(".")[0], None)


def test_the_sources_of_a_session_count_in_the_order_in_which_they_are_documented():
    headers, body = everything("v")
    assert found_in(headers, body, execution="e") == [
        "x-claude-code-session-id claude", "session-id codex", "session_id codex", "x-session-id header",
        "x-session-affinity affinity", "x-client-request-id clientreq", "session_id session", "sessionId session",
        "prompt_cache_key pck", "conversation conv", "metadata.user_id user", "conversation_id conv",
        "execution execution", "messages msg",
    ]  # fmt: skip
    claude = {**body, "metadata": {"user_id": CLAUDE_USER}}
    assert found_in(headers, claude)[:2] == ["x-claude-code-session-id claude", "metadata.user_id claude"]


@pytest.mark.parametrize("value", ["", "  ", "a\x00b", "a\nb", "a\u202eb", "a\x7fb", "x" * 513, "é" * 513])
def test_a_value_that_is_empty_endless_or_cannot_be_printed_names_nothing(value):
    headers, body = everything(value)
    assert found_in(headers, body, execution=value) == ["messages msg"]


def test_a_long_body_is_not_decoded_for_a_session_that_a_header_names():
    body = b'{"messages": [this would be refused'
    assert session_of({"x-session-id": ("s",)}, lambda: body).name == "header:s"
    named = json.dumps({"metadata": {"user_id": CLAUDE_USER}}).encode()
    assert session_of({"x-session-id": ("s",)}, lambda: named).name == f"claude:{UUID}"
