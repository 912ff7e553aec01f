"""The figures of a round as named numbers, as TensorBoard and its like take them."""

from __future__ import annotations

import math

from fedkron.ledger import Totals
from fedkron.rundir import folder_name
from fedkron.runlog import RoundFigures


def scalars(entry: RoundFigures, own: Totals, so_far: Totals) -> dict[str, float]:
    """What there is of: accuracies, loss, bytes of serialized messages (`own` of the round, `so_far` with all
    before it), failures, projection error, ε, seconds since the start.

    A task goes by its name as that of a folder, because names come from nodes.
    """
    found: dict[str, float | None] = {
        "accuracy/mean": entry.accuracy,
        "frozen base and head/mean": entry.head_only_accuracy,
        "majority/mean": entry.majority,
        "train/loss": entry.train_loss,
        "bytes/up": own.message_up,
        "bytes/down": own.message_down,
        "bytes/factor": own.factor,
        "bytes so far/up": so_far.message_up,
        "bytes so far/down": so_far.message_down,
        "bytes so far/LoRA-8 fp32": so_far.baseline,
        "bytes so far/factor": so_far.factor,
        "nodes/trained": sum(node.examples is not None for node in entry.nodes.values()),
        "nodes/failures": len(entry.failures),
        "aggregation/projection error": entry.projection_error,
        "privacy/epsilon": entry.privacy.epsilon if entry.privacy else None,
        "privacy/clipping norm": entry.privacy.clipping_norm if entry.privacy else None,
        "time/seconds": entry.seconds,
    }
    for task, figures in entry.tasks.items():
        found[f"accuracy/{folder_name(task)}"] = figures.accuracy
        found[f"frozen base and head/{folder_name(task)}"] = figures.head_only_accuracy
    named = {name.replace(" ", "_"): value for name, value in found.items()}
    return {name: value for name, value in named.items() if value is not None and not math.isnan(value)}
