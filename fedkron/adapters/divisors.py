"""How the dimensions of a layer split into those of the Kronecker factors."""

from __future__ import annotations

from fedkron.adapters.spec import AdapterSpec
from fedkron.errors import AdapterError


def kron_sizes(in_features: int, out_features: int, spec: AdapterSpec) -> tuple[int, int, int, int]:
    """(d_A2, d_A1, d_B2, d_B1) with d_out = d_A2·d_B2 and d_in = d_A1·d_B1.

    Raises `AdapterError` when `spec.d_a2` is not set, and when a dimension does not divide, with the
    divisors that would work.
    """
    d_a1, d_a2 = spec.d_a1, spec.d_a2
    if d_a2 is None:
        raise AdapterError("d_a2 is not set: give it, or attach to a model whose config has a hidden_size")
    for dimension, size, name, divisor in (
        ("d_in", in_features, "d_a1", d_a1),
        ("d_out", out_features, "d_a2", d_a2),
    ):
        if size % divisor:
            raise AdapterError(
                f"{dimension} = {size} does not divide by {name} = {divisor}: "
                f"{name} may be {_small_divisors(size)}"
            )
    return d_a2, d_a1, out_features // d_a2, in_features // d_a1


def _small_divisors(number: int) -> str:
    return ", ".join(str(n) for n in range(1, 65) if number % n == 0)
