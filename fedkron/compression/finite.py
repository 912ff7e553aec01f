"""No NaN and no infinity travels: the check that both ends of the wire share."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fedkron.layout import TensorLayout, Vector


def first_nonfinite(vector: Vector, tensors: Sequence[TensorLayout]) -> str | None:
    """Where a flat float32 vector of these tensors stops being finite.

    Returns `tensor 'path.factor' holds nan` (or inf, -inf) for the first such element, `None` when every
    element is finite.
    """
    finite = np.isfinite(vector)
    if finite.all():
        return None
    index = int(np.argmin(finite))
    ends = np.cumsum([tensor.size for tensor in tensors])
    # side="right" steps over empty tensors, whose end is their start.
    tensor = tensors[int(np.searchsorted(ends, index, side="right"))]
    return f"tensor {tensor.name!r} holds {vector[index]}"
