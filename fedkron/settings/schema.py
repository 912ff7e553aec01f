"""The settings of a federated run: one typed object, checked before anything starts.

The keys are those of `[tool.flwr.app.config]` in pyproject.toml: nested tables there are dataclasses
here, and `max-length` is `max_length`. docs/configuration.md explains each.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from fedkron.aggregation.robust_rules import MEAN
from fedkron.settings.flat import typed

if TYPE_CHECKING:  # torch is imported only where a model is: a server can do without
    from fedkron.adapters import AdapterSpec

PARTITIONS = ("iid", "dirichlet")
HEADS = ("local", "shared")
TRUNCATION_SIDES = ("right", "left")
DEVICES = ("auto", "cpu", "cuda")
AUTO, FLOAT32, BFLOAT16 = PRECISIONS = ("auto", "float32", "bfloat16")
DTYPES = (FLOAT32, BFLOAT16)
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

        targets = comma_separated(self.targets)
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
    precision: str = AUTO
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
    base_dtype: str = FLOAT32
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
        from fedkron.settings.combinations import check_combination  # these know what settings are
        from fedkron.settings.values import check_values

        settings = typed(Settings, config)
        check_values(settings)
        check_combination(settings)
        return settings

    @property
    def task_sources(self) -> tuple[str, ...]:
        """The tasks as a list."""
        return comma_separated(self.tasks)

    @property
    def shared_head_outputs(self) -> int:
        """Outputs of the shared head: one per label, or 1 for multiple choice; 0 when heads are local."""
        if self.head == "local":
            return 0
        return len(comma_separated(self.head_labels)) or 1

    @property
    def shared_labels(self) -> tuple[str, ...]:
        """The label space of a shared head."""
        return comma_separated(self.head_labels)


def comma_separated(text: str) -> tuple[str, ...]:
    """The parts of a list that is written as one string."""
    return tuple(part.strip() for part in text.split(",") if part.strip())
