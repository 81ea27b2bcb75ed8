"""What a recording never holds."""

import msgspec
import pytest

from host.recording.redact import Redactor


def redacted(value, **options):
    redactor = Redactor(**options)
    return redactor.plain(msgspec.json.encode(value)), redactor.masked


def body(value):
    return {"body": {"json": value}}


@pytest.mark.parametrize(
    "name", ["authorization", "x-api-key", "cookie", "X-Amz-Signature", "x-goog-api-key", "key", "auth_token"]
)
def test_values_of_headers_and_queries_that_authorise_go(name):
    for field in ("headers", "request_headers", "query"):
        value, masked = redacted({field: {name: ["Secret-1", "Secret-2"], "x-session-id": ["s1"]}})
        assert value == {field: {name: ["[redacted]", "[redacted]"], "x-session-id": ["s1"]}} and masked == 2


def test_credential_handles_become_the_same_placeholder_throughout():
    redactor = Redactor()
    seen = [
        redactor.plain(msgspec.json.encode(value))
        for value in (
            {"credential": {"handle": "h-9f3", "provider": "acme", "storage": {"token": "x"}}},
            {"credential": "h-1aa", "url": "https://a/b?model=m&key=abc&alt=sse#top"},
            {"credential": {"handle": "h-9f3", "provider": "acme"}},
        )
    ]
    assert seen[0] == {"credential": {"handle": "credential-1", "provider": "acme", "storage": "[redacted]"}}
    assert seen[1] == {"credential": "credential-2", "url": "https://a/b?model=m&key=[redacted]&alt=sse#top"}
    assert seen[2]["credential"]["handle"] == "credential-1"
    # A replay redacts what is redacted already.
    assert [redactor.plain(msgspec.json.encode(value)) for value in seen] == seen


def test_texts_stay_in_bodies_but_members_that_hold_secrets_and_keys_in_texts_go():
    said = {
        "messages": [{"role": "user", "content": "my key is sk-abcdefghijklmnop1234, Bearer abcdefgh12345678"}],
        "mcp": {"api_key": "abc", "headers": {"x": "y"}, "access_token": "t", "max_tokens": 5, "token": 7},
    }
    value, masked = redacted(body(said))
    (message,) = value["body"]["json"]["messages"]
    assert message == {"role": "user", "content": "my key is [redacted], Bearer [redacted]"}
    assert value["body"]["json"]["mcp"] == {
        "api_key": "[redacted]", "headers": {"x": "y"}, "access_token": "[redacted]", "max_tokens": 5, "token": 7,
    }  # fmt: skip
    assert masked == 3


def test_redacted_bodies_keep_their_shape():
    said = {"model": "m", "messages": [{"role": "user", "content": "hello"}], "tools": [{"name": "f"}], "n": 2}
    value, masked = redacted({**body(said), "body_parts": {"/user": "jane", "/model": "m"}}, bodies=True)
    assert value["body"]["json"] == {
        "model": "m",
        "messages": [{"role": "user", "content": "[redacted: 5 characters]"}],
        "tools": [{"name": "f"}],
        "n": 2,
    }
    assert value["body_parts"] == {"/user": "[redacted: 4 characters]", "/model": "m"} and masked == 2
    assert redacted({"raw": {"text": "data: x"}}, bodies=True)[0] == {"raw": {"text": "[redacted: 7 characters]"}}
    assert redacted({"raw": {"base64": "AAAA"}}, bodies=True)[0] == {"raw": {"base64": ""}}


def test_what_the_host_knows_to_be_secret_is_nowhere_in_a_line():
    redactor = Redactor(secrets=lambda: ("plain-secret", 'with "quotes"', "short"))
    line = redactor.line({"a": "x plain-secret y", "b": ['with "quotes"'], "c": "short"})
    assert msgspec.json.decode(line) == {"a": "x [secret] y", "b": ["[secret]"], "c": "short"}
