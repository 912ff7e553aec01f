"""FedKron: what it aggregates, what it reports, and which failures end a run."""

import struct
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
import pytest
from flwr.app import ConfigRecord, Context, Error, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.common.constant import ErrorCode
from seam_cases import MuteGrid, State, record, state_of

from fedkron.aggregation import aggregate
from fedkron.compression import HEADER_SIZE
from fedkron.errors import ConfigError, RunError, TaskError
from fedkron.flower import (
    EXPLAINED_ERROR,
    ORIGIN,
    CompressedGrid,
    FedKron,
    RoundReport,
    TaskReport,
    compressed_exchange,
    explained_errors,
)
from fedkron.flower.global_adapter import FOR_ALL, GlobalAdapter
from fedkron.flower.unopened_grid import UnopenedGrid
from fedkron.flower.wire import PAYLOAD
from fedkron.layout import AdapterLayout, ModuleLayout, TensorLayout
from simulations.in_process import InProcessGrid

KRON = ModuleLayout(
    "query",
    "kron_lora",
    4.0,
    (32, 32),
    (TensorLayout("A", (4, 2)), TensorLayout("B1", (8, 2)), TensorLayout("B2", (2, 16))),
)
LORA = ModuleLayout(
    "value", "lora", 2.0, (24, 16), (TensorLayout("lora_A", (2, 16)), TensorLayout("lora_B", (24, 2)))
)
LAYOUT = AdapterLayout("a base", (KRON, LORA), (TensorLayout("head.bias", (3,)),))
TASKS = ("trec", "spam")
WEIGHTS = (10, 20, 30, 40)
NODES = len(WEIGHTS)


def adapter(seed: int) -> State:
    rng = np.random.default_rng(seed)
    return {t.name: rng.standard_normal(t.shape, dtype=np.float32) for t in LAYOUT.tensors}


def zeros() -> State:
    return {t.name: np.zeros(t.shape, np.float32) for t in LAYOUT.tensors}


def node_app(
    learned: Callable[[int], State] = adapter,
    mods: Sequence[object] = (),
    *,
    fails: Iterable[tuple[str, int]] = (),
) -> ClientApp:
    """Node k answers with `learned(k)`, whatever it receives, but not in the phases where it `fails`."""
    app = ClientApp(mods=[*mods, compressed_exchange])
    failing = frozenset(fails)

    def answer(message: Message, context: Context, metrics: Mapping[str, float]) -> RecordDict:
        partition = int(context.node_config["partition-id"])
        if (message.metadata.message_type, partition) in failing:
            raise RuntimeError(f"node {partition} is out of memory")
        return RecordDict(
            {
                "metrics": MetricRecord({"num-examples": WEIGHTS[partition], **metrics}),
                ORIGIN: ConfigRecord({"task": TASKS[partition % 2], "partition": partition}),
            }
        )

    @app.train()
    def train(message: Message, context: Context) -> Message:
        partition = int(context.node_config["partition-id"])
        content = answer(message, context, {"loss": 1.0 + partition})
        content["arrays"] = record(learned(partition))
        return Message(content, reply_to=message)

    @app.evaluate()
    def evaluate(message: Message, context: Context) -> Message:
        accuracy = 0.1 * int(context.node_config["partition-id"])
        return Message(answer(message, context, {"accuracy": accuracy, "majority": 0.5}), reply_to=message)

    return app


class Run:
    """A run of FedKron with lossless codecs, and what `on_round` was told."""

    def __init__(
        self, grid: InProcessGrid, *, rounds: int = 1, timeout: float = 60.0, **options: object
    ) -> None:
        self.reports: list[RoundReport] = []
        self.saved: list[State] = []

        def on_round(report: RoundReport, adapters: GlobalAdapter) -> None:
            self.reports.append(report)
            self.saved.append(adapter_for_all(adapters))

        strategy = FedKron(LAYOUT, on_round=on_round, **options)
        seam = CompressedGrid(grid, layout=LAYOUT, upload="fp32", broadcast="fp32", poll_interval=0.01)
        result = strategy.start(seam, record(zeros()), num_rounds=rounds, timeout=timeout)
        self.arrays = state_of(result.arrays)


def adapter_for_all(adapters: GlobalAdapter) -> State:
    records = adapters.held()[FOR_ALL].records
    return {name: values for record in records.values() for name, values in state_of(record).items()}


