"""What the server holds: alternating factors, terms that become part of the base, groups, server
optimizers.
"""

from collections.abc import Mapping, Sequence
from functools import partial

import numpy as np
import pytest
from flwr.app import ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import FedAdam, FedAvg, FedAvgM, FedYogi
from seam_cases import State, record, state_of

from fedkron.aggregation import Robust, RobustRule, Size, aggregate
from fedkron.errors import AdapterError, ConfigError, RunError
from fedkron.flower import ORIGIN, CompressedGrid, FedKron, RoundReport, compressed_exchange
from fedkron.flower.clustered import clustered
from fedkron.flower.global_adapter import ARRAYS, FOR_ALL, TERMS, GlobalAdapter
from fedkron.flower.introductions import introduction_of
from fedkron.flower.one_for_all import one_for_all
from fedkron.flower.per_task import PerTask
from fedkron.layout import AdapterLayout, ModuleLayout, TensorLayout
from fedkron.ledger import Ledger
from simulations.in_process import InProcessGrid

KRON = ModuleLayout(
    "query",
    "kron_lora",
    4.0,
    (32, 32),
    (TensorLayout("A", (4, 2)), TensorLayout("B1", (8, 2)), TensorLayout("B2", (2, 16))),
)
LAYOUT = AdapterLayout("a base", (KRON,))
WITH_HEAD = AdapterLayout("a base", (KRON,), (TensorLayout("head.bias", (3,)),))
WEIGHTS = (10, 20, 30, 40)
NODES = len(WEIGHTS)


def random_state(seed: int, layout: AdapterLayout = LAYOUT) -> State:
    rng = np.random.default_rng(seed)
    return {t.name: rng.standard_normal(t.shape, dtype=np.float32) for t in layout.tensors}


def delta(state: Mapping[str, np.ndarray]) -> np.ndarray:
    A, B1, B2 = (state[f"query.{name}"].astype(np.float64) for name in ("A", "B1", "B2"))
    return 4.0 * np.kron(A, B1 @ B2)


def dense_terms(state: Mapping[str, np.ndarray]) -> np.ndarray:
    A, B1, B2 = (state[f"query.terms.{name}"].astype(np.float64) for name in ("A", "B1", "B2"))
    return sum(np.kron(a, b1 @ b2) for a, b1, b2 in zip(A, B1, B2, strict=True))


class Learners:
    """An app whose nodes go a third of the way to a target of their own, and what each of them saw."""

    def __init__(self, targets: Sequence[State], *, tasks: Sequence[str] = ("trec", "spam")) -> None:
        self.targets, self.tasks = targets, tasks
        self.received: list[tuple[int, int, dict[str, State]]] = []
        self.trained: dict[tuple[int, int], State] = {}
        self.app = ClientApp(mods=[compressed_exchange])
        self.app.query()(self.introduce)
        self.app.train()(self.train)
        self.app.evaluate()(self.evaluate)

    def introduce(self, message: Message, context: Context) -> Message:
        partition = self.partition(context)
        return Message(introduction_of(self.task(partition), partition, Size(2, None)), reply_to=message)

    def train(self, message: Message, context: Context) -> Message:
        config, partition = message.content["config"], self.partition(context)
        arrays = {key: state_of(r) for key, r in message.content.array_records.items()}
        self.received.append((int(config["server-round"]), partition, arrays))
        trains = config.get("trains", [key for key in arrays if key.startswith(ARRAYS)])
        answered = {
            key: {
                name: v + (self.targets[partition][name] - v) / np.float32(3)
                for name, v in arrays[key].items()
            }
            for key in trains
        }
        whole = {n: v for key, part in arrays.items() if key.startswith(ARRAYS) for n, v in part.items()}
        self.trained[int(config["server-round"]), partition] = whole | {
            n: v for part in answered.values() for n, v in part.items()
        }
        content = {key: record(part) for key, part in answered.items()}
        return Message(RecordDict({**content, **self.about(partition, loss=1.0)}), reply_to=message)

    def evaluate(self, message: Message, context: Context) -> Message:
        return Message(RecordDict(self.about(self.partition(context), accuracy=0.5)), reply_to=message)

    def about(self, partition: int, **metrics: float) -> dict[str, object]:
        return {
            "metrics": MetricRecord({"num-examples": WEIGHTS[partition], **metrics}),
            ORIGIN: ConfigRecord({"task": self.task(partition), "partition": partition}),
        }

    def task(self, partition: int) -> str:
        return self.tasks[partition % len(self.tasks)]

    @staticmethod
    def partition(context: Context) -> int:
        return int(context.node_config["partition-id"])


