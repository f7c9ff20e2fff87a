"""ICC profiles for tests, made by hand: RGB with any primaries and gamma."""

from __future__ import annotations

import struct

# XYZ of the primaries, adapted to D50: those of Display P3, as on phones.
DISPLAY_P3 = ((0.5151, 0.2412, -0.0011), (0.2919, 0.6922, 0.0419), (0.1572, 0.0666, 0.7841))


WHITE = (0.9642, 1.0, 0.8249)


def _numbers(values: tuple[float, ...]) -> bytes:
    return b"".join(struct.pack(">i", round(value * 65536)) for value in values)


def _xyz(values: tuple[float, ...]) -> bytes:
    return b"XYZ \0\0\0\0" + _numbers(values)


def rgb_profile(primaries: tuple[tuple[float, ...], ...], gamma: float = 2.2) -> bytes:
    """Make a version 2 display profile."""
    curve = b"curv\0\0\0\0" + struct.pack(">IH", 1, round(gamma * 256)) + b"\0\0"
    tags = {b"wtpt": _xyz(WHITE)}
    for letter, values in zip("rgb", primaries, strict=True):
        tags[f"{letter}XYZ".encode()] = _xyz(values)
        tags[f"{letter}TRC".encode()] = curve
    table, body = struct.pack(">I", len(tags)), b""
    start = 128 + 4 + 12 * len(tags)
    for name, data in tags.items():
        table += name + struct.pack(">II", start + len(body), len(data))
        body += data
    head = struct.pack(
        ">I4sI4s4s4s", start + len(body), b"lcms", 0x02400000, b"mntr", b"RGB ", b"XYZ "
    )
    head += bytes(12) + b"acsp" + bytes(28) + _numbers(WHITE)
    return head.ljust(128, b"\0") + table + body