def mean_of(partitions: Sequence[int]) -> State:
    adapters = [adapter(partition) for partition in partitions]
    weights = [WEIGHTS[partition] for partition in partitions]
    return {
        name: np.average([a[name].astype(np.float64) for a in adapters], axis=0, weights=weights)
        for name in adapters[0]
    }


def assert_close(arrays: State, expected: State) -> None:
    assert arrays.keys() == expected.keys()
    for name, values in expected.items():
        np.testing.assert_allclose(arrays[name], values, rtol=1e-5, atol=1e-6)


# ------------------------------------------------------------------ aggregation


def test_factorwise_aggregation_is_the_mean_of_each_tensor_weighted_by_examples() -> None:
    run = Run(InProcessGrid(node_app(), NODES, {}))
    assert_close(run.arrays, mean_of(range(NODES)))
    assert run.reports[0].projection_error is None


def test_merged_aggregation_is_merged_mean_and_its_error_is_that_of_the_dense_products() -> None:
    run = Run(InProcessGrid(node_app(), NODES, {}), aggregation="merged")
    adapters = [adapter(partition) for partition in range(NODES)]
    expected = aggregate("merged", adapters, WEIGHTS, LAYOUT)
    assert_close(run.arrays, expected.adapter)

    def products(state: State) -> np.ndarray:
        kron = 4.0 * np.kron(state["query.A"], state["query.B1"] @ state["query.B2"])
        lora = 2.0 * state["value.lora_B"] @ state["value.lora_A"]
        return np.concatenate([kron.ravel(), lora.ravel()])

    mean = np.average([products(a) for a in adapters], axis=0, weights=WEIGHTS)
    error = np.linalg.norm(products(run.arrays) - mean) / np.linalg.norm(mean)
    assert error > 0.1
    assert run.reports[0].projection_error == pytest.approx(error, rel=1e-4)


def test_unknown_aggregation_is_refused_before_anybody_trains() -> None:
    with pytest.raises(ConfigError, match=r"'median' does not exist: use one of factorwise, merged"):
        FedKron(LAYOUT, aggregation="median")


class ReversedGrid(InProcessGrid):
    """Replies arrive in the reverse order."""

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        return list(super().pull_messages(message_ids))[::-1]


def test_neither_the_order_of_replies_nor_the_node_ids_change_the_bytes_of_the_result() -> None:
    # 1e17 and -1e17 cancel, and the rest survives only when they meet first.
    sizes = (1e17, -1e17, 1.0, 1.0)

    def learned(partition: int) -> State:
        size = np.float32(sizes[partition] / WEIGHTS[partition])
        return {name: np.full_like(values, size) for name, values in zeros().items()}

    def nodes(partitions: Sequence[int]) -> list[dict[str, object]]:
        return [{"partition-id": partition, "num-partitions": NODES} for partition in partitions]

    grids = (
        InProcessGrid(node_app(learned), NODES, {}),
        ReversedGrid(node_app(learned), NODES, {}),
        InProcessGrid(node_app(learned), nodes((2, 0, 3, 1)), {}),
    )
    first, *others = [Run(grid).arrays for grid in grids]
    for other in others:
        for name, values in first.items():
            assert other[name].tobytes() == values.tobytes()


# ------------------------------------------------------------------ reports


def test_report_of_a_round_has_the_weighted_means_of_each_task() -> None:
    run = Run(InProcessGrid(node_app(), NODES, {}), rounds=2)
    first, second = run.reports
    assert (first.round, second.round, first.failures) == (1, 2, [])
    # trec: nodes 0 and 2 with 10 and 30 examples; spam: nodes 1 and 3 with 20 and 40.
    assert first.trained == {
        "trec": TaskReport(2, 40, {"loss": pytest.approx((10 * 1 + 30 * 3) / 40)}),
        "spam": TaskReport(2, 60, {"loss": pytest.approx((20 * 2 + 40 * 4) / 60)}),
    }
    assert first.evaluated == {
        "trec": TaskReport(2, 40, {"accuracy": pytest.approx((30 * 0.2) / 40), "majority": 0.5}),
        "spam": TaskReport(2, 60, {"accuracy": pytest.approx((20 * 0.1 + 40 * 0.3) / 60), "majority": 0.5}),
    }
    assert_close(run.saved[0], mean_of(range(NODES)))