class Run:
    """A run on lossless codecs, and what was held after each round."""

    def __init__(
        self, learners: Learners, *, rounds: int, layout: AdapterLayout = LAYOUT, **options: object
    ) -> None:
        self.reports: list[RoundReport] = []
        self.held: list[dict[str, dict[str, State]]] = []

        def on_round(report: RoundReport, adapters: GlobalAdapter) -> None:
            self.reports.append(report)
            self.held.append(
                {
                    name: {key: state_of(arrays) for key, arrays in sent.records.items()}
                    for name, sent in adapters.held().items()
                }
            )

        self.ledger = Ledger()
        self.strategy = FedKron(layout, on_round=on_round, **options)
        grid = InProcessGrid(learners.app, NODES, {})
        seam = CompressedGrid(grid, layout=layout, upload="fp32", broadcast="fp32", ledger=self.ledger)
        self.start = random_state(99, layout)
        result = self.strategy.start(seam, record(self.start), num_rounds=rounds)
        self.arrays = state_of(result.arrays)

    def bytes_up(self, round_: int) -> int:
        return sum(
            t.factor_bytes
            for t in self.ledger.transfers
            if (t.round, t.phase, t.direction) == (round_, "train", "up")
        )


def targets(layout: AdapterLayout = LAYOUT) -> list[State]:
    return [random_state(partition, layout) for partition in range(NODES)]


def assert_close(
    actual: Mapping[str, np.ndarray], expected: Mapping[str, np.ndarray], tolerance: float
) -> None:
    assert actual.keys() == expected.keys()
    for name, values in expected.items():
        np.testing.assert_allclose(actual[name], values, rtol=tolerance, atol=tolerance)


# ------------------------------------------------------------------ alternating


def test_alternating_mean_of_one_factor_is_the_mean_of_the_products_exactly() -> None:
    learners = Learners(targets())
    run = Run(learners, rounds=6, aggregation="alternating")
    before = run.start
    for number, turn in enumerate(("B1", "B2", "B1", "B2", "A", "B1"), start=1):
        after = run.held[number - 1][FOR_ALL]
        state = {name: values for part in after.values() for name, values in part.items()}
        mean = np.average([delta(learners.trained[number, k]) for k in range(NODES)], axis=0, weights=WEIGHTS)
        np.testing.assert_allclose(delta(state), mean, rtol=1e-4, atol=1e-4)
        changed = {name for name in state if not np.array_equal(state[name], before[name])}
        assert changed == {f"query.{turn}"}
        before = state
    assert_close(run.arrays, before, 0)


def test_alternating_round_costs_the_bytes_of_its_factor() -> None:
    run = Run(Learners(targets()), rounds=5, aggregation="alternating")
    assert [run.bytes_up(number) for number in (1, 2, 5)] == [4 * NODES * n for n in (8 * 2, 2 * 16, 4 * 2)]


def test_alternating_trains_a_shared_head_in_every_round() -> None:
    learners = Learners(targets(WITH_HEAD))
    run = Run(learners, rounds=2, aggregation="alternating", layout=WITH_HEAD)
    for number in (1, 2):
        mean = np.average(
            [learners.trained[number, k]["head.bias"] for k in range(NODES)], axis=0, weights=WEIGHTS
        )
        assert np.allclose(run.held[number - 1][FOR_ALL][f"{ARRAYS}.dense"]["head.bias"], mean, atol=1e-6)
    assert list(run.arrays) == [tensor.name for tensor in WITH_HEAD.tensors]


