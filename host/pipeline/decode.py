"""What decoding foreign JSON can raise."""

from typing import Final

import msgspec

UNDECODABLE: Final = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
"""Not JSON, not UTF-8, or nested deeper than the decoder goes."""
