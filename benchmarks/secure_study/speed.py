"""CPU time of the protocol, for one node and for the server, and of Flower's own masking on the same vector.

Nothing travels here: these are the functions that the Flower seam calls. Time is that of the process.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from flwr.common.secure_aggregation.ndarrays_arithmetic import parameters_addition, parameters_mod
from flwr.common.secure_aggregation.quantization import quantize as flower_quantize
from flwr.common.secure_aggregation.secaggplus_utils import pseudo_rand_gen

from fedkron.secure.codes import magnitudes, mean_of, quantize, steps_of
from fedkron.secure.keys import new_identity
from fedkron.secure.member import advertise, opened, revealed, share, total_mask
from fedkron.secure.roster import Policy, Session, roster
from fedkron.secure.unmasking import Unmasking
from fedkron.secure.upload import binding_of, form_of

TENSORS = 100
FLOWER_RANGE = 2**22
"""The default `quantization_range` of Flower's SecAgg+ workflow; sums of it are taken modulo 2**32."""

T = TypeVar("T")


@dataclass(frozen=True)
class Speed:
    """Milliseconds of CPU in a round: of one node, step by step, and of the server for all of them.

    `flower_ms` is what a node takes with Flower's own functions to quantize and mask the same vector: masks
    only, without keys and shares.
    """

    parameters: int
    nodes: int
    gone: int
    levels: int
    keys_ms: float
    shares_ms: float
    mask_ms: float
    reveal_ms: float
    server_ms: float
    flower_ms: float

    @property
    def node_ms(self) -> float:
        """All of a node's steps."""
        return self.keys_ms + self.shares_ms + self.mask_ms + self.reveal_ms


def speed(parameters: int, nodes: int, gone: int, levels: int) -> Speed:
    """Go through a round in which the last `gone` nodes vanish after they have shared their secrets."""
    session, policy = Session(1, 1, levels, bytes(32)), Policy()
    sizes = np.full(TENSORS, parameters // TENSORS, np.int64)
    steps = steps_of(np.full(TENSORS, 1e-3), levels)
    identities = [new_identity() for _ in range(nodes)]
    keys_ms, drawn = _timed(lambda: [advertise(session, n, identities[n]) for n in range(nodes)])
    advertised = [keys for _, keys in drawn]
    secrets = [own for own, _ in drawn]
    list_ms, members = _timed(lambda: roster(session, advertised, policy))
    shares_ms, sealed = _timed(lambda: [share(secrets[n], n, members) for n in range(nodes)])
    sharing, survivors = tuple(range(nodes)), list(range(nodes - gone))
    open_ms, held = _timed(
        lambda: [
            opened(secrets[n], n, members, {other: sealed[other][n].box for other in sharing})
            for n in survivors
        ]
    )
    form, binding = form_of(members, sizes), binding_of(members, sharing)
    vectors = [
        np.random.default_rng(n).normal(0, 1e-3, int(sizes.sum())).astype(np.float32) for n in survivors
    ]

    def masked(node: int) -> bytes:
        codes, _ = quantize(vectors[node], sizes, steps, levels)
        words = form.pack(codes, magnitudes(vectors[node], sizes))
        words += total_mask(secrets[node], node, members, sharing, binding=binding, words=form.words)
        return form.to_bytes(words, 1, binding)

    mask_ms, uploads = _timed(lambda: [masked(n) for n in survivors])
    reveal_ms, shown = _timed(lambda: [revealed(n, members, held[n], survivors) for n in survivors])

    def unmasked() -> np.ndarray:
        unmasking = Unmasking(
            members,
            {o: {h: one.commitments for h, one in enumerate(sealed[o])} for o in sharing},
            survivors,
        )
        for node, shares in zip(survivors, shown, strict=True):
            unmasking.take(node, shares)
        total = np.zeros(form.words, np.uint64)
        for upload in uploads:
            total += form.from_bytes(upload, 1)[0]
        sums, _ = form.unpack(unmasking.remove_masks(total, binding))
        return mean_of(sums, sizes, steps, levels, len(survivors))

    server_ms, mean = _timed(unmasked)
    coded = [v - quantize(v, sizes, steps, levels)[1] for v in vectors]
    if not np.allclose(mean, np.mean(coded, axis=0), atol=1e-6):
        raise AssertionError("the unmasked mean is not that of the codes")
    flower_ms, _ = _timed(lambda: _masked_by_flower(vectors[0], nodes))
    return Speed(
        parameters,
        nodes,
        gone,
        levels,
        keys_ms / nodes,
        list_ms + shares_ms / nodes + open_ms / len(survivors),
        mask_ms / len(survivors),
        reveal_ms / len(survivors),
        list_ms + server_ms,
        flower_ms,
    )


def _masked_by_flower(vector: np.ndarray, nodes: int) -> list[np.ndarray]:
    """What `secaggplus_mod` does to an update in its stage 2, with all other nodes as neighbours."""
    total = flower_quantize([vector], 0.01, FLOWER_RANGE)
    for node in range(nodes):
        mask = pseudo_rand_gen(bytes([node]) * 32, 2**32, [vector.shape])
        total = parameters_addition(total, mask)
    return parameters_mod(total, 2**32)


def _timed(work: Callable[[], T]) -> tuple[float, T]:
    started = time.process_time()
    result = work()
    return 1000 * (time.process_time() - started), result