def test_round_without_evaluation_is_reported_too() -> None:
    run = Run(InProcessGrid(node_app(), NODES, {}), fraction_evaluate=0.0)
    (report,) = run.reports
    assert report.evaluated == {}
    assert report.trained.keys() == set(TASKS)


# ------------------------------------------------------------------ failures


def test_one_failure_of_four_is_reported_and_the_run_goes_on_with_the_others() -> None:
    run = Run(InProcessGrid(node_app(fails=[("train", 3)]), NODES, {}))
    assert_close(run.arrays, mean_of(range(NODES - 1)))
    (failure,) = run.reports[0].failures
    assert failure.startswith("node 1003: ")
    assert "node 3 is out of memory" in failure
    assert run.reports[0].trained["spam"].clients == 1


def test_exactly_the_allowed_fraction_may_fail() -> None:
    run = Run(InProcessGrid(node_app(fails=[("train", 0), ("train", 1)]), NODES, {}))
    assert_close(run.arrays, mean_of([2, 3]))


@pytest.mark.parametrize(("phase", "said"), [("train", "training"), ("evaluate", "evaluation")])
def test_too_many_failures_end_the_run_with_counts_and_the_first_reason(phase: str, said: str) -> None:
    grid = InProcessGrid(node_app(fails=[(phase, node) for node in (0, 1, 2)]), NODES, {})
    with pytest.raises(RunError) as caught:
        Run(grid)
    message = str(caught.value)
    assert message.startswith(
        f"round 1: 3 of 4 clients failed in {said}, more than max-failure-fraction = 0.5 "
    )
    assert "first: node 100" in message
    assert "is out of memory" in message


def test_failures_of_training_and_evaluation_are_not_added_up() -> None:
    fails = [("train", 0), ("train", 1), ("evaluate", 2), ("evaluate", 3)]
    run = Run(InProcessGrid(node_app(fails=fails), NODES, {}))
    assert len(run.reports[0].failures) == 4


def test_no_failure_is_allowed_where_the_fraction_is_zero() -> None:
    with pytest.raises(RunError, match="1 of 4"):
        Run(InProcessGrid(node_app(fails=[("train", 0)]), NODES, {}), max_failure_fraction=0.0)


def test_adapter_stays_as_it_is_when_all_may_fail_and_do() -> None:
    grid = InProcessGrid(node_app(fails=[("train", node) for node in range(NODES)]), NODES, {})
    strategy = FedKron(LAYOUT, max_failure_fraction=1.0)
    start = adapter(7)
    seam = CompressedGrid(grid, layout=LAYOUT)
    messages = strategy.configure_train(1, record(start), ConfigRecord(), seam)
    assert strategy.aggregate_train(1, seam.send_and_receive(messages)) == (None, None)
    saved: list[State] = []
    strategy = FedKron(
        LAYOUT, max_failure_fraction=1.0, on_round=lambda _, held: saved.append(adapter_for_all(held))
    )
    strategy.start(seam, record(start), num_rounds=2)
    assert_close(saved[-1], start)


def test_replies_that_do_not_come_in_time_are_failures() -> None:
    run = Run(MuteGrid(node_app(), NODES, {}), timeout=0.1)
    assert run.reports[0].failures == ["node 1003: no reply in time"]
    assert_close(run.arrays, mean_of(range(NODES - 1)))


TRACEBACK = """ray::ClientAppActor.run()
  File "train.py", line 7, in train
    batch["labels"]
KeyError: 'labels'
"""


@pytest.mark.parametrize(
    ("code", "reason", "said"),
    [
        (ErrorCode.CLIENT_APP_RAISED_EXCEPTION, TRACEBACK, "KeyError: 'labels'"),
        (ErrorCode.NODE_UNAVAILABLE, "Node Unavailable", "Node Unavailable"),
        (ErrorCode.UNKNOWN, " \n", "no reason given"),
        (
            EXPLAINED_ERROR,
            "TaskError: the download failed.\nCheck the network.",
            "TaskError: the download failed.\nCheck the network.",
        ),
    ],
)
def test_failure_is_what_the_node_says_or_the_last_line_of_a_traceback(
    code: int, reason: str, said: str
) -> None:
    def broken(message: Message, context: Context, call_next: Callable) -> Message:
        if context.node_id == 1003 and message.metadata.message_type == "train":
            return Message(Error(code, reason), reply_to=message)
        return call_next(message, context)

    run = Run(InProcessGrid(node_app(mods=[broken]), NODES, {}))
    assert run.reports[0].failures == [f"node 1003: {said}"]


