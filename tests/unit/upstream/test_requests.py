"""URLs, proxy settings and request heads, without a network."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from host.upstream import InvalidRequest, UpstreamRequest, parse_proxy
from host.upstream.encode import FieldNames, encode_head
from host.upstream.origin import parse_origin, split_url


@pytest.mark.parametrize(
    ("url", "base", "target"),
    [
        ("http://h", "http://h", "/"),
        ("http://h/", "http://h", "/"),
        ("https://h/v1/x?a=b/c&d", "https://h", "/v1/x?a=b/c&d"),
        ("https://h?a=/b", "https://h", "/?a=/b"),
        ("https://h:8443/x#y", "https://h:8443", "/x"),
        ("https://h#y/z", "https://h", "/"),
        ("http://[::1]:80/x", "http://[::1]:80", "/x"),
        ("https://h//double", "https://h", "//double"),
    ],
)
def test_a_url_is_split_into_origin_and_request_target(url: str, base: str, target: str) -> None:
    assert split_url(url) == (base, target)


@pytest.mark.parametrize(
    ("base", "host", "port", "host_field"),
    [
        ("http://H.example", "h.example", 80, "h.example"),
        ("https://h.example:443", "h.example", 443, "h.example"),
        ("https://h.example:8443", "h.example", 8443, "h.example:8443"),
        ("http://h.example:443", "h.example", 443, "h.example:443"),
        ("http://[2001:DB8::1]:81", "2001:db8::1", 81, "[2001:db8::1]:81"),
    ],
)
def test_an_origin_has_a_canonical_host_field(base: str, host: str, port: int, host_field: str) -> None:
    origin = parse_origin(base, None)
    assert (origin.host, origin.port) == (host, port)
    assert origin.request_line_end == f" HTTP/1.1\r\nHost: {host_field}\r\n"


@pytest.mark.parametrize(
    "url",
    [
        "",
        "h/x",
        "ftp://h/",
        "http://",
        "http:///x",
        "http:h",
        "http://u:p@h/",
        "http://h:99999/",
        "http://h:x/",
        "//h/x",
    ],
)
def test_a_url_that_is_not_an_absolute_http_url_is_refused(url: str) -> None:
    with pytest.raises(InvalidRequest):
        base, _ = split_url(url)
        parse_origin(base, None)


def test_a_proxy_setting_is_taken_apart_and_its_label_shows_no_secret() -> None:
    proxy = parse_proxy("socks5h://us%40er:p%3Ass@Proxy.example:1081")
    assert proxy is not None
    assert (proxy.scheme, proxy.host, proxy.port) == ("socks5h", "proxy.example", 1081)
    assert (proxy.username, proxy.password) == ("us@er", "p:ss")
    assert proxy.label == "socks5h://proxy.example:1081"


@pytest.mark.parametrize(("url", "port"), [("http://p", 80), ("https://p", 443), ("socks5://p", 1080)])
def test_a_proxy_without_port_has_the_usual_one(url: str, port: int) -> None:
    proxy = parse_proxy(url)
    assert proxy is not None
    assert proxy.port == port


def head_of(**parts: object) -> bytes:
    request = UpstreamRequest(**{"method": "POST", "url": "http://h/x", **parts})  # type: ignore[arg-type]
    return encode_head(request, parse_origin("http://h", None), "/x", FieldNames())


@pytest.mark.parametrize(
    "name",
    [
        "Host",
        "content-length",
        "Transfer-Encoding",
        "CONNECTION",
        "Keep-Alive",
        "Upgrade",
        "TE",
        "Trailer",
        "Expect",
        "Proxy-Authorization",
        "Proxy-Connection",
    ],
)
def test_fields_the_client_owns_are_left_out(name: str) -> None:
    head = head_of(headers=[(name, "evil"), ("X-A", "1")], body=b"xy")
    assert head == b"POST /x HTTP/1.1\r\nHost: h\r\nX-A: 1\r\nContent-Length: 2\r\n\r\n"


def test_a_body_less_post_says_so_and_a_body_less_get_says_nothing() -> None:
    assert head_of() == b"POST /x HTTP/1.1\r\nHost: h\r\nContent-Length: 0\r\n\r\n"
    assert head_of(method="GET") == b"GET /x HTTP/1.1\r\nHost: h\r\n\r\n"
    assert head_of(method="DELETE", body=b"x") == b"DELETE /x HTTP/1.1\r\nHost: h\r\nContent-Length: 1\r\n\r\n"


@given(st.lists(st.tuples(st.text(max_size=8), st.text(max_size=20)), max_size=5))
def test_a_head_is_refused_or_has_exactly_the_lines_it_was_given(headers: list[tuple[str, str]]) -> None:
    try:
        head = head_of(headers=headers)
    except InvalidRequest:
        return
    lines = head.split(b"\r\n")
    kept = [(name, value) for name, value in headers if name.lower() not in ("te", "host", "upgrade", "expect")]
    assert lines[2:-3] == [f"{name}: {value}".encode("latin-1") for name, value in kept]
    assert head.count(b"\n") == head.count(b"\r") == len(lines) - 1


def test_the_cache_of_checked_names_is_bounded() -> None:
    names = FieldNames()
    for number in range(5000):
        assert names[f"X-Name-{number}"] == f"X-Name-{number}"
    assert len(names) <= 1024
