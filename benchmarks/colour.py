"""Colour profiles made here: pictures whose numbers are not those of sRGB."""

import struct

import numpy as np

SRGB_TO_XYZ = np.array(
    [[0.4360747, 0.3850649, 0.1430804], [0.2225045, 0.7168786, 0.0606169], [0.0139322, 0.0971045, 0.7141733]]
)
PROFILES = {
    "display-p3": (
        np.array([[0.51512, 0.29198, 0.15710], [0.24120, 0.69225, 0.06657], [-0.00105, 0.04189, 0.78407]]),
        2.2,
    ),
    "adobe-rgb": (
        np.array([[0.60974, 0.20528, 0.14919], [0.31111, 0.62567, 0.06322], [0.01947, 0.06087, 0.74457]]),
        563 / 256,
    ),
}
"""Linear RGB -> XYZ at D50, as ICC has it, and the exponent of the curve."""


def srgb_to_linear(values: np.ndarray) -> np.ndarray:
    """IEC 61966-2-1; 0 .. 1."""
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


def profile(to_xyz: np.ndarray, curve: float) -> bytes:
    """A matrix profile (ICC.1:2001) with one exponent for all three channels."""

    def number(value: float) -> bytes:
        return struct.pack(">i", round(value * 65536))

    def point(values: np.ndarray) -> bytes:
        return b"XYZ \0\0\0\0" + b"".join(number(v) for v in values)

    gamma = b"curv\0\0\0\0" + struct.pack(">IH", 1, round(curve * 256)) + b"\0\0"
    text = b"made here\0"
    tags = {
        b"desc": b"desc\0\0\0\0" + struct.pack(">I", len(text)) + text + bytes(79),
        b"cprt": b"text\0\0\0\0" + text,
        b"wtpt": point(np.array([0.9642, 1.0, 0.8249])),
        **{name: point(to_xyz[:, i]) for i, name in enumerate((b"rXYZ", b"gXYZ", b"bXYZ"))},
        **dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), gamma),
    }
    start, table, body = 128 + 4 + 12 * len(tags), b"", b""
    for name, data in tags.items():
        table += name + struct.pack(">II", start + len(body), len(data))
        body += data + bytes(-len(data) % 4)
    size = start + len(body)
    head = struct.pack(">I", size) + bytes(4) + struct.pack(">I", 0x02100000) + b"mntrRGB XYZ "
    head += struct.pack(">6H", 2020, 1, 1, 0, 0, 0) + b"acsp" + bytes(28)
    head += number(0.9642) + number(1.0) + number(0.8249)
    return head + bytes(128 - len(head)) + struct.pack(">I", len(tags)) + table + body