def test_alternating_refuses_kinds_that_are_not_linear_in_each_factor() -> None:
    moka = ModuleLayout("query", "moka", 1.0, (4, 4), (TensorLayout("gates", (2,)),))
    with pytest.raises(AdapterError, match="this one is moka: use factorwise"):
        FedKron(AdapterLayout("", (moka,)), aggregation="alternating")
    lora = ModuleLayout(
        "v", "lora", 1.0, (4, 4), (TensorLayout("lora_A", (1, 4)), TensorLayout("lora_B", (4, 1)))
    )
    with pytest.raises(AdapterError, match="this one is kron_lora, lora"):
        FedKron(AdapterLayout("", (KRON, lora)), aggregation="alternating")


# ------------------------------------------------------------------ what becomes part of the base


@pytest.mark.parametrize("aggregation", ["merged_exact", "stacked"])
def test_base_terms_and_adapter_together_are_the_exact_mean_in_every_round(aggregation: str) -> None:
    learners = Learners(targets())
    run = Run(learners, rounds=3, aggregation=aggregation)
    base = np.zeros((32, 32))
    for number in (1, 2, 3):
        held = run.held[number - 1][FOR_ALL]
        mean = np.average([delta(learners.trained[number, k]) for k in range(NODES)], axis=0, weights=WEIGHTS)
        expected = base + mean
        base = sum(dense_terms(held[f"{TERMS}.{n}"]) for n in range(1, number + 1))
        actual = base + delta(held[ARRAYS])
        assert np.linalg.norm(actual - expected) < 1e-5 * np.linalg.norm(expected)


def test_nodes_get_all_terms_of_earlier_rounds_and_each_only_once_on_the_wire() -> None:
    learners = Learners(targets())
    run = Run(learners, rounds=3, aggregation="merged_exact")
    third = [arrays for number, _, arrays in learners.received if number == 3]
    assert all(set(arrays) == {ARRAYS, f"{TERMS}.1", f"{TERMS}.2"} for arrays in third)
    down = [t for t in run.ledger.transfers if (t.round, t.phase, t.direction) == (3, "train", "down")]
    # Everybody has evaluated round 2: neither the adapter nor the terms travel again.
    assert max(t.factor_bytes + t.head_bytes for t in down) == 0


# ------------------------------------------------------------------ groups


@pytest.mark.parametrize("aggregation", ["factorwise", "merged"])
def test_tasks_have_adapters_of_their_own_and_share_nothing(aggregation: str) -> None:
    learners = Learners(targets())
    run = Run(learners, rounds=3, aggregation=aggregation, adapters=PerTask)
    state = dict.fromkeys(("trec", "spam"), run.start)
    for number in (1, 2, 3):
        for task, members in (("trec", (0, 2)), ("spam", (1, 3))):
            adapters = [learners.trained[number, k] for k in members]
            for k in members:
                (received,) = [r[ARRAYS] for n, p, r in learners.received if (n, p) == (number, k)]
                assert_close(received, state[task], 1e-5)
            state[task] = aggregate(aggregation, adapters, [WEIGHTS[k] for k in members], LAYOUT).adapter
            assert_close(run.held[number - 1][task][ARRAYS], state[task], 1e-5)
    assert run.reports[-1].groups == {"trec": ["trec-0", "trec-2"], "spam": ["spam-1", "spam-3"]}
    both = aggregate(aggregation, [state["spam"], state["trec"]], [60, 40], LAYOUT).adapter
    assert_close(run.arrays, both, 1e-5)


@pytest.mark.parametrize("aggregation", ["factorwise", "merged"])
@pytest.mark.parametrize("rule", ["clip", "median", "multi-krum"])
def test_where_nodes_may_lie_the_rule_works_on_what_was_sent_and_came_back(
    aggregation: str, rule: str
) -> None:
    robust = RobustRule(rule, 0.2)
    learners = Learners(targets())
    run = Run(learners, rounds=2, aggregation=aggregation, adapters=partial(one_for_all, rule=robust))
    state = run.start
    for number in (1, 2):
        combining = Robust(aggregation, LAYOUT, robust, state)
        for k in range(NODES):
            combining.add(learners.trained[number, k], 1)
        state = combining.finish().adapter
        assert_close(run.held[number - 1][FOR_ALL][ARRAYS], state, 1e-5)


