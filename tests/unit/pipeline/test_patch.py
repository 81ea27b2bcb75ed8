"""Patches and single members: only what was named changes, everything else keeps its bytes."""

import json

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from host.pipeline.patch import apply_patch, is_object, model_of, set_member
from pluginabi.errors import PluginError

SCALARS = st.none() | st.booleans() | st.integers(-(10**6), 10**6) | st.text(max_size=8)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)
OBJECTS = st.dictionaries(st.text(max_size=4), VALUES, max_size=5)


def merged(target, patch):
    """RFC 7396, section 2, written down naively."""
    if not isinstance(patch, dict):
        return patch
    result = dict(target) if isinstance(target, dict) else {}
    for name, value in patch.items():
        if value is None:
            result.pop(name, None)
        else:
            result[name] = merged(result.get(name), value)
    return result


@given(OBJECTS, OBJECTS, st.sampled_from([None, 2]))
def test_a_patch_gives_what_rfc_7396_says(target, patch, indent):
    body = json.dumps(target, indent=indent).encode()
    assert json.loads(apply_patch(body, json.dumps(patch).encode())) == merged(target, patch)


@given(OBJECTS, OBJECTS, st.booleans())
def test_members_that_a_patch_does_not_name_keep_their_bytes(target, patch, ascii_only):
    body = json.dumps(target, indent=1, ensure_ascii=ascii_only).encode()
    patched = apply_patch(body, json.dumps(patch).encode())
    for name, value in target.items():
        if name not in patch:
            kept = json.dumps({name: value}, indent=1, ensure_ascii=ascii_only).encode()[2:-2].strip()
            assert kept in patched


@pytest.mark.parametrize(
    ("body", "patch", "expected"),
    [
        (b'{"a":1.0e2, "b" : "\\u00e4", "c":[1 ,2]}', b'{"b":null}', b'{"a":1.0e2,"c":[1 ,2]}'),
        (b'{"a":1.0e2}', b'{"z":{"x":null,"y":1}}', b'{"a":1.0e2,"z":{"y":1}}'),
        (b'{"a":{"keep":1.50,"go":2}}', b'{"a":{"go":null}}', b'{"a":{"keep":1.50}}'),
        (b'{"a":[1]}', b'{"a":{"b":2}}', b'{"a":{"b":2}}'),
        (b' {\n "a" : 1 } ', b'{"b":2}', b'{"a" : 1,"b":2}'),
        (b"{}", b'{"a":12345678901234567890}', b'{"a":12345678901234567890}'),
        (b'{"\\u0061":1,"b":2}', b'{"a":3}', b'{"\\u0061":3,"b":2}'),
        (b'{"a":"}","b":{"c":"\\""}}', b'{"b":null}', b'{"a":"}"}'),
    ],
)
def test_a_patch_touches_only_its_members(body, patch, expected):
    assert apply_patch(body, patch) == expected


@pytest.mark.parametrize("patch", [b"{}", b'{"gone":null}', b'{"a":1}', b'{"b":{"c":2}}'])
def test_a_patch_that_changes_nothing_returns_the_very_body(patch):
    body = b'{"a":1,"b":{"c":2}}'
    assert apply_patch(body, patch) is body


@pytest.mark.parametrize(
    ("body", "patch"), [(b"[1]", b"{}"), (b"", b"{}"), (b"{}", b"[]"), (b"{}", b"1"), (b"{}", b"{")]
)
def test_a_patch_is_an_object_on_an_object(body, patch):
    with pytest.raises(PluginError) as refused:
        apply_patch(body, patch)
    assert (refused.value.code, refused.value.http_status) == ("patch_not_applicable", 500)


def test_a_name_that_occurs_twice_is_written_once_with_its_last_value():
    assert apply_patch(b'{"a":1,"a":12,"b":2}', b'{"b":3}') == b'{"a":12,"b":3}'
    assert apply_patch(b'{"a":12,"a":1}', b'{"b":3}') == b'{"a":1,"b":3}'


def test_a_patch_nested_beyond_reason_is_refused():
    deep = b'{"a":' * 3000 + b"1" + b"}" * 3000
    with pytest.raises(PluginError):
        apply_patch(b"{}", b'{"x":null,"a":' + deep + b"}")


@given(OBJECTS, st.text(max_size=6), VALUES)
def test_setting_a_member_sets_that_member_only(target, name, value):
    body = json.dumps(target).encode()
    changed = json.loads(set_member(body, name, msgspec.json.encode(value)))
    expected = merged(target, {name: value}) if isinstance(value, dict) or value is None else {**target, name: value}
    assert changed == expected


@pytest.mark.parametrize(
    ("body", "model"), [(b'{"model":"m"}', "m"), (b'{"model":1}', None), (b"{}", None), (b"[]", None), (b"", None)]
)
def test_the_model_of_a_body(body, model):
    assert model_of(body) == model


def test_an_object_is_recognised_behind_white_space():
    assert is_object(b" \n{}")
    assert not is_object(b"[]")
