"""The proxy: web -> pipeline -> {credentials, registry, runtime}."""

from typing import Final

VERSION: Final = "0.1.0"
