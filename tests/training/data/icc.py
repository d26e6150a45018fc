"""Colour profiles for tests, written here: matrices with curves, grey, and CMYK by a table (ICC.1:2022)."""

from __future__ import annotations

import itertools
import struct

import numpy as np

D50 = (0.9642, 1.0, 0.8249)

# XYZ of the primaries under D50.
ADOBE = ((0.60974, 0.31111, 0.01947), (0.20528, 0.62567, 0.06087), (0.14919, 0.06322, 0.74457))
P3 = ((0.51512, 0.24120, -0.00105), (0.29198, 0.69225, 0.04189), (0.15710, 0.06657, 0.78407))
PROPHOTO = ((0.79767, 0.28804, 0.0), (0.13519, 0.71188, 0.0), (0.03134, 0.00009, 0.82491))
SRGB = ((0.43607, 0.22249, 0.01392), (0.38515, 0.71687, 0.09708), (0.14307, 0.06061, 0.71410))


def rgb_profile(primaries, curve):
    """curve: an exponent, or "srgb"."""
    tags = {f"{name}XYZ".encode(): xyz(values) for name, values in zip("rgb", primaries, strict=True)}
    tags |= {f"{name}TRC".encode(): tone(curve) for name in "rgb"}
    return profile(b"RGB ", b"XYZ ", b"mntr", tags)


def grey_profile(curve):
    return profile(b"GRAY", b"XYZ ", b"mntr", {b"kTRC": tone(curve)})


def cmyk_profile():
    """Of inks that mix like filters; paper is a little yellow, so that it is not what Pillow makes of CMYK."""
    table = b""
    for c, m, y, k in itertools.product((0, 1), repeat=4):
        light = np.array([0.95 - 0.9 * c, 0.93 - 0.85 * m, 0.88 - 0.8 * y]) * (1 - 0.9 * k)
        lightness = 116 * light.mean() ** (1 / 3) - 16
        a, b = 120 * (light[0] - light[1]), 90 * ((light[0] + light[1]) / 2 - light[2])
        table += bytes([round(np.clip(lightness * 2.55, 0, 255)), *(round(np.clip(x + 128, 0, 255)) for x in (a, b))])
    unit = struct.pack(">9i", *(65536 * (place % 4 == 0) for place in range(9)))
    lut = b"mft1\0\0\0\0" + bytes([4, 3, 2, 0]) + unit + bytes(range(256)) * 4 + table + bytes(range(256)) * 3
    return profile(b"CMYK", b"Lab ", b"prtr", {b"A2B0": lut})


def profile(space, connection, kind, tags):
    described = b"desc\0\0\0\0" + struct.pack(">I", 5) + b"test\0" + bytes(78)
    tags = {b"desc": described, b"cprt": b"text\0\0\0\0none\0", b"wtpt": xyz(D50), **tags}
    table, body = struct.pack(">I", len(tags)), b""
    for name, value in tags.items():
        table += name + struct.pack(">II", 132 + 12 * len(tags) + len(body), len(value))
        body += value + bytes(-len(value) % 4)
    size = 128 + len(table) + len(body)
    head = struct.pack(">I4sI4s4s4s12s4s28s", size, b"", 0x02400000, kind, space, connection, b"", b"acsp", b"")
    return (head + b"".join(map(fixed, D50))).ljust(128, b"\0") + table + body


def tone(curve):
    if curve == "srgb":
        x = np.linspace(0, 1, 1024)
        values = np.where(x <= 0.04045, x / 12.92, ((x + 0.055) / 1.055) ** 2.4) * 65535
    else:
        values = [curve * 256]
    return b"curv\0\0\0\0" + struct.pack(f">I{len(values)}H", len(values), *(round(float(each)) for each in values))


def xyz(values):
    return b"XYZ \0\0\0\0" + b"".join(map(fixed, values))


def fixed(value):
    return struct.pack(">i", round(value * 65536))
