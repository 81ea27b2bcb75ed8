"""The thinking suffix of a model name: `name(value)` (spec credentials 3.1, client-api 7.6)."""


def split_suffix(model: str) -> tuple[str, str | None]:
    """Base name and suffix; None when there is none. `x()` has the empty suffix, `a(b)(c)` the suffix `c`."""
    if not model.endswith(")"):
        return model, None
    opening = model.rfind("(")
    if opening < 0:
        return model, None
    return model[:opening], model[opening + 1 : -1]
