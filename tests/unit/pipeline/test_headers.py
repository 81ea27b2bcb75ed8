"""Header deltas, and what of an upstream's headers a client gets."""

import pytest

from host.pipeline.headers import apply_delta, client_headers, filtered
from pluginabi.immutable import EMPTY_HEADERS, freeze_headers


def headers(**named: str):
    return freeze_headers((name.replace("_", "-"), value) for name, value in named.items())


def test_I44_cleared_names_go_first_and_replaced_ones_stay():
    before = headers(x_old="1", x_keep="2")
    after, ignored = apply_delta(before, clear=["X-Old"], replace={"X-New": ["1"]}, may_see_secrets=False)
    assert (dict(after), ignored) == ({"x-keep": ("2",), "x-new": ("1",)}, [])


def test_an_empty_list_clears_and_a_name_both_cleared_and_replaced_is_replaced():
    after, _ = apply_delta(
        headers(a="1", b="2"), clear=["b"], replace={"a": [], "b": ["3", "4"]}, may_see_secrets=False
    )
    assert dict(after) == {"b": ("3", "4")}


def test_I51_the_headers_that_plugins_saw_are_not_touched():
    before = headers(a="1")
    apply_delta(before, clear=["a"], replace={}, may_see_secrets=False)
    assert dict(before) == {"a": ("1",)}
    with pytest.raises(TypeError):
        before["b"] = ()  # type: ignore[index]


def test_hidden_names_are_left_alone_and_reported():
    before = headers(authorization="secret", x="1")
    after, ignored = apply_delta(
        before, clear=["Authorization"], replace={"X-Api-Key": ["mine"], "x": ["2"]}, may_see_secrets=False
    )
    assert dict(after) == {"authorization": ("secret",), "x": ("2",)}
    assert ignored == ["authorization", "x-api-key"]


def test_a_plugin_that_may_see_secrets_may_change_them():
    after, ignored = apply_delta(headers(cookie="c"), clear=["cookie"], replace={}, may_see_secrets=True)
    assert (dict(after), ignored) == ({}, [])


def test_no_delta_keeps_the_very_object():
    before = headers(a="1")
    assert apply_delta(before, clear=[], replace={}, may_see_secrets=False)[0] is before


UPSTREAM = headers(x_up="1", connection="close, X-Hop", x_hop="1", set_cookie="s", x_litellm_a="1", x_request_id="u")


def test_with_passthrough_the_upstreams_headers_pass_the_filter():
    assert dict(client_headers(UPSTREAM, UPSTREAM, passthrough=True)) == {
        "x-up": ("1",),
        "x-upstream-request-id": ("u",),
    }


def test_without_passthrough_nothing_of_the_upstream_is_shown():
    assert client_headers(UPSTREAM, UPSTREAM, passthrough=False) is EMPTY_HEADERS


def test_IN_13_without_passthrough_only_what_interceptors_changed_is_shown():
    after, _ = apply_delta(UPSTREAM, clear=["x-up"], replace={"X-Plugin": ["1"]}, may_see_secrets=True)
    assert dict(client_headers(UPSTREAM, after, passthrough=False)) == {"x-plugin": ("1",)}


@pytest.mark.parametrize(
    "name",
    [
        "connection",
        "keep-alive",
        "proxy-authenticate",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
        "set-cookie",
        "content-length",
        "content-encoding",
        "helicone-x",
        "x-portkey-x",
        "cf-aig-x",
        "x-kong-x",
        "x-bt-x",
        "access-control-allow-origin",
    ],
)
def test_a_header_of_the_connection_or_of_another_gateway_is_never_forwarded(name):
    assert filtered(freeze_headers([(name, "1")])) is EMPTY_HEADERS


def test_a_forwarded_header_keeps_all_its_values():
    assert filtered(freeze_headers([("A", "1"), ("a", "2")]))["a"] == ("1", "2")
