"""Differential privacy of a client by the client itself: Flower's mod, before anything is encoded.

What a node has trained is clipped to a norm C around what it received, and Gaussian noise of standard
deviation z·C is added to each number, before it leaves. Two data sets of a node can lead to updates that are
2·C apart: the noise multiplier of an upload is z/2. Encoding, and what error feedback keeps of earlier
rounds, come after that, and are made of noisy numbers only.
"""

from __future__ import annotations

import math

import numpy as np
from flwr.app import Context, Message, MetricRecord
from flwr.clientapp.mod import LocalDpMod
from flwr.clientapp.typing import ClientAppCallable, Mod

from fedkron.flower.noise import noise_of_the_system

ANY_DELTA = 1e-5
"""Flower's mod wants ε and δ, and makes of them the noise by a bound that is not used here: any δ will do."""


def local_privacy(norm: float, noise_multiplier: float, *, weight_key: str = "num-examples") -> Mod:
    """A mod for training: all that leaves are the noisy arrays, and 1 for the number of examples.

    Put `compressed_exchange` outside of it. The message and the reply must have one ArrayRecord each, with
    the same names.
    """
    # std = sensitivity · √(2 ln(1.25/δ)) / ε is z·C for this ε.
    privatize = LocalDpMod(
        np.float64(norm),  # an update of nothing has norm 0, by which Flower divides
        sensitivity=noise_multiplier * norm,
        epsilon=math.sqrt(2 * math.log(1.25 / ANY_DELTA)),
        delta=ANY_DELTA,
    )

    def mod(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
        reply = call_next(message, context)  # trained with the seed of the run, as ever
        with noise_of_the_system(), np.errstate(divide="ignore"):
            reply = privatize(message, context, lambda *_: reply)
        if not reply.has_error():
            for key in list(reply.content.metric_records):
                reply.content[key] = MetricRecord({weight_key: 1})
        return reply

    return mod


def multiplier(noise_multiplier: float) -> float:
    """Of one upload, whatever the node's data are replaced by."""
    return noise_multiplier / 2
