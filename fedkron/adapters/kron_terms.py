"""A sum of Kronecker products applied to activations, forward and backward, never materialised.

Every adapter kind is ΔW = s · Σₘ Aₘ ⊗ (B1ₘ·B2ₘ); with Aₘ of 1 × 1 it is a plain low-rank product. With one
token's x viewed row-major as X (d_A1, d_B1), ΔW·x is Σₘ Aₘ·(X·B2ₘᵀ)·B1ₘᵀ, flattened.

The rank comes first in all intermediate results: U = B2·Xᵀ is (M·r, T·d_A1) for T tokens. Then one matrix
product over all tokens applies A, without a transposition, and no product has r as the number of columns,
which BLAS libraries are slow at (2 to 5 times, measured). The order B2, A, B1 costs
M·r·(d_in + d_A1·d_A2 + d_out) multiplications a token, the least of all orders unless A is nearly as large
as B, and was the fastest on every shape in benchmarks/adapters.py.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


class KronTerms(NamedTuple):
    """ΔW = scale · Σₘ Aₘ ⊗ (B1ₘ·B2ₘ), M terms of rank r, factors stacked.

    `A` is (M, d_A2, d_A1), `B1` (d_B2, M·r), `B2` (M·r, d_B1).
    """

    A: Tensor
    B1: Tensor
    B2: Tensor
    scale: float

    def to(self, dtype: torch.dtype) -> KronTerms:
        """The same terms in another dtype."""
        return KronTerms(self.A.to(dtype), self.B1.to(dtype), self.B2.to(dtype), self.scale)

    def dense(self) -> Tensor:
        """ΔW as a (d_A2·d_B2, d_A1·d_B1) matrix."""
        terms, d_a2, d_a1 = self.A.shape
        stacked = torch.unflatten(self.B1, 1, (terms, -1)).transpose(0, 1)
        B = torch.bmm(stacked, torch.unflatten(self.B2, 0, (terms, -1)))
        # Outer products of all elements, summed over the terms, with the indices of ⊗ brought in order.
        product = (self.scale * self.A).flatten(1).T @ B.flatten(1)
        grid = product.view(d_a2, d_a1, *B.shape[1:]).transpose(1, 2)
        return grid.reshape(d_a2 * B.shape[1], d_a1 * B.shape[2])

    def lora(self) -> tuple[Tensor, Tensor]:
        """The same ΔW as a plain LoRA pair (lora_B, lora_A), exactly: ΔW = lora_B·lora_A.

        A ⊗ (B1·B2) = (A ⊗ B1)·(I ⊗ B2) = (I ⊗ B1)·(A ⊗ B2): the rank is M·r·min(d_A1, d_A2). Shapes
        are (d_out, rank) and (rank, d_in); lora_A has no scale in it, nor has a rounding been done to it
        where A is on the left.
        """
        terms, d_a2, d_a1 = self.A.shape
        scaled = self.scale * self.A
        eye = torch.eye(min(d_a1, d_a2), dtype=self.A.dtype, device=self.A.device)
        pairs = [
            (torch.kron(A, B1), torch.kron(eye, B2))
            if d_a1 <= d_a2
            else (torch.kron(eye, B1), torch.kron(A, B2))
            for A, B1, B2 in zip(scaled, self.B1.chunk(terms, 1), self.B2.chunk(terms, 0), strict=True)
        ]
        return torch.cat([left for left, _ in pairs], 1), torch.cat([right for _, right in pairs], 0)


def kron_linear(x: Tensor, z: Tensor, weight: Tensor, bias: Tensor | None, terms: KronTerms) -> Tensor:
    """weight·x + bias + ΔW·z, with one pass over the output and one over the gradient of x.

    `x` and `z` are (…, d_in), the same tensor unless z is x after dropout; `weight` is (d_out, d_in), frozen.
    All have the same dtype. Backward keeps x, z and U only, M·r·d_A1 numbers a token beside the input.
    """
    A, B1, B2, scale = terms
    output: Tensor = _KronLinear.apply(x, z, weight, bias, A, B1, B2, scale)  # type: ignore[no-untyped-call]
    return output


def kron_correction(z: Tensor, terms: KronTerms) -> Tensor:
    """ΔW·z for z of shape (…, d_in), as (…, d_out); both have the dtype of the terms."""
    A, B1, B2, scale = terms
    output: Tensor = _KronCorrection.apply(z, A, B1, B2, scale)  # type: ignore[no-untyped-call]
    return output


class _KronLinear(torch.autograd.Function):
    @staticmethod
    def forward(  # noqa: PLR0917
        ctx: Any,  # noqa: ANN401
        x: Tensor,
        z: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        A: Tensor,
        B1: Tensor,
        B2: Tensor,
        scale: float,
    ) -> Tensor:
        U = _project(z, B2)
        V = _mix(U, A, scale)
        y = torch.nn.functional.linear(x.reshape(-1, x.shape[-1]), weight, bias)
        y.view(-1, B1.shape[0]).addmm_(V.T, B1.T)
        ctx.save_for_backward(z, U, weight, A, B1, B2)
        ctx.scale, ctx.same = scale, x is z
        return y.view(*x.shape[:-1], weight.shape[0])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        z, U, weight, A, B1, B2 = ctx.saved_tensors
        dU, dA, dB1, dB2 = _factor_gradients(dy, z, U, A, B1, B2, ctx.scale)
        dx = dz = None
        if ctx.needs_input_grad[0]:
            dx = dy.reshape(-1, weight.shape[0]) @ weight
        if dx is not None and ctx.same:
            dx.view(-1, B2.shape[1]).addmm_(dU.T, B2)
        elif ctx.needs_input_grad[1]:
            dz = (dU.T @ B2).view(z.shape)
        dx = None if dx is None else dx.view(z.shape)
        return dx, dz, None, None, dA, dB1, dB2, None


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
        V = _mix(U, A, scale)
        ctx.save_for_backward(z, U, A, B1, B2)
        ctx.scale = scale
        return (V.T @ B1.T).view(*z.shape[:-1], A.shape[1] * B1.shape[0])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        z, U, A, B1, B2 = ctx.saved_tensors
        dU, dA, dB1, dB2 = _factor_gradients(dy, z, U, A, B1, B2, ctx.scale)
        dz = (dU.T @ B2).view(z.shape) if ctx.needs_input_grad[0] else None
        return dz, dA, dB1, dB2, None


def _project(z: Tensor, B2: Tensor) -> Tensor:
    """U = B2·Zᵀ, (M·r, T·d_A1)."""
    return B2 @ z.reshape(-1, B2.shape[1]).T


def _mix(U: Tensor, A: Tensor, scale: float) -> Tensor:
    """V = scale·A·U for each token and rank, (M·r, T·d_A2)."""
    terms, _, d_a1 = A.shape
    return torch.bmm(U.view(terms, -1, d_a1), (scale * A).mT).view(U.shape[0], -1)


def _factor_gradients(  # noqa: PLR0917
    dy: Tensor, z: Tensor, U: Tensor, A: Tensor, B1: Tensor, B2: Tensor, scale: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of U (M·r, T·d_A1), A, B1, B2 from that of the output. V is cheaper made anew than kept."""
    terms, d_a2, d_a1 = A.shape
    dY = dy.reshape(-1, B1.shape[0])
    dB1 = (_mix(U, A, scale) @ dY).T
    dV = (B1.T @ dY.T).view(terms, -1, d_a2)
    dA = scale * torch.bmm(dV.mT, U.view(terms, -1, d_a1))
    dU = torch.bmm(dV, scale * A).view(U.shape[0], -1)
    dB2 = dU @ z.reshape(-1, B2.shape[1])
    return dU, dA, dB1, dB2
