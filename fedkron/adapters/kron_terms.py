"""A sum of Kronecker products applied to activations, forward and backward, never materialised.

Every adapter kind is ΔW = s · Σₘ Aₘ ⊗ (B1ₘ·B2ₘ); with Aₘ of 1 × 1 it is a plain low-rank product. With one
token's x viewed row-major as X (d_A1, d_B1), ΔW·x is Σₘ Aₘ·(X·B2ₘᵀ)·B1ₘᵀ, flattened.

The rank comes first in all intermediate results: U = B2·Xᵀ is (M·r, T·d_A1) for T tokens. Then one matrix
product over all tokens applies A, without a transposition, and no product has r as the number of columns,
which BLAS libraries are slow at (2 to 5 times, measured). The order B2, A, B1 costs
M·r·(d_in + d_A1·d_A2 + d_out) multiplications a token, the least of all orders unless A is nearly as large
as B; see docs/adapters.md for what was measured.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

HALF = (torch.bfloat16, torch.float16)
FEW = 2**16
"""Below so many numbers in the input, half-precision inputs are widened on a CPU."""


class KronTerms(NamedTuple):
    """ΔW = scale · Σₘ Aₘ ⊗ (B1ₘ·B2ₘ), M terms of rank r, factors stacked.

    `A` is (M, d_A2, d_A1), or (d_A2, d_A1) for a single term; `B1` (d_B2, M·r), `B2` (M·r, d_B1).
    """

    A: Tensor
    B1: Tensor
    B2: Tensor
    scale: float

    @property
    def stacked(self) -> Tensor:
        """All A as (M, d_A2, d_A1)."""
        return _stacked(self.A)

    def dense(self) -> Tensor:
        """ΔW as a (d_A2·d_B2, d_A1·d_B1) matrix."""
        A = self.stacked
        terms, d_a2, d_a1 = A.shape
        left = torch.unflatten(self.B1, 1, (terms, -1)).transpose(0, 1)
        B = torch.bmm(left, torch.unflatten(self.B2, 0, (terms, -1)))
        # Outer products of all elements, summed over the terms, with the indices of ⊗ brought in order.
        product = (self.scale * A).flatten(1).T @ B.flatten(1)
        grid = product.view(d_a2, d_a1, *B.shape[1:]).transpose(1, 2)
        return grid.reshape(d_a2 * B.shape[1], d_a1 * B.shape[2])

    def lora(self) -> tuple[Tensor, Tensor]:
        """The same ΔW as a plain LoRA pair (lora_B, lora_A), exactly: ΔW = lora_B·lora_A.

        A ⊗ (B1·B2) = (A ⊗ B1)·(I ⊗ B2) = (I ⊗ B1)·(A ⊗ B2): the rank is M·r·min(d_A1, d_A2). Shapes
        are (d_out, rank) and (rank, d_in).
        """
        scaled = self.scale * self.stacked
        terms, d_a2, d_a1 = scaled.shape
        eye = torch.eye(min(d_a1, d_a2), dtype=self.A.dtype, device=self.A.device)
        pairs = [
            (torch.kron(A, B1), torch.kron(eye, B2))
            if d_a1 <= d_a2
            else (torch.kron(eye, B1), torch.kron(A, B2))
            for A, B1, B2 in zip(scaled, self.B1.chunk(terms, 1), self.B2.chunk(terms, 0), strict=True)
        ]
        return torch.cat([left for left, _ in pairs], 1), torch.cat([right for _, right in pairs], 0)


def kron_linear(x: Tensor, z: Tensor | None, weight: Tensor, bias: Tensor | None, terms: KronTerms) -> Tensor:
    """weight·x + bias + ΔW·z, with one pass over the output and one over the gradient of x.

    `x` is (…, d_in), `z` the same after dropout (None: x itself); `weight` is (d_out, d_in), frozen, and of
    the dtype of x, in which everything is computed, whatever the dtype of the terms. Backward keeps z and
    U only, M·r·d_A1 numbers a token beside the input.
    """
    A, B1, B2, scale = terms
    output: Tensor = _KronLinear.apply(x, z, weight, bias, A, B1, B2, scale)  # type: ignore[no-untyped-call]
    return output


def kron_correction(z: Tensor, terms: KronTerms) -> Tensor:
    """ΔW·z for z of shape (…, d_in), as (…, d_out), in the dtype of z."""
    A, B1, B2, scale = terms
    output: Tensor = _KronCorrection.apply(z, A, B1, B2, scale)  # type: ignore[no-untyped-call]
    return output


class _KronLinear(torch.autograd.Function):
    @staticmethod
    def forward(  # noqa: PLR0917
        ctx: Any,  # noqa: ANN401
        x: Tensor,
        dropped: Tensor | None,
        weight: Tensor,
        bias: Tensor | None,
        A: Tensor,
        B1: Tensor,
        B2: Tensor,
        scale: float,
    ) -> Tensor:
        z = x if dropped is None else dropped
        d_out, d_in = weight.shape
        y = torch.nn.functional.linear(x.reshape(-1, d_in), weight, bias)
        # The factors as they are: their copies in another dtype are cheaper made anew than kept.
        ctx.save_for_backward(z, _add_product(y, z, A, B1, B2, scale), weight, A, B1, B2)
        ctx.scale, ctx.same = scale, dropped is None
        return y.view(*x.shape[:-1], d_out)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        z, U, weight, A, B1, B2 = ctx.saved_tensors
        dU, dA, dB1, dB2 = _factor_gradients(dy, z, U, A, B1, B2, ctx.scale)
        need_x, need_z = ctx.needs_input_grad[:2]
        dx = dy.reshape(-1, weight.shape[0]) @ weight if need_x else None
        if dx is not None and ctx.same:
            _accumulate(dx.view(-1, B2.shape[1]), dU, B2)
        dz = _product(dU, B2, z.dtype) if need_z else None
        return _like(dx, z), _like(dz, z), None, None, dA, dB1, dB2, None


class _KronCorrection(torch.autograd.Function):
    @staticmethod
    def forward(  # noqa: PLR0917
        ctx: Any,  # noqa: ANN401
        z: Tensor,
        A: Tensor,
        B1: Tensor,
        B2: Tensor,
        scale: float,
    ) -> Tensor:
        U = _project(z, B2)
        ctx.save_for_backward(z, U, A, B1, B2)
        ctx.scale = scale
        return _product(_mix(U, scale * A), B1.T, z.dtype).view(*z.shape[:-1], A.shape[-2] * B1.shape[0])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        z, U, A, B1, B2 = ctx.saved_tensors
        dU, dA, dB1, dB2 = _factor_gradients(dy, z, U, A, B1, B2, ctx.scale)
        dz = _product(dU, B2, z.dtype) if ctx.needs_input_grad[0] else None
        return _like(dz, z), dA, dB1, dB2, None


def _working(z: Tensor) -> Tensor:
    """`z` in the dtype that is fastest for products with the factors.

    oneDNN takes 15 to 25 µs to set up a half-precision product, however small.
    """
    few = z.device.type == "cpu" and z.numel() < FEW and z.dtype in HALF
    return z.float() if few else z


def _add_product(  # noqa: PLR0917
    y: Tensor, z: Tensor, A: Tensor, B1: Tensor, B2: Tensor, scale: float
) -> Tensor:
    """Add ΔW·z to y (T, d_out) in place; returns U."""
    U = _project(z, B2)
    _accumulate(y.view(-1, B1.shape[0]), _mix(U, scale * A), B1.T)
    return U


def _project(z: Tensor, B2: Tensor) -> Tensor:
    """U = B2·Zᵀ, (M·r, T·d_A1)."""
    Z = _working(z).reshape(-1, B2.shape[1])
    return B2.to(Z.dtype) @ Z.T


def _mix(U: Tensor, A: Tensor) -> Tensor:
    """V = A·U for each token and rank, (M·r, T·d_A2)."""
    A = _stacked(A).to(U.dtype)
    return torch.bmm(U.view(len(A), -1, A.shape[2]), A.mT).view(len(U), -1)


def _product(rank_first: Tensor, factor: Tensor, dtype: torch.dtype) -> Tensor:
    """V.T·factor."""
    return (rank_first.T @ factor.to(rank_first.dtype)).to(dtype)


def _accumulate(target: Tensor, rank_first: Tensor, factor: Tensor) -> None:
    """Add V.T·factor to `target` in place."""
    if rank_first.dtype == target.dtype:
        target.addmm_(rank_first.T, factor.to(target.dtype))
    else:
        target.add_(_product(rank_first, factor, rank_first.dtype))


def _factor_gradients(  # noqa: PLR0917
    dy: Tensor, z: Tensor, U: Tensor, A: Tensor, B1: Tensor, B2: Tensor, scale: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of U (M·r, T·d_A1), A, B1, B2 from that of the output. V is cheaper made anew than kept."""
    dY = dy.reshape(-1, B1.shape[0]).to(U.dtype)
    Z = _working(z).reshape(-1, B2.shape[1])
    scaled = _stacked(scale * A).to(U.dtype)
    terms, d_a2, d_a1 = scaled.shape
    dB1 = (_mix(U, scaled) @ dY).T
    dV = (B1.to(U.dtype).T @ dY.T).view(terms, -1, d_a2)
    dA = (scale * torch.bmm(U.view(terms, -1, d_a1).mT, dV)).mT.reshape(A.shape)
    dU = torch.bmm(dV, scaled).view(len(U), -1)
    return dU, dA.to(A.dtype), dB1.to(B1.dtype), (dU @ Z).to(B2.dtype)


def _stacked(A: Tensor) -> Tensor:
    return A.reshape(-1, *A.shape[-2:])


def _like(gradient: Tensor | None, z: Tensor) -> Tensor | None:
    return None if gradient is None else gradient.view(z.shape)