def test_error_of_ours_reaches_the_server_as_its_message_where_the_client_explains_errors() -> None:
    def learned(partition: int) -> State:
        if partition == 2:
            raise TaskError("there is no data here:\ncopy it first")
        return adapter(partition)

    run = Run(InProcessGrid(node_app(learned, [explained_errors]), NODES, {}))
    assert run.reports[0].failures == ["node 1002: TaskError: there is no data here:\ncopy it first"]
    assert_close(run.arrays, mean_of([0, 1, 3]))


# ------------------------------------------------------------------ admission


def metrics_with(**changes: object) -> Callable[[RecordDict], None]:
    def spoil(content: RecordDict) -> None:
        content["metrics"] = MetricRecord(
            {
                name.replace("_", "-"): v
                for name, v in {"num_examples": 40, "loss": 4.0, **changes}.items()
                if v is not None
            }
        )

    return spoil


def origin_with(**fields: object) -> Callable[[RecordDict], None]:
    def spoil(content: RecordDict) -> None:
        content[ORIGIN] = ConfigRecord(fields)

    return spoil


def more_metrics(content: RecordDict) -> None:
    content["more"] = MetricRecord({"num-examples": 1, "loss": 0.0})


SPOILED: dict[str, tuple[Callable[[RecordDict], object], str]] = {
    "no arrays": (
        lambda content: content.pop("arrays"),
        "ArrayRecords [] and 1 MetricRecords, expected ['arrays'] and 1",
    ),
    "no metrics": (lambda content: content.pop("metrics"), "ArrayRecords ['arrays'] and 0 MetricRecords"),
    "two sets of metrics": (more_metrics, "ArrayRecords ['arrays'] and 2 MetricRecords"),
    "no number of examples": (metrics_with(num_examples=None), "'num-examples' is None"),
    "no examples": (metrics_with(num_examples=0), "'num-examples' is 0"),
    "a negative number of examples": (metrics_with(num_examples=-5), "'num-examples' is -5"),
    "infinitely many examples": (metrics_with(num_examples=float("inf")), "'num-examples' is inf"),
    "a list of numbers of examples": (metrics_with(num_examples=[1, 2]), "'num-examples' is [1, 2]"),
    "a loss that is not a number": (metrics_with(loss=float("nan")), "'loss' is nan"),
    "a list of losses": (metrics_with(loss=[1.0, 2.0]), "'loss' is [1.0, 2.0]"),
    "a metric that others do not have": (
        metrics_with(gain=1.0),
        "gain, loss, num-examples; most nodes sent loss",
    ),
    "a missing metric": (metrics_with(loss=None), "its metrics are num-examples; most nodes sent loss"),
    "a partition that is text": (origin_with(task="spam", partition="3"), "partition '3'"),
    "a task that is a number": (origin_with(task=7, partition=3), "task 7"),
}


@pytest.mark.parametrize("name", SPOILED)
def test_reply_that_cannot_take_part_is_a_failure_of_its_node_and_not_of_the_run(name: str) -> None:
    spoil, said = SPOILED[name]

    def evil_mod(message: Message, context: Context, call_next: Callable) -> Message:
        reply = call_next(message, context)
        if context.node_id == 1003 and message.metadata.message_type == "train":
            spoil(reply.content)
        return reply

    run = Run(InProcessGrid(node_app(mods=[evil_mod]), NODES, {}))
    assert_close(run.arrays, mean_of(range(NODES - 1)))
    (failure,) = run.reports[0].failures
    assert failure.startswith("node 1003: reply refused: ")
    assert said in failure


def test_reply_without_origin_counts_for_the_nameless_task() -> None:
    def anonymous(message: Message, context: Context, call_next: Callable) -> Message:
        reply = call_next(message, context)
        del reply.content[ORIGIN]
        return reply

    run = Run(InProcessGrid(node_app(mods=[anonymous]), NODES, {}))
    assert_close(run.arrays, mean_of(range(NODES)))
    assert run.reports[0].trained[""].clients == NODES


