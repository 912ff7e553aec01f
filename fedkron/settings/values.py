"""Which values each setting may have."""

from __future__ import annotations

from fedkron.aggregation import AGGREGATIONS, ROBUST_RULES
from fedkron.compression import codec
from fedkron.errors import ConfigError
from fedkron.kinds import ADAPTER_KINDS
from fedkron.settings.schema import (
    CLIPPINGS,
    DEVICES,
    DTYPES,
    GROUPS,
    HEADS,
    PARTITIONS,
    PRECISIONS,
    PRIVACIES,
    SIZES,
    STRATEGIES,
    TRUNCATION_SIDES,
    Settings,
    comma_separated,
)


def check_values(settings: Settings) -> None:
    """Raise `ConfigError` that names the setting, its value, and what it may be."""
    train, partition = settings.train, settings.partition
    for key, value, allowed in (
        ("aggregation", settings.aggregation, (*AGGREGATIONS, "alternating")),
        ("head", settings.head, HEADS),
        ("device", settings.device, DEVICES),
        ("base-dtype", settings.base_dtype, DTYPES),
        ("adapter.kind", settings.adapter.kind, tuple(ADAPTER_KINDS)),
        ("adapter.sizes", settings.adapter.sizes, SIZES),
        ("groups.by", settings.groups.by, GROUPS),
        ("server.strategy", settings.server.strategy, STRATEGIES),
        ("robust.rule", settings.robust.rule, ROBUST_RULES),
        ("privacy.kind", settings.privacy.kind, PRIVACIES),
        ("privacy.clipping", settings.privacy.clipping, CLIPPINGS),
        ("partition.kind", partition.kind, PARTITIONS),
        ("train.truncation-side", train.truncation_side, TRUNCATION_SIDES),
        ("train.precision", train.precision, PRECISIONS),
    ):
        if value not in allowed:
            raise ConfigError(f"run-config key {key!r} is {value!r}: it must be one of {', '.join(allowed)}")
    for key, name in (("codec.upload", settings.codec.upload), ("codec.broadcast", settings.codec.broadcast)):
        _check_codec(key, name)
    for key, number, low, high in (
        ("num-server-rounds", settings.num_server_rounds, 1, None),
        ("fraction-train", settings.fraction_train, 0, 1),
        ("fraction-evaluate", settings.fraction_evaluate, 0, 1),
        ("max-failure-fraction", settings.max_failure_fraction, 0, 1),
        ("seed", settings.seed, 0, 2**63 - 1),
        ("adapter.rank", settings.adapter.rank, 1, None),
        ("adapter.dropout", settings.adapter.dropout, 0, 0.99),
        ("adapter.d-a1", settings.adapter.d_a1, 1, None),
        ("adapter.d-a2", settings.adapter.d_a2, 0, None),
        ("adapter.terms", settings.adapter.terms, 1, None),
        ("groups.clusters", settings.groups.clusters, 2, None),
        ("groups.warm-up", settings.groups.warm_up, 1, None),
        ("server.learning-rate", settings.server.learning_rate, 0, None),
        ("admission.norm-limit", settings.admission.norm_limit, 0, None),
        ("robust.attackers", settings.robust.attackers, 0, 0.49),
        ("privacy.noise-multiplier", settings.privacy.noise_multiplier, 0, None),
        ("privacy.delta", settings.privacy.delta, 0, 0.1),
        ("secure.levels", settings.secure.levels, 2, 255),
        ("secure.threshold", settings.secure.threshold, 0.5, 1),
        ("secure.min-nodes", settings.secure.min_nodes, 3, None),
        ("server.proximal-mu", settings.server.proximal_mu, 0, None),
        ("train.epochs", train.epochs, 1, None),
        ("train.batch-size", train.batch_size, 1, None),
        ("train.weight-decay", train.weight_decay, 0, None),
        ("train.max-length", train.max_length, 2, None),
        ("train.max-train-examples", train.max_train_examples, 0, None),
        ("train.max-test-examples", train.max_test_examples, 0, None),
    ):
        if number < low or (high is not None and number > high):
            span = f"at least {low}" if high is None else f"between {low} and {high}"
            raise ConfigError(f"run-config key {key!r} is {number}: it must be {span}")
    for key, number in (
        ("fraction-train", settings.fraction_train),
        ("adapter.alpha", settings.adapter.alpha),
        ("privacy.clipping-norm", settings.privacy.clipping_norm),
        ("privacy.delta", settings.privacy.delta),
        ("round-timeout", settings.round_timeout),
        ("train.learning-rate", train.learning_rate),
        ("train.head-learning-rate", train.head_learning_rate),
        ("partition.alpha", partition.alpha),
    ):
        if number <= 0:
            raise ConfigError(f"run-config key {key!r} is {number}: it must be greater than 0")
    if not settings.task_sources:
        raise ConfigError("run-config key 'tasks' is empty: name at least one task, e.g. demo:trec")
    if not comma_separated(settings.adapter.targets):
        raise ConfigError("run-config key 'adapter.targets' is empty: use '*' for every linear layer")
    if settings.head == "local" and settings.head_labels:
        raise ConfigError("run-config key 'head-labels' is set but head is 'local': set head = 'shared'")
    if len(set(settings.shared_labels)) != len(settings.shared_labels):
        raise ConfigError(f"run-config key 'head-labels' is {settings.head_labels!r}: a label appears twice")
    if set("/\\:\0") & set(settings.run_name) or settings.run_name.startswith("."):
        raise ConfigError(
            f"run-config key 'run-name' is {settings.run_name!r}: it must be a plain folder name"
        )


def _check_codec(key: str, name: str) -> None:
    try:
        codec(name)
    except ConfigError as error:
        raise ConfigError(f"run-config key {key!r} is {name!r}: {error}") from None
