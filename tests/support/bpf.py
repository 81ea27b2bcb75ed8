"""A small machine that runs a classic BPF program over one system call, as the kernel's filter would."""

import struct
from collections.abc import Sequence


def run_filter(program: bytes, *, arch: int, number: int, arguments: Sequence[int] = ()) -> int:
    """What the program answers. Raises AssertionError for an instruction that it should not need."""
    words = [*arguments, *[0] * (6 - len(arguments))]
    memory = struct.pack("=iIQ6Q", number if number < 2**31 else number - 2**32, arch, 0, *words)
    accumulator, at = 0, 0
    while True:
        code, if_true, if_false, value = struct.unpack_from("=HBBI", program, 8 * at)
        at += 1
        if code == 0x06:
            return int(value)
        if code == 0x20:
            assert value % 4 == 0
            (accumulator,) = struct.unpack_from("=I", memory, value)
        elif code == 0x54:
            accumulator &= value
        else:
            holds = {0x15: accumulator == value, 0x35: accumulator >= value, 0x45: bool(accumulator & value)}[code]
            at += if_true if holds else if_false