# ------------------------------------------------------------------ uploads that are opened late


@pytest.mark.parametrize("aggregation", ["factorwise", "merged"])
@pytest.mark.parametrize("codec", ["fp32", "int4", "ecsq"])
def test_uploads_opened_one_after_the_other_make_the_same_adapter(aggregation: str, codec: str) -> None:
    def run(grid_kind: type[CompressedGrid], uploads: Callable[[CompressedGrid], dict]) -> State:
        seam = grid_kind(InProcessGrid(node_app(), NODES, {}), layout=LAYOUT, upload=codec)
        strategy = FedKron(LAYOUT, aggregation=aggregation, **uploads(seam))
        result = strategy.start(seam, record(adapter(9)), num_rounds=1)
        return state_of(result.arrays)

    early = run(CompressedGrid, lambda _: {})
    late = run(UnopenedGrid, lambda seam: {"uploads": seam.uploads})
    assert_close(late, early)


@pytest.mark.parametrize("damaged", ["body", "header", "round"])
def test_upload_that_cannot_be_opened_is_a_failure_of_its_node(damaged: str) -> None:
    def evil_mod(message: Message, context: Context, call_next: Callable) -> Message:
        reply = call_next(message, context)
        if context.node_id == 1003 and message.metadata.message_type == "train":
            payload = bytearray(reply.content["arrays"][PAYLOAD])
            match damaged:
                case "header":
                    payload[0] ^= 1
                case "body":  # a step beyond the largest one, under a checksum that is right
                    payload[HEADER_SIZE : HEADER_SIZE + 4] = struct.pack("<f", float("inf"))
                case "round":
                    payload[56:60] = struct.pack("<I", 7)
            checksum = zlib.crc32(payload[HEADER_SIZE:], zlib.crc32(payload[: HEADER_SIZE - 4]))
            payload[HEADER_SIZE - 4 : HEADER_SIZE] = struct.pack("<I", checksum)
            reply.content["arrays"] = ConfigRecord({PAYLOAD: bytes(payload)})
        return reply

    reports: list[RoundReport] = []
    seam = UnopenedGrid(InProcessGrid(node_app(mods=[evil_mod]), NODES, {}), layout=LAYOUT, upload="int8")
    strategy = FedKron(LAYOUT, uploads=seam.uploads, on_round=lambda report, _: reports.append(report))
    result = strategy.start(seam, record(zeros()), num_rounds=1)
    (failure,) = reports[0].failures
    assert failure.startswith("node 1003: ")
    assert "refused" in failure
    assert reports[0].trained["spam"].clients == 1
    expected = mean_of(range(NODES - 1))
    for name, values in state_of(result.arrays).items():
        np.testing.assert_allclose(values, expected[name], atol=0.05)

    strict = FedKron(LAYOUT, uploads=seam.uploads, max_failure_fraction=0.0)
    with pytest.raises(RunError, match="1 of 4 clients failed in training"):
        strict.start(seam, record(zeros()), num_rounds=1)


def test_round_in_which_all_uploads_turn_out_to_be_damaged_ends_the_run() -> None:
    def evil_mod(message: Message, context: Context, call_next: Callable) -> Message:
        reply = call_next(message, context)
        if message.metadata.message_type == "train":
            payload = bytearray(reply.content["arrays"][PAYLOAD])
            payload[HEADER_SIZE : HEADER_SIZE + 4] = struct.pack("<f", float("nan"))
            checksum = zlib.crc32(payload[HEADER_SIZE:], zlib.crc32(payload[: HEADER_SIZE - 4]))
            payload[HEADER_SIZE - 4 : HEADER_SIZE] = struct.pack("<I", checksum)
            reply.content["arrays"] = ConfigRecord({PAYLOAD: bytes(payload)})
        return reply

    seam = UnopenedGrid(InProcessGrid(node_app(mods=[evil_mod]), NODES, {}), layout=LAYOUT, upload="int4")
    strategy = FedKron(LAYOUT, uploads=seam.uploads, max_failure_fraction=0.9)
    with pytest.raises(RunError, match=r"4 of 4 clients failed in training.* 100[0-3]: .*refused"):
        strategy.start(seam, record(zeros()), num_rounds=1)
