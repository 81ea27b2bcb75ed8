"""From a method and a path to an endpoint."""

import pytest

from host.management.calls import ManagementError
from host.management.table import Endpoint, Table


async def handler(call: object) -> None: ...


def table(*rows: tuple[str, str]) -> Table:
    return Table(Endpoint(method, path, handler) for method, path in rows)  # type: ignore[arg-type]


def test_a_template_names_its_segments_and_a_literal_one_wins() -> None:
    found = table(("GET", "/plugins/{id}"), ("GET", "/plugins/all")).find("GET", ["plugins", "all"])
    assert found is not None and found.endpoint.path == "/plugins/all"
    found = table(("GET", "/plugins/{id}/config")).find("GET", ["plugins", "a", "config"])
    assert found is not None and found.params == {"id": "a"}


@pytest.mark.parametrize("segments", [["plugins"], ["plugins", ""], ["plugins", "a", "b"], [""]])
def test_what_fits_no_template_is_nothing(segments: list[str]) -> None:
    assert table(("GET", "/plugins/{id}")).find("GET", segments) is None


def test_another_method_is_405_with_those_there_are() -> None:
    with pytest.raises(ManagementError) as caught:
        table(("GET", "/plugins/{id}"), ("DELETE", "/plugins/{id}")).find("POST", ["plugins", "a"])
    assert (caught.value.status, caught.value.headers) == (405, {"Allow": "DELETE, GET"})


def test_head_is_served_by_get() -> None:
    assert table(("GET", "/plugins")).find("HEAD", ["plugins"]) is not None


def test_the_same_endpoint_twice_is_a_mistake() -> None:
    with pytest.raises(ValueError, match="two endpoints GET /a"):
        table(("GET", "/a"), ("GET", "/a/"))


def test_reading_is_no_write() -> None:
    assert [Endpoint(method, "/", handler).writes for method in ("GET", "PUT")] == [False, True]  # type: ignore[arg-type]
