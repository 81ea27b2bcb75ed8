"""What a plugin gets to see."""

import pytest
from msgspec import UNSET

from host.runtime.handle import Inputs
from host.runtime.projection import body_parts, parse_inputs, select_body, visible_headers, visible_query
from pluginabi.body import Body
from pluginabi.immutable import freeze_headers

BODY = b'{"tools":[{"a":1}],"messages":[{"role":"user"},{"role":"assistant"}],"a/b":{"~":2},"":3,"n":null}'


def test_every_word_of_inputs_is_understood():
    words = ["body", "body:/tools", "body:/messages/-1", "body:/tools", "client_body", "request_body", "history"]
    assert parse_inputs(words) == Inputs(
        body=True,
        body_pointers=("/tools", "/messages/-1"),
        client_body=True,
        request_body=True,
        history=True,
    )


def test_exact_bodies_are_bodies():
    assert parse_inputs(["body:exact"]) == Inputs(body=True, body_exact=True)


def test_an_empty_list_is_nothing():
    assert parse_inputs([]) == Inputs()


@pytest.mark.parametrize("word", ["headers", "body:tools", "body:", "body:/a~2", "Body", ""])
def test_an_unknown_word_is_refused(word: str):
    with pytest.raises(ValueError, match=r"is no (input|JSON pointer)"):
        parse_inputs([word])


@pytest.mark.parametrize(
    ("pointer", "value"),
    [
        ("/tools", ({"a": 1},)),
        ("/messages/0/role", "user"),
        ("/messages/-1/role", "assistant"),
        ("/messages/-2/role", "user"),
        ("/a~1b/~0", 2),
        ("/", 3),
        ("/n", None),
    ],
)
def test_a_pointer_selects_the_plain_value_there(pointer: str, value: object):
    assert body_parts((pointer,), BODY) == {pointer: value}


@pytest.mark.parametrize(
    "pointer", ["/none", "/messages/2", "/messages/-3", "/messages/00", "/tools/a", "/n/x", "/messages/-0"]
)
def test_there_is_no_key_where_nothing_is(pointer: str):
    assert body_parts((pointer,), BODY) == {}


@pytest.mark.parametrize("data", [b"", b"not json", b"[1,", b'"\xff"'])
def test_a_body_that_is_no_json_has_no_parts(data: bytes):
    assert body_parts(("/a",), data) == {}


def test_parts_are_deeply_immutable():
    parts = body_parts(("/tools",), Body.from_bytes(BODY))
    with pytest.raises(TypeError):
        parts["/tools"][0]["a"] = 2
    with pytest.raises(TypeError):
        parts["/x"] = 1  # type: ignore[index]


HEADERS = freeze_headers(
    [("Authorization", "Bearer x"), ("Cookie", "c"), ("X-Api-Key", "k"), ("X-Goog-Api-Key", "g"), ("X-Other", "o")]
)
QUERY = freeze_headers([("key", "k"), ("auth_token", "t"), ("alt", "sse")])


def test_client_secrets_are_hidden_from_everybody():
    assert visible_headers(HEADERS, False) == {"x-other": ("o",)}
    assert visible_query(QUERY, False) == {"alt": ("sse",)}


def test_client_secrets_are_shown_with_the_permission():
    assert visible_headers(HEADERS, True) is HEADERS
    assert visible_query(QUERY, True) is QUERY


def test_headers_without_secrets_are_not_copied():
    harmless = freeze_headers([("accept", "*/*")])
    assert visible_headers(harmless, False) is harmless
    assert visible_query(harmless, False) is harmless


def test_a_body_is_shown_only_on_request_and_exact_only_when_asked_for():
    body = Body.from_bytes(b'{"a": 1}')
    assert select_body(Inputs(), body) is UNSET
    assert select_body(Inputs(body=True), body) is body
    assert select_body(Inputs(body=True, body_exact=True), body) == Body.exact(b'{"a": 1}')
