"""What a plugin process decodes is as immutable as what a plugin inside the host is shown."""

from collections.abc import Iterator
from typing import Any

import msgspec
import pytest

from pluginabi.immutable import FrozenDict
from pluginabi.methods import METHODS
from pluginapi import Body, CredentialHandle, ExecutorRequest, SchedulerPickRequest, StreamItem
from pluginapi.freezing import frozen


def containers(value: Any) -> Iterator[Any]:
    """Every container inside `value`."""
    if isinstance(value, msgspec.Struct):
        for name in value.__struct_fields__:
            yield from containers(getattr(value, name))
    elif isinstance(value, dict):
        yield value
        for member in value.values():
            yield from containers(member)
    elif isinstance(value, (list, tuple)):
        yield value
        for element in value:
            yield from containers(element)


def tuples_of(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: tuples_of(member) for key, member in value.items()}
    return tuple(tuples_of(member) for member in value) if isinstance(value, list) else value


def test_every_container_of_a_decoded_request_is_immutable():
    document = {
        "headers": {"accept": ["a", "b"]},
        "metadata": {"deep": [{"x": [1, {"y": []}]}]},
        "body_parts": {"/tools": [{"type": "function"}]},
        "candidates": [{"id": "c", "attributes": {"a": "1"}, "metadata": {"m": [1]}}],
    }
    request = frozen(msgspec.json.decode(msgspec.json.encode(document), type=SchedulerPickRequest))
    found = list(containers(request))
    assert {type(container) for container in found} == {FrozenDict, tuple}
    assert {name: value for name, value in msgspec.to_builtins(request).items() if value} == tuples_of(document)
    assert request.headers["accept"] == ("a", "b")
    with pytest.raises(TypeError, match="immutable"):
        request.metadata["deep"][0]["x"] = 2


def test_nested_structs_keep_what_they_hold():
    request = ExecutorRequest(
        credential=CredentialHandle(handle="h", provider="p", attributes={"a": "1"}), body=Body(text="b")
    )
    decoded = msgspec.json.decode(msgspec.json.encode(request), type=ExecutorRequest)
    assert frozen(decoded) == request
    assert type(decoded.credential.attributes) is FrozenDict


@pytest.mark.parametrize("method", sorted(METHODS))
def test_a_request_without_content_freezes_to_itself(method):
    spec = METHODS[method]
    required = {field.name for field in msgspec.structs.fields(spec.request) if field.required}
    if not required:
        assert frozen(spec.request()) == spec.request()
    if not any(field.required for field in msgspec.structs.fields(spec.response)):
        assert frozen(spec.response()) == spec.response()


def test_items_are_left_as_they_are():
    item = StreamItem(body=Body(text="x"))
    assert frozen(item) is item
