"""Whatever an upstream answers, and however it is spelled or cut: the model's name changes, and nothing else does."""

import json
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from host.pipeline.shown_model import ShownModel
from pluginapi.protocols.sse import SseParser

LEAVES = st.none() | st.integers() | st.text(max_size=8) | st.sampled_from(['"model":"x"', "\\", "{", "[", "]", "}"])
NAMES = st.sampled_from(["model", "modelVersion", "response", "message", '\\"model', "é"]) | st.text(max_size=3)
DOCUMENTS = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=4), max_leaves=10
)
OBJECTS = st.dictionaries(NAMES, DOCUMENTS, max_size=4)
STYLES: list[dict[str, Any]] = [
    {},
    {"indent": 2},
    {"separators": (",", ":"), "ensure_ascii": False},
    {"separators": (" ,\t", " :\n ")},
]


def shown(document: Any, *, depth: int = 0) -> Any:
    if not isinstance(document, dict):
        return document
    changed = {}
    for name, value in document.items():
        if name in ("model", "modelVersion") and isinstance(value, str):
            value = "fast"
        elif not depth and name in ("response", "message"):
            value = shown(value, depth=1)
        changed[name] = value
    return changed


@settings(max_examples=150, deadline=None)
@given(DOCUMENTS | OBJECTS, st.sampled_from(STYLES))
def test_of_any_document_only_the_names_of_models_change(document, style):
    data = json.dumps(document, **style).encode()
    assert json.loads(ShownModel("fast").document(data)) == shown(document)


@settings(max_examples=100, deadline=None)
@given(st.lists(OBJECTS, max_size=3), st.sampled_from(STYLES), st.lists(st.integers(1, 20), max_size=30))
def test_an_array_in_any_pieces_is_the_same_array_with_other_names(documents, style, sizes):
    data, at, pieces = json.dumps(documents, **style).encode(), 0, []
    writer = ShownModel("fast", is_array=True)
    for size in sizes:
        pieces.append(writer.raw(data[at : at + size]))
        at += size
    pieces.append(writer.raw(data[at:]))
    assert json.loads(b"".join(pieces)) == [shown(it) for it in documents]


@settings(max_examples=100, deadline=None)
@given(st.lists(OBJECTS, min_size=1, max_size=3), st.sampled_from(STYLES), st.sampled_from(["\n", "\r\n", "\r"]))
def test_events_of_any_spelling_keep_their_order_and_their_borders(documents, style, end):
    frames = "".join(
        "".join(f"data: {line}{end}" for line in json.dumps(it, **style).split("\n")) + end for it in documents
    )
    events = SseParser().feed(ShownModel("fast").raw(frames.encode()))
    assert [json.loads(event.data) for event in events] == [shown(it) for it in documents]
