"""Configurations of any style with comments in any place, and edits of them: the same ones for the same seed."""

import random
from typing import Any

KEYS = ("a", "b", "c", "api-key", "name", "1", "d e")
Change = tuple[str, Any, Any]
"""What to do with a mapping or list, at which key or place, and the value."""


class Writer:
    """Writes texts in block style, down to four collections deep."""

    def __init__(self, chance: random.Random) -> None:
        self._chance = chance

    def document(self) -> str:
        """A mapping, with or without a final line end."""
        text = self._one_of(("", "# head\n")) + self._mapping(0, 3) + self._comments(0)
        return text.rstrip("\n") if self._chance.random() < 0.2 else text

    def edit(self, tree: Any) -> tuple[list[Any], Change]:
        """A change somewhere in plain values: the way there, and what to do."""
        path: list[Any] = []
        while True:
            inner = [key for key in _keys(tree) if isinstance(tree[key], (dict, list)) and tree[key]]
            if not inner or self._chance.random() < 0.3:
                break
            path.append(self._one_of(inner))
            tree = tree[path[-1]]
        keys = _keys(tree)
        kind = self._one_of(("set", "set", "delete", "add", "move"))
        if isinstance(tree, dict):
            if kind == "delete":
                return path, ("delete", self._one_of(keys), None)
            return path, ("set", self._one_of(keys) if kind == "set" else "new", self._value(2))
        if kind == "move":
            return path, ("move", self._chance.sample(keys, len(keys)), None)
        place = self._chance.randrange(len(tree) + 1) if kind == "add" else self._one_of(keys)
        return path, (kind, place, None if kind == "delete" else self._value(2))

    def _one_of(self, things: Any) -> Any:
        return self._chance.choice(things)

    def _value(self, depth: int) -> Any:
        kind = self._chance.random() if depth else 1.0
        if kind < 0.25:
            return {key: self._value(depth - 1) for key in self._chance.sample(KEYS, self._chance.randrange(4))}
        if kind < 0.4:
            return [self._value(depth - 1) for _ in range(self._chance.randrange(4))]
        texts = ("new", "x: y", "# h", "", "true", "a\nb", "- d", "  lead", "1", "é 日", "a\tb", "tail ")
        return self._one_of((*texts, 1, 2.5, True, None))

    def _scalar(self, indent: int) -> str:
        deeper = "\n" + " " * (indent + 2)
        return str(
            self._one_of(
                (
                    *("k", "1", "true", "'q # no'", '"d: x"', "null", "~", "https://x.test/v1", "3.5", "two words"),
                    *("0x1F", "[]", "{}", "[a, b]", "{x: 1, y: z}", f"one{deeper}two", f"[a,{deeper}b]"),
                    *(f"|{deeper}text{deeper}# no comment", f">-{deeper}fold{deeper}ed"),
                )
            )
        )

    def _comments(self, indent: int) -> str:
        lines = ("\n", " " * indent + "# at\n", " " * (indent + 2) + "# deep\n", "# col0\n")
        return "".join(self._one_of(lines) for _ in range(self._one_of((0, 0, 0, 0, 1, 2))))

    def _behind(self) -> str:
        return str(self._one_of(("", "", "", "", " # c", "   # wide"))) + "\n"

    def _written(self, indent: int, depth: int, *, in_list: bool) -> str:
        """What follows a key or a dash."""
        kind = self._chance.random()
        if depth and kind < 0.35:
            return (
                self._behind() + self._comments(indent + 2) + self._mapping(indent + self._one_of((1, 2, 4)), depth - 1)
            )
        if depth and kind < 0.65:
            inner = indent + (2 if in_list else self._one_of((0, 2, 2)))
            return self._behind() + self._comments(indent + 2) + self._list(inner, depth - 1)
        if kind < 0.68:
            return self._behind()
        text = self._scalar(indent)
        return f" {text}\n" if "\n" in text else f" {text}{self._behind()}"

    def _mapping(self, indent: int, depth: int, *, opened: bool = False) -> str:
        found = ""
        for number, key in enumerate(self._chance.sample(KEYS, self._chance.randrange(1, 5))):
            begin = "" if opened and not number else (self._comments(indent) if number else "") + " " * indent
            found += f"{begin}{key}:{self._written(indent, depth, in_list=False)}"
        return found

    def _list(self, indent: int, depth: int, *, opened: bool = False) -> str:
        found = ""
        for number in range(self._chance.randrange(1, 6)):
            begin = "" if opened and not number else (self._comments(indent) if number else "") + " " * indent
            kind = self._chance.random() if depth else 1.0
            wide = self._one_of((1, 1, 3))
            if kind < 0.5:
                found += f"{begin}-{' ' * wide}{self._mapping(indent + 1 + wide, depth - 1, opened=True)}"
            elif kind < 0.6:
                found += f"{begin}- {self._list(indent + 2, depth - 1, opened=True)}"
            else:
                found += f"{begin}-{self._written(indent, depth if kind < 0.75 else 0, in_list=True)}"
        return found


def _keys(tree: Any) -> list[Any]:
    return list(tree) if isinstance(tree, dict) else list(range(len(tree)))


def plain(value: Any) -> Any:
    """A copy without memories."""
    if isinstance(value, dict):
        return {key: plain(member) for key, member in value.items()}
    return [plain(item) for item in value] if isinstance(value, list) else value


def put(tree: Any, path: list[Any], change: Change) -> None:
    """Do a change in place."""
    for key in path:
        tree = tree[key]
    kind, key, value = change
    if kind == "set":
        tree[key] = value
    elif kind == "delete":
        del tree[key]
    elif kind == "add":
        tree.insert(key, value)
    else:
        tree[:] = [tree[place] for place in key]
