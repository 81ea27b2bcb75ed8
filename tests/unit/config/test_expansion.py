"""A document that is small as a text may be too large, or without an end, as values."""

import pytest

from host.config.expansion import MAX_DEPTH, excess

LAUGHS = "a: &a [x, x, x]\nb: &b [*a, *a, *a]\nc: &c [*b, *b, *b]\nd: [*c, *c, *c]\n"


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("port: 1\n", ""),
        ("a: &a {b: c}\nd: *a\n", ""),
        ("a: [", ""),
        ("a: *unheard-of\n", ""),
        (LAUGHS, "more than 70 values"),
        ("a: &a [*a]\n", "more than 70 values"),
        ("a: &a {b: {c: *a}}\n", "more than 70 values"),
        ("[" * (MAX_DEPTH - 2) + "]" * (MAX_DEPTH - 2), ""),
        ("[" * (MAX_DEPTH + 1) + "]" * (MAX_DEPTH + 1), "collections deep"),
    ],
)
def test_what_is_too_large_or_too_deep_is_known_before_it_is_read(text: str, why: str) -> None:
    found = excess(text, limit=70)
    assert (why in found) if why else not found


def test_a_billion_values_are_counted_without_being_made() -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 30)]
    assert excess("\n".join(lines))
    assert not excess("\n".join(lines[:4]))
