"""The text of the configuration file with masks in place of its secrets, everything else as it is written."""

from collections.abc import Callable, Sequence
from typing import Final

from host.config.splice import says
from host.config.tree import MapNode, SeqNode
from host.management.masks import SecretPlace

_QUOTES: Final = frozenset("'\"")


def masked_text(text: str, tree: MapNode, places: Sequence[SecretPlace], mask: Callable[[str], str]) -> str | None:
    """`text` with each secret that `tree` has at one of the `places` replaced by its mask; `tree` is masked with it.

    None where the outcome would not say that: a secret that is written otherwise than it is, or over several lines.
    """
    lines = text.splitlines(keepends=True)
    done: dict[int, int] = {}
    """How far each line is masked."""
    for place in places:
        if not isinstance(place.holder, (MapNode, SeqNode)):
            return None
        number = place.holder.lines[place.key]
        line, begin, secret, masked = lines[number], done.get(number, 0), place.text, mask(place.text)
        if isinstance(place.holder, MapNode):
            begin = line.find(str(place.key), begin) + len(str(place.key))
        begin = line.find(secret, begin)
        if begin < 0:
            return None
        end = begin + len(secret)
        is_quoted = begin > 0 and line[begin - 1] in _QUOTES and line[end : end + 1] == line[begin - 1]
        written = masked if is_quoted else f"'{masked}'"
        lines[number] = line[:begin] + written + line[end:]
        done[number] = begin + len(written)
        place.holder[place.key] = masked
    found = "".join(lines)
    return found if says(found, tree) else None
