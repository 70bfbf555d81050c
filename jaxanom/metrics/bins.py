"""Bins for float32 scores of any range, which no order is reversed by."""

import jax
import jax.numpy as jnp

from jaxanom.types import Array

MANTISSA_BITS = 9


def num_bins(mantissa_bits: int = MANTISSA_BITS) -> int:
    """Number of bins of `bin_index`: 534 octaves of 2**mantissa_bits bins, and one."""
    return 534 * 2**mantissa_bits + 1


def bin_index(values: Array, mantissa_bits: int = MANTISSA_BITS) -> Array:
    """Maps float32 values to bins, never reversing an order, whatever their range.

    The bit pattern of a positive float32, read as an integer, grows with its value; its
    upper bits are bins of constant relative width 2**-mantissa_bits. Between 0.5 and 1
    the bins are those of 1 - value in reverse, since a sigmoid near 1 is as full of
    meaning as near 0. Negative values mirror the positive ones; -0 and 0 are one bin.

    Args:
      values: Any shape, cast to float32.
      mantissa_bits: Bits of the mantissa that are kept.

    Returns:
      int32 of the same shape in [0, num_bins); NaN lies above infinity.
    """
    values = jnp.asarray(values, jnp.float32)
    octave = 2**mantissa_bits

    def magnitude(x: Array) -> Array:
        return jax.lax.bitcast_convert_type(x, jnp.int32) >> (23 - mantissa_bits)

    half = 126 * octave  # bin of 0.5; float32 stores it with exponent 126
    plain = magnitude(jnp.abs(values))
    # 1 - value is exact here and at least 2**-24: 23 octaves where there was one.
    near_one = 2 * half - magnitude(1 - values)
    positive = jnp.where(values < 1, near_one, plain + 22 * octave + 1)
    positive = jnp.where(values < 0.5, plain, positive)
    signed = jnp.where(values < 0, -plain, positive)
    return jnp.where(values == 0, 0, signed) + 256 * octave
