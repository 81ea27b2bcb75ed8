"""Which members of a document must not be shown, as far as their names tell."""

import re
from typing import Final

_SECRET_NAME: Final = re.compile(
    r"api[-_]?keys?$|secret|passw|passphrase|cookie|authorization|private[-_]?key|(?:^|[-_])token$"
    r"|(?:access|refresh|id|session|auth|bearer)[-_]?(?:token|key)$",
    re.IGNORECASE,
)


def sounds_secret(name: str) -> bool:
    """Whether a member of this name is one that must not be shown."""
    return _SECRET_NAME.search(name) is not None
