"""The types of plugins' options: what may be written, and the one form in which a plugin gets it."""

import math
import re
from collections.abc import Callable, Mapping
from decimal import Decimal
from fractions import Fraction
from typing import Final

_INT64: Final = range(-(2**63), 2**63)
_TRUE: Final = frozenset({"1", "t", "T", "true", "True", "TRUE"})
_FALSE: Final = frozenset({"0", "f", "F", "false", "False", "FALSE"})
_UNIT_NS: Final[Mapping[str, int]] = {
    "ns": 1,
    "us": 1_000,
    "µs": 1_000,
    "ms": 1_000_000,
    "s": 1_000_000_000,
    "m": 60_000_000_000,
    "h": 3_600_000_000_000,
}
_DURATION_PART: Final = re.compile(r"(\d+(?:\.\d*)?|\.\d+)(ns|us|µs|ms|s|m|h)")
_LARGEST_PLAIN_FLOAT: Final = 1e21


def normalised(kind: str, text: str) -> str:
    """`text` as a value of type `kind`, in the form all plugins get. Raises ValueError, and KeyError for no type."""
    return _TYPES[kind][1](text)


def default_of(kind: str) -> str:
    """The value of an option nobody gave and whose manifest names none. Raises KeyError for no type."""
    return _TYPES[kind][0]


def known_type(word: str) -> str | None:
    """The type a manifest means; None for a word that is none."""
    word = word.strip() or "bool"
    word = "float64" if word == "float" else word
    return word if word in _TYPES else None


def _bool(text: str) -> str:
    if text in _TRUE:
        return "true"
    if text in _FALSE:
        return "false"
    raise ValueError(f"{text!r} is neither true nor false")


def _int(text: str) -> str:
    try:
        # 0x10, 0b1 and 1_000 as well as 007.
        number = int(text, 0) if not re.fullmatch(r"[+-]?0\d+", text) else int(text)
    except ValueError:
        raise ValueError(f"{text!r} is no whole number") from None
    if number not in _INT64:
        raise ValueError(f"{text!r} has more than 64 bits")
    return str(number)


def _float(text: str) -> str:
    try:
        number = float(text)
    except ValueError:
        raise ValueError(f"{text!r} is no number") from None
    if not math.isfinite(number):
        raise ValueError(f"{text!r} is no finite number")
    return str(int(number)) if number.is_integer() and abs(number) < _LARGEST_PLAIN_FLOAT else repr(number)


def _duration(text: str) -> str:
    sign, rest = ("-", text[1:]) if text.startswith("-") else ("", text.removeprefix("+"))
    parts = _DURATION_PART.findall(rest)
    if rest != "0" and (not parts or "".join(number + unit for number, unit in parts) != rest):
        raise ValueError(f"{text!r} is no duration like 300ms, 10s or 1h30m")
    total_ns = int(sum(Fraction(Decimal(number)) * _UNIT_NS[unit] for number, unit in parts))
    if total_ns not in _INT64:
        raise ValueError(f"{text!r} is longer than any duration")
    return f"{sign if total_ns else ''}{_duration_text(total_ns)}"


def _duration_text(total_ns: int) -> str:
    """`1h2m3.5s`; below a second in the largest unit that fits."""
    if total_ns == 0:
        return "0s"
    if total_ns < _UNIT_NS["s"]:
        unit = next(unit for unit in ("ms", "µs", "ns") if total_ns >= _UNIT_NS[unit])
        return f"{_decimal(total_ns, _UNIT_NS[unit])}{unit}"
    minutes, rest_ns = divmod(total_ns, _UNIT_NS["m"])
    hours, minutes = divmod(minutes, 60)
    text = f"{_decimal(rest_ns, _UNIT_NS['s'])}s"
    if hours or minutes:
        text = f"{minutes}m{text}"
    return f"{hours}h{text}" if hours else text


def _decimal(value: int, unit: int) -> str:
    whole, rest = divmod(value, unit)
    return f"{whole}.{rest:0{len(str(unit)) - 1}d}".rstrip("0") if rest else str(whole)


_TYPES: Final[Mapping[str, tuple[str, Callable[[str], str]]]] = {
    "bool": ("false", _bool),
    "string": ("", str),
    "int": ("0", _int),
    "int64": ("0", _int),
    "float64": ("0", _float),
    "duration": ("0s", _duration),
}
