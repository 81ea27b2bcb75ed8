"""Texts of plugins are harmless in a page that inserts them."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from host.management.escape import escape_json, escape_text, escape_values, looks_like_json


def test_M112_a_json_answer_is_escaped_and_a_page_is_not() -> None:
    assert escape_json(b'{"t":"<b>"}') == b'{"t":"&lt;b&gt;"}'
    assert looks_like_json("", b' {"t":"<b>"}') and looks_like_json("application/json; charset=utf-8", b"x")
    assert looks_like_json("application/problem+json", b"")
    assert not looks_like_json("text/html", b"<p>")
    assert escape_json(b"<p>'hi'</p>") == b"<p>'hi'</p>"


@pytest.mark.parametrize(
    ("body", "escaped"),
    [
        (b'{"<k>": 1.50, "a": 10000000000000000000000}', b'{"<k>": 1.50, "a": 10000000000000000000000}'),
        (b'["it\'s", "\\"q\\"", "a&b"]', b'["it&#39;s", "&#34;q&#34;", "a&amp;b"]'),
        (b'{"t": "\\u003cscript\\u003e"}', b'{"t": "&lt;script&gt;"}'),
        (b'{"t": "<"} {"t": "<"}', b'{"t": "<"} {"t": "<"}'),
        (b'{"t": "<"', b'{"t": "<"'),
        (b'"<"', b'"&lt;"'),
        (b'{"a\\":": "<", "b" : "\\n<"}', b'{"a\\":": "&lt;", "b" : "\\n&lt;"}'),
    ],
)
def test_only_values_change_and_what_is_no_document_stays(body: bytes, escaped: bytes) -> None:
    assert escape_json(body) == escaped


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@given(JSON, st.booleans())
def test_a_document_is_escaped_as_its_values_are(value: object, ascii_only: bool) -> None:
    body = json.dumps(value, ensure_ascii=ascii_only).encode("utf-8", "surrogatepass")
    try:
        body.decode("utf-8")
    except UnicodeDecodeError:
        return
    assert json.loads(escape_json(body)) == escape_values(value)


def test_the_five_characters() -> None:
    assert escape_text("<a href='x'>\"&\"</a>") == "&lt;a href=&#39;x&#39;&gt;&#34;&amp;&#34;&lt;/a&gt;"