@pytest.mark.parametrize("adapters", [PerTask, clustered(2, 1, RobustRule("median"))])
def test_groups_follow_the_rule_too_and_count_nodes_not_what_they_claim(adapters: object) -> None:
    two = [random_state(100), random_state(200)]
    learners = Learners([two[k % 2] for k in range(NODES)])
    made = partial(PerTask, rule=RobustRule("median")) if adapters is PerTask else adapters
    run = Run(learners, rounds=2, aggregation="factorwise", adapters=made)
    groups = [name for name in run.held[-1] if name != FOR_ALL]
    assert len(groups) == 2
    for group in groups:
        member = min(int(name.rpartition("-")[2]) for name in run.reports[-1].groups[group])
        mine = [learners.trained[2, k] for k in (member, member + 2)]
        median = {name: np.median([adapter[name] for adapter in mine], axis=0) for name in mine[0]}
        assert_close(run.held[-1][group][ARRAYS], median, 1e-5)
    both = [run.held[-1][group][ARRAYS] for group in groups]
    # Claimed weights are 10 to 40: they would favour the second group.
    assert_close(run.arrays, {n: (both[0][n] + both[1][n]) / 2 for n in both[0]}, 1e-5)


def test_a_rule_is_refused_where_there_is_no_mean_to_take_the_place_of() -> None:
    for aggregation in ("alternating", "stacked", "merged_exact"):
        with pytest.raises(ConfigError, match=f"'median' is not for aggregation '{aggregation}'"):
            one_for_all(LAYOUT, aggregation, RobustRule("median"))


def test_node_that_does_not_introduce_itself_is_a_failure_and_the_others_go_on() -> None:
    class Shy(Learners):
        def introduce(self, message: Message, context: Context) -> Message:
            if self.partition(context) == 3:
                raise RuntimeError("who is asking?")
            return super().introduce(message, context)

    learners = Shy(targets())
    run = Run(learners, rounds=1, adapters=PerTask)
    assert {partition for _, partition, _ in learners.received} == {0, 1, 2}
    assert all(f.startswith("node 1003: no introduction: ") for f in run.reports[0].failures)
    with pytest.raises(RunError, match="round 1: 1 of 4 clients failed in introducing themselves"):
        Run(Shy(targets()), rounds=1, adapters=PerTask, max_failure_fraction=0.1)


def test_clusters_are_found_from_updates_and_then_learn_apart() -> None:
    two = [random_state(100), random_state(200)]
    jitter = [random_state(partition) for partition in range(NODES)]
    alike = [{n: two[k % 2][n] + np.float32(0.1) * jitter[k][n] for n in two[0]} for k in range(NODES)]
    learners = Learners(alike, tasks=("unknown",))
    run = Run(learners, rounds=4, adapters=clustered(2, 2))
    apart = {FOR_ALL, "cluster-1", "cluster-2"}
    assert [set(held) for held in run.held] == [{FOR_ALL}, {FOR_ALL}, apart, apart]
    assert [bool(report.groups) for report in run.reports] == [False, False, True, True]
    groups = {group: set(nodes) for group, nodes in run.reports[-1].groups.items()}
    assert groups == {"cluster-1": {"unknown-0", "unknown-2"}, "cluster-2": {"unknown-1", "unknown-3"}}
    final = [run.held[-1][f"cluster-{k + 1}"][ARRAYS] for k in range(2)]
    for k in range(2):
        own, other = (np.linalg.norm(final[k]["query.B2"] - two[j]["query.B2"]) for j in (k, 1 - k))
        assert own < 0.5 * other


def test_node_that_comes_after_the_clusters_were_found_joins_the_nearest() -> None:
    two = [random_state(100), random_state(200)]
    learners = Learners([two[k % 2] for k in range(NODES)])
    strategy = FedKron(LAYOUT, adapters=clustered(2, 1), min_train_nodes=1, min_evaluate_nodes=1)
    grid = InProcessGrid(learners.app, NODES, {})
    late = grid.contexts.pop(1003)
    seam = CompressedGrid(grid, layout=LAYOUT, upload="fp32", broadcast="fp32")
    result = strategy.start(seam, record(random_state(99)), num_rounds=1)
    grid.contexts[1003] = late
    strategy.start(seam, result.arrays, num_rounds=1)
    assert (
        strategy.adapters.group_of(1003)
        == strategy.adapters.group_of(1001)
        != strategy.adapters.group_of(1000)
    )


