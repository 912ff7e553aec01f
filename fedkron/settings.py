"""The settings of a federated run: one typed object, checked before anything starts.

The keys are those of `[tool.flwr.app.config]` in pyproject.toml: nested tables there are dataclasses
here, and `max-length` is `max_length`. docs/configuration.md explains each.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, TypeVar, get_type_hints

from fedkron.aggregation import AGGREGATIONS, ROBUST_RULES
from fedkron.aggregation.robust_rules import MEAN
from fedkron.compression import codec
from fedkron.errors import ConfigError
from fedkron.kinds import ADAPTER_KINDS

if TYPE_CHECKING:  # torch is imported only where a model is: a server can do without
    from fedkron.adapters import AdapterSpec

T = TypeVar("T")

PARTITIONS = ("iid", "dirichlet")
HEADS = ("local", "shared")
TRUNCATION_SIDES = ("right", "left")
DEVICES = ("auto", "cpu", "cuda")
EQUAL_SIZES, OWN_SIZES = SIZES = ("equal", "own")
ONE_GROUP, TASK_GROUPS, CLUSTERS = GROUPS = ("one", "task", "cluster")
NO_PRIVACY, CENTRAL_PRIVACY, LOCAL_PRIVACY = PRIVACIES = ("none", "central", "local")
FIXED_CLIPPING, ADAPTIVE_CLIPPING = CLIPPINGS = ("fixed", "adaptive")
STRATEGIES = ("fedavg", "fedprox", "fedavgm", "fedadagrad", "fedadam", "fedyogi")
SERVER_OPTIMIZERS = STRATEGIES[2:]


@dataclass(frozen=True)
class AdapterSettings:
    """`adapter.*`: what is trained; `d_a2 = 0` takes the power of two nearest to hidden/200.

    With `sizes = "own"` a node's config may give it a `rank` and a `d-a2` of its own.
    """

    kind: str = "kron_lora"
    rank: int = 8
    alpha: float = 32.0
    dropout: float = 0.1
    d_a1: int = 2
    d_a2: int = 0
    terms: int = 2
    targets: str = "*"
    sizes: str = EQUAL_SIZES

    def spec(self) -> AdapterSpec:
        """The same as an `AdapterSpec`."""
        from fedkron.adapters import AdapterSpec

        targets = _comma_separated(self.targets)
        return AdapterSpec(
            self.kind,
            self.rank,
            self.alpha,
            self.dropout,
            self.d_a1,
            self.d_a2 or None,
            targets,
            terms=self.terms,
        )


@dataclass(frozen=True)
class CodecSettings:
    """`codec.*`: how updates (`upload`) and the global adapter (`broadcast`) travel."""

    upload: str = "ecsq"
    broadcast: str = "ecsq"


@dataclass(frozen=True)
class TrainSettings:
    """`train.*`: local fine-tuning. Lengths in tokens; 0 examples means all of them."""

    epochs: int = 1
    batch_size: int = 32
    learning_rate: float = 3e-4
    head_learning_rate: float = 3e-3
    weight_decay: float = 0.01
    max_length: int = 64
    truncation_side: str = "right"
    max_train_examples: int = 0
    max_test_examples: int = 0


@dataclass(frozen=True)
class PartitionSettings:
    """`partition.*`: how nodes that have the same task share its training examples."""

    kind: str = "iid"
    alpha: float = 0.5


@dataclass(frozen=True)
class ServerSettings:
    """`server.*`: what the server makes of the aggregate; a learning rate of 0 is the strategy's usual
    one.
    """

    strategy: str = "fedavg"
    learning_rate: float = 0.0
    proximal_mu: float = 0.01


@dataclass(frozen=True)
class GroupSettings:
    """`groups.*`: which nodes share an adapter; the last two are for clusters."""

    by: str = ONE_GROUP
    clusters: int = 2
    warm_up: int = 1


@dataclass(frozen=True)
class AdmissionSettings:
    """`admission.*`: an upload may have `norm_limit` times the usual norm of uploads (0: any)."""

    norm_limit: float = 10.0


@dataclass(frozen=True)
class RobustSettings:
    """`robust.*`: what takes the place of the mean where some nodes may lie, and which share of them may."""

    rule: str = MEAN
    attackers: float = 0.2


@dataclass(frozen=True)
class PrivacySettings:
    """`privacy.*`: differential privacy of clients, by a trusted server (`central`) or by each node itself
    (`local`); the noise is `noise_multiplier` times the norm that each update is clipped to.
    """

    kind: str = NO_PRIVACY
    clipping: str = FIXED_CLIPPING
    clipping_norm: float = 1.0
    noise_multiplier: float = 1.0
    delta: float = 1e-5


@dataclass(frozen=True)
class SecureSettings:
    """`secure.*`: whether the server sees sums of uploads only; codes have `levels` values each, the share
    `threshold` of a round's nodes must stay to its end, and no node takes part with fewer than `min_nodes`.
    """

    aggregation: bool = False
    levels: int = 5
    threshold: float = 0.6
    min_nodes: int = 3


@dataclass(frozen=True)
class Settings:
    """All settings of a run. Build it with `Settings.from_run_config`."""

    base: str = "demo:all-minilm-l6-v2"
    tasks: str = "demo:trec,demo:spam,demo:film,demo:tweets"
    num_server_rounds: int = 3
    aggregation: str = "factorwise"
    head: str = "local"
    head_labels: str = ""
    fraction_train: float = 1.0
    fraction_evaluate: float = 1.0
    max_failure_fraction: float = 0.5
    round_timeout: float = 3600.0
    seed: int = 0
    output_dir: str = "runs"
    run_name: str = ""
    resume: bool = False
    device: str = "auto"
    adapter: AdapterSettings = field(default_factory=AdapterSettings)
    codec: CodecSettings = field(default_factory=CodecSettings)
    train: TrainSettings = field(default_factory=TrainSettings)
    partition: PartitionSettings = field(default_factory=PartitionSettings)
    server: ServerSettings = field(default_factory=ServerSettings)
    groups: GroupSettings = field(default_factory=GroupSettings)
    admission: AdmissionSettings = field(default_factory=AdmissionSettings)
    robust: RobustSettings = field(default_factory=RobustSettings)
    privacy: PrivacySettings = field(default_factory=PrivacySettings)
    secure: SecureSettings = field(default_factory=SecureSettings)

    @staticmethod
    def from_run_config(config: Mapping[str, object]) -> Settings:
        """Check a Flower run config (dotted keys) and make it typed; absent keys take their defaults.

        Raises `ConfigError` that names the key, its value, and what it may be.
        """
        from fedkron.setting_combinations import check_combination  # which knows what settings are

        settings = _typed(Settings, config, prefix="")
        known = set(run_config(settings))
        if unknown := sorted(config.keys() - known):
            raise ConfigError(
                f"run-config key {unknown[0]!r} does not exist: the keys are {', '.join(sorted(known))}"
            )
        _check_values(settings)
        check_combination(settings)
        return settings

    @property
    def task_sources(self) -> tuple[str, ...]:
        """The tasks as a list."""
        return _comma_separated(self.tasks)

    @property
    def shared_head_outputs(self) -> int:
        """Outputs of the shared head: one per label, or 1 for multiple choice; 0 when heads are local."""
        if self.head == "local":
            return 0
        return len(_comma_separated(self.head_labels)) or 1

    @property
    def shared_labels(self) -> tuple[str, ...]:
        """The label space of a shared head."""
        return _comma_separated(self.head_labels)


def run_config(settings: object, prefix: str = "") -> dict[str, Any]:
    """Settings as a flat run config with dotted keys: the inverse of `Settings.from_run_config`."""
    flat: dict[str, Any] = {}
    for item in fields(settings):  # type: ignore[arg-type]
        value = getattr(settings, item.name)
        key = prefix + item.name.replace("_", "-")
        flat.update(run_config(value, f"{key}.") if is_dataclass(value) else {key: value})
    return flat


def _typed(cls: type[T], config: Mapping[str, object], prefix: str) -> T:
    hints = _hints(cls)  # type: ignore[arg-type]  # a class is hashable
    values: dict[str, object] = {}
    for item in fields(cls):  # type: ignore[arg-type]
        key = prefix + item.name.replace("_", "-")
        wanted = hints[item.name]
        if isinstance(wanted, type) and is_dataclass(wanted):
            values[item.name] = _typed(wanted, config, f"{key}.")
        elif key in config:
            values[item.name] = _converted(key, config[key], wanted)
    return cls(**values)


@cache  # it takes most of the time that settings take, and they are read for every message
def _hints(cls: type) -> dict[str, Any]:
    return get_type_hints(cls)


def _converted(key: str, value: object, wanted: type) -> object:
    # TOML writes 1 where a float is meant; nothing else is converted, and a bool is not a number.
    if wanted is float and type(value) is int:
        value = float(value)
    if type(value) is not wanted:
        raise ConfigError(
            f"run-config key {key!r} is {value!r} ({type(value).__name__}): "
            f"it must be of type {wanted.__name__}"
        )
    if isinstance(value, float) and not math.isfinite(value):
        raise ConfigError(f"run-config key {key!r} is {value}: it must be a finite number")
    return value


def _check_values(settings: Settings) -> None:
    train, partition = settings.train, settings.partition
    for key, value, allowed in (
        ("aggregation", settings.aggregation, (*AGGREGATIONS, "alternating")),
        ("head", settings.head, HEADS),
        ("device", settings.device, DEVICES),
        ("adapter.kind", settings.adapter.kind, tuple(ADAPTER_KINDS)),
        ("adapter.sizes", settings.adapter.sizes, SIZES),
        ("groups.by", settings.groups.by, GROUPS),
        ("server.strategy", settings.server.strategy, STRATEGIES),
        ("robust.rule", settings.robust.rule, ROBUST_RULES),
        ("privacy.kind", settings.privacy.kind, PRIVACIES),
        ("privacy.clipping", settings.privacy.clipping, CLIPPINGS),
        ("partition.kind", partition.kind, PARTITIONS),
        ("train.truncation-side", train.truncation_side, TRUNCATION_SIDES),
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
    if not _comma_separated(settings.adapter.targets):
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


def _comma_separated(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())
