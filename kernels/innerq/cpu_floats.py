"""float16 and bfloat16 for numba on CPUs, which has neither: numbers are made from their bits."""

import numpy as np
from numba import types
from numba.extending import overload

from ..jit import jit


def to_float(bits):
    """A number of a window in float32: numba has neither bfloat16 (here uint16) nor float16 (int16)."""


@overload(to_float, inline="always")
def _to_float_of_type(bits):
    if bits == types.float32:
        return lambda bits: bits
    if bits == types.uint16:
        return lambda bits: np.int32(np.uint32(bits) << 16).view(np.float32)
    return lambda bits: from_half(bits)


@jit()
def from_half(bits):
    """float16's bits as float32. The multiplication moves the exponent, for subnormal numbers too."""
    magnitude = np.int32((np.int32(bits) & 0x7FFF) << 13).view(np.float32) * np.float32(2.0**112)
    if np.int32(bits) & 0x7C00 == 0x7C00:
        magnitude = np.int32((np.int32(bits) & 0x7FFF) << 13 | 0x7F800000).view(np.float32)
    return -magnitude if bits < 0 else magnitude


@jit()
def to_half(number):
    """Bits of the float16 nearest to a float32, ties to even; 65504 for what is larger. NaN stays NaN."""
    bits = np.float32(number).view(np.int32)
    magnitude = np.int32(bits & 0x7FFFFFFF)
    if 0x477FE000 < magnitude <= 0x7F800000:
        magnitude = np.int32(0x477FE000)
    subnormal = np.float32(np.int32(magnitude).view(np.float32) + np.float32(0.5)).view(np.int32) - 0x3F000000
    normal = (magnitude - (112 << 23) + 0xFFF + ((magnitude >> 13) & 1)) >> 13
    half = subnormal if magnitude < (113 << 23) else normal
    if magnitude > 0x7F800000:
        half = np.int32(0x7E00)  # NaN
    return np.int16(half - 0x8000 if bits < 0 else half)
