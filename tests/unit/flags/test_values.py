"""Values of plugins' options: what is accepted, and the one form a plugin gets (spec plugin-abi 7.7)."""

import pytest

from host.flags.values import default_of, known_type, normalised


@pytest.mark.parametrize(
    ("kind", "text", "value"),
    [
        ("bool", "T", "true"),
        ("bool", "1", "true"),
        ("bool", "FALSE", "false"),
        ("string", " as it is ", " as it is "),
        ("int", "007", "7"),
        ("int", "0x10", "16"),
        ("int64", "-9223372036854775808", "-9223372036854775808"),
        ("float64", "1.0", "1"),
        ("float64", "-0.5", "-0.5"),
        ("float64", "1e20", "100000000000000000000"),
        ("float64", "1e21", "1e+21"),
        ("duration", "60s", "1m0s"),
        ("duration", "90m", "1h30m0s"),
        ("duration", "1.5h", "1h30m0s"),
        ("duration", "1h2m3.5s", "1h2m3.5s"),
        ("duration", "1500ms", "1.5s"),
        ("duration", "300ms", "300ms"),
        ("duration", "1500us", "1.5ms"),
        ("duration", "10µs", "10µs"),
        ("duration", "7ns", "7ns"),
        ("duration", "0", "0s"),
        ("duration", "-2m", "-2m0s"),
    ],
)
def test_a_value_has_one_form(kind, text, value):
    assert normalised(kind, text) == value
    assert normalised(kind, value) == value


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("bool", "yes"),
        ("bool", ""),
        ("int", "1.0"),
        ("int", ""),
        ("int64", "9223372036854775808"),
        ("float64", "one"),
        ("float64", "inf"),
        ("float64", "nan"),
        ("duration", "60"),
        ("duration", "1d"),
        ("duration", "1h later"),
        ("duration", ""),
        ("duration", "3000000h"),
    ],
)
def test_what_is_no_value_of_the_type_is_refused(kind, text):
    with pytest.raises(ValueError, match=r"is no|is neither|more than|longer than"):
        normalised(kind, text)


def test_types_have_defaults_and_no_type_means_bool():
    words = ["bool", "string", "int", "int64", "float64", "duration"]
    assert [default_of(word) for word in words] == ["false", "", "0", "0", "0", "0s"]
    assert [known_type(word) for word in words] == words
    assert (known_type(""), known_type("float"), known_type("weird")) == ("bool", "float64", None)
