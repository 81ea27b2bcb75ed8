"""Which paths a plugin may have."""

import pytest

from host.management.paths import resource_path, route_method, route_path

REFUSED = ["../x", "a/../b", "a:b", "a/*", "", "/", " ", "a b", "a\tb", "a//b", "./a", "a?b", "a#b", "a%2e", "x" * 600]


@pytest.mark.parametrize("path", REFUSED)
def test_M113_a_path_that_climbs_or_holds_a_pattern_is_refused(path: str) -> None:
    assert route_path(path) is None
    assert resource_path("p", path) is None


@pytest.mark.parametrize("path", ["a/b", "/a/b", "/a/b/", " a/b ", "/v0/management/a/b"])
def test_a_route_may_be_given_with_the_base_or_without(path: str) -> None:
    assert route_path(path) == "/v0/management/a/b"


def test_the_base_alone_is_no_route() -> None:
    assert route_path("/v0/management") is None
    assert route_path("/v0/managementx") == "/v0/management/v0/managementx"


@pytest.mark.parametrize("path", ["status", "/status", "/v0/resource/plugins/p/status", "/plugins/p/status"])
def test_a_resource_may_be_given_in_three_spellings(path: str) -> None:
    assert resource_path("p", path) == "/v0/resource/plugins/p/status"


def test_a_resource_never_leaves_its_plugin() -> None:
    assert resource_path("p", "/v0/resource/plugins/q/x") == "/v0/resource/plugins/p/v0/resource/plugins/q/x"


@pytest.mark.parametrize(("given", "method"), [("", "GET"), ("post", "POST"), ("GET POST", None), ("G\n", None)])
def test_a_method_is_upper_cased_and_get_by_default(given: str, method: str | None) -> None:
    assert route_method(given) == method
