"""The response parser alone: the same answer for every way to cut the bytes, bounded whatever they are."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from host.upstream.model import ClientLimits
from host.upstream.parser import HeaderNames, ResponseParser

ANSWERS = [
    b"HTTP/1.1 200 OK\r\nContent-Length: 11\r\nX-A: b\r\n\r\nhello world",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n6;x=y\r\n world\r\n0\r\nT: v\r\n\r\n",
    b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 503 Busy\r\nContent-Length: 11\r\n\r\nhello world",
]
LIMITS = ClientLimits(max_head_bytes=500, max_trailer_bytes=200)


def parse(parts: list[bytes], *, limits: ClientLimits = LIMITS, head_only: bool = False) -> ResponseParser:
    parser = ResponseParser(limits, HeaderNames())
    parser.begin(head_only=head_only)
    for part in parts:
        parser.feed(part)
    return parser


def cut(data: bytes, places: list[int]) -> list[bytes]:
    edges = [0, *sorted(place % (len(data) + 1) for place in places), len(data)]
    return [data[start:end] for start, end in pairwise(edges)]


@given(st.sampled_from(ANSWERS), st.lists(st.integers(0, 1000), max_size=20))
def test_an_answer_is_the_same_however_it_is_cut(answer: bytes, places: list[int]) -> None:
    parser = parse(cut(answer, places))
    assert b"".join(parser.pieces) == b"hello world"
    assert (parser.violation, parser.complete, parser.reusable) == ("", True, True)
    assert parser.status in (200, 503)


@given(st.sampled_from(ANSWERS), st.integers(0, 1000))
def test_a_part_of_an_answer_is_never_taken_for_the_whole(answer: bytes, place: int) -> None:
    parser = parse([answer[: place % len(answer)]])
    assert not parser.complete
    assert parser.violation == ""


@given(st.lists(st.binary(max_size=300), max_size=10))
def test_random_bytes_raise_nothing_and_never_make_a_reusable_answer(parts: list[bytes]) -> None:
    parser = parse(parts)
    assert not parser.reusable


@given(
    st.sampled_from(ANSWERS),
    st.integers(0, 1000),
    st.binary(min_size=1, max_size=5),
    st.lists(st.integers(0, 1000), max_size=5),
)
def test_damaged_answers_are_judged_the_same_however_they_are_cut(
    answer: bytes, place: int, damage: bytes, places: list[int]
) -> None:
    at = place % len(answer)
    damaged = answer[:at] + damage + answer[at + len(damage) :]
    whole, parts = parse([damaged]), parse(cut(damaged, places))
    assert (whole.violation == "", whole.head_done, whole.complete) == (
        parts.violation == "",
        parts.head_done,
        parts.complete,
    )
    assert b"".join(whole.pieces) == b"".join(parts.pieces)


def test_an_endless_head_is_refused_at_its_bound() -> None:
    parser = ResponseParser(LIMITS, HeaderNames())
    parser.begin(head_only=False)
    parser.feed(b"HTTP/1.1 200 OK\r\nX-A: ")
    fed = 0
    while not parser.violation and fed < 10_000:
        parser.feed(b"a" * 10)
        fed += 10
    assert parser.violation
    assert fed <= 500


def test_a_body_in_the_same_read_does_not_count_as_head() -> None:
    parser = parse([b"HTTP/1.1 200 OK\r\nContent-Length: 5000\r\n\r\n" + b"x" * 5000])
    assert (parser.violation, parser.complete) == ("", True)
    assert sum(map(len, parser.pieces)) == 5000


def test_an_endless_trailer_is_refused_at_its_bound() -> None:
    parser = parse([b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\nT: "])
    fed = 0
    while not parser.violation and fed < 10_000:
        parser.feed(b"a" * 10)
        fed += 10
    assert parser.violation
    assert fed <= 220


def test_many_small_chunks_are_not_taken_for_trailers() -> None:
    parser = parse([b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", *[b"1\r\nx\r\n"] * 1000, b"0\r\n\r\n"])
    assert (parser.violation, parser.complete) == ("", True)


def test_bytes_after_the_answer_forbid_reuse_but_do_not_spoil_it() -> None:
    for surplus in (b"x", b"HTTP/1.1 200 OK\r\n", b"HTTP"):
        parser = parse([ANSWERS[0] + surplus])
        assert (parser.violation, parser.complete, parser.reusable) == ("", True, False)
        assert parser.headers == [("content-length", "11"), ("x-a", "b")]


def test_a_reason_that_cannot_be_shown_is_left_out() -> None:
    assert parse([b"HTTP/1.1 200 O\x01K\r\nContent-Length: 0\r\n\r\n"]).reason == ""
    assert parse([b"HTTP/1.1 200\r\nContent-Length: 0\r\n\r\n"]).reason == ""
    assert parse([b"HTTP/1.1 200 Fine thing\r\nContent-Length: 0\r\n\r\n"]).reason == "Fine thing"


def test_the_cache_of_names_is_bounded_and_stays_right_beyond_its_bound() -> None:
    names = HeaderNames()
    for number in range(5000):
        assert names[b"X-Name-%d" % number] == f"x-name-{number}"
    assert len(names) <= 1024


def test_an_answer_to_head_is_never_followed_by_another_on_the_same_connection() -> None:
    parser = parse([b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n"], head_only=True)
    assert (parser.complete, parser.reusable) == (True, False)


def test_a_204_with_a_length_has_no_body_and_its_bytes_forbid_reuse() -> None:
    parser = parse([b"HTTP/1.1 204 No Content\r\nContent-Length: 5\r\n\r\nhello"])
    assert (parser.complete, parser.pieces, parser.reusable) == (True, [], False)