@pytest.mark.parametrize(
    ("adapters", "aggregation", "said"),
    [
        (PerTask, "stacked", "'stacked' is not for groups of nodes: use one of factorwise, merged"),
        (PerTask, "alternating", "'alternating' is not for groups"),
        (clustered(2, 1), "merged_exact", "'merged_exact' is not for groups"),
    ],
)
def test_groups_refuse_what_they_cannot_do(adapters: object, aggregation: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        FedKron(LAYOUT, aggregation=aggregation, adapters=adapters)


@pytest.mark.parametrize(("count", "warm_up"), [(1, 1), (2, 0)])
def test_clusters_need_two_and_a_round_to_be_found_in(count: int, warm_up: int) -> None:
    with pytest.raises(ConfigError, match="must be at least"):
        clustered(count, warm_up)


# ------------------------------------------------------------------ server optimizers


OPTIMIZERS = {
    "fedavgm": lambda: FedAvgM(server_learning_rate=0.7, server_momentum=0.9),
    "fedadam": lambda: FedAdam(eta=0.02),
    "fedyogi": lambda: FedYogi(eta=0.02),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimizer_on_factors_is_that_of_flower_on_the_same_replies(name: str) -> None:
    ours = Run(Learners(targets()), rounds=3, optimizer=OPTIMIZERS[name]())
    grid = InProcessGrid(Learners(targets()).app, NODES, {})
    seam = CompressedGrid(grid, layout=LAYOUT, upload="fp32", broadcast="fp32")
    theirs = OPTIMIZERS[name]().start(seam, record(ours.start), num_rounds=3)
    assert_close(ours.arrays, state_of(theirs.arrays), 1e-5)


def test_momentum_on_the_merged_pseudo_gradient_is_the_textbook_recursion() -> None:
    learners = Learners(targets())
    run = Run(learners, rounds=3, aggregation="merged", optimizer=OPTIMIZERS["fedavgm"]())
    current = {name: values.astype(np.float64) for name, values in run.start.items()}
    velocity = dict.fromkeys(current, 0.0)
    for number in (1, 2, 3):
        trained = [learners.trained[number, k] for k in range(NODES)]
        merged = aggregate("merged", trained, WEIGHTS, LAYOUT).adapter
        velocity = {n: 0.9 * velocity[n] + (merged[n] - current[n]) for n in current}
        current = {n: current[n] + 0.7 * velocity[n] for n in current}
    assert_close(run.arrays, current, 1e-4)
    assert run.reports[0].projection_error > 0


def test_optimizer_chooses_the_clients() -> None:
    learners = Learners(targets())
    Run(learners, rounds=1, optimizer=FedAvg(fraction_train=0.5, min_train_nodes=2))
    assert len(learners.received) == 2


@pytest.mark.parametrize("codec", ["ecsq", "int4"])
def test_groups_cost_no_more_bytes_than_one_adapter_for_all(codec: str) -> None:
    """The mean of all groups, looked at after each round, must not disturb what their nodes share."""

    def down(adapters: object) -> list[int]:
        grid = InProcessGrid(Learners(targets()).app, NODES, {})
        seam = CompressedGrid(grid, layout=LAYOUT, upload=codec, broadcast=codec)

        def on_round(_: RoundReport, held: GlobalAdapter) -> None:
            for sent in held.held().values():
                seam.agreed(sent.records[ARRAYS])

        strategy = FedKron(LAYOUT, adapters=adapters, on_round=on_round)
        strategy.start(seam, seam.agreed(record(random_state(99))), num_rounds=5)
        return [
            sum(t.payload_bytes for t in seam.ledger.transfers if (t.round, t.direction) == (number, "down"))
            for number in range(3, 6)
        ]

    for apart, together in zip(down(PerTask), down(one_for_all), strict=True):
        assert apart <= 1.1 * together
