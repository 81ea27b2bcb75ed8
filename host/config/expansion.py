"""How large and how deep a YAML document is with its aliases written out: a few lines can mean billions of values."""

from typing import Final

import yaml

MAX_VALUES: Final = 1_000_000
"""Of a document; a configuration of ten thousand keys has about a hundred thousand."""
MAX_DEPTH: Final = 64
"""Of collections in collections."""
_LOADER: Final = getattr(yaml, "CBaseLoader", yaml.BaseLoader)


def excess(text: str, *, limit: int = MAX_VALUES) -> str:
    """Why a document must not be read; empty when it may. What is not valid is not judged."""
    known: dict[str, int] = {}
    open_nodes: list[tuple[str | None, int]] = [(None, 0)]
    try:
        for event in yaml.parse(text.encode("utf-8", "replace"), Loader=_LOADER):
            if isinstance(event, yaml.CollectionStartEvent):
                open_nodes.append((event.anchor, 1))
                if len(open_nodes) > MAX_DEPTH:
                    return f"it is more than {MAX_DEPTH} collections deep"
                if event.anchor is not None:
                    known[event.anchor] = limit + 1  # an alias inside of it would never end
                continue
            if isinstance(event, yaml.AliasEvent):
                size = known.get(event.anchor, 1)
            elif isinstance(event, yaml.ScalarEvent):
                size = 1
                if event.anchor is not None:
                    known[event.anchor] = 1
            elif isinstance(event, yaml.CollectionEndEvent):
                anchor, size = open_nodes.pop()
                if anchor is not None:
                    known[anchor] = size
            else:
                continue
            outer, before = open_nodes[-1]
            open_nodes[-1] = (outer, before + size)
            if before + size > limit:
                return f"with its aliases it says more than {limit} values"
    except yaml.YAMLError:
        return ""
    return ""
