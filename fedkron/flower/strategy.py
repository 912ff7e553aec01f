"""FedKron: the Flower strategy that knows what an adapter is.

It is FedAvg with four differences: aggregation respects the adapter's structure (`fedkron.aggregation`);
nodes may be sent adapters of their own (`fedkron.flower.global_adapter`); accuracy is reported per task; and
a round in which too many clients fail ends the run as failed instead of going on with whoever is left.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Mapping, Sequence

from flwr.app import ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict
from flwr.app.message import make_message
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg, Result

from fedkron.errors import RunError
from fedkron.exchange import Tree
from fedkron.flower.admission import Origin, check_replies, metrics_of, origin_of
from fedkron.flower.global_adapter import ARRAYS, FOR_ALL, Answer, GlobalAdapter, MakeAdapter
from fedkron.flower.introductions import await_nodes, introduce
from fedkron.flower.norm_limit import NormLimit
from fedkron.flower.one_for_all import one_for_all
from fedkron.flower.optimizer_state import optimizer_snapshot, restore_optimizer
from fedkron.flower.round_report import RoundReport, Verdict, by_task
from fedkron.flower.uploads import Upload, plain_uploads
from fedkron.flower.wire import EXPLAINED_ERROR, REJECTED_UPLOAD, to_arrays, to_state
from fedkron.layout import AdapterLayout
from fedkron.privacy import Charges

CONTRACT, TRAINS, RESUMES = "contract", "trains", "resumes"
"""Keys in the config of each message: the contract of the node's adapter, which records it trains, and the
run that is gone on with.
"""

PHASES = {"introduction": "introducing themselves", "train": "training", "evaluate": "evaluation"}


class FedKron(FedAvg):
    """Aggregates adapters of one layout; see the module's docstring for what differs from FedAvg.

    `aggregation` is a name in `fedkron.aggregation.AGGREGATIONS`, or "alternating". `adapters` says who
    shares an adapter: all (`one_for_all`), nodes of the same size (`PerSize`) or task (`PerTask`), or
    `clustered(…)`. `optimizer` is a Flower strategy that is given the aggregate as the only reply of a round,
    and what it makes of it is the new adapter: FedAvgM, FedAdam or FedYogi (Reddi et al. 2021) then step
    along the pseudo-gradient of the merged ΔW; it chooses the clients, too. `uploads` finds the uploads in a
    reply (`UnopenedGrid.uploads`, so that they are opened one after the other). Uploads from there may have
    `norm_limit` times the usual norm (`NormLimit`; 0: any). `max_failure_fraction` is the
    share of the chosen clients that may fail (error, refusal or no reply in time) in training or evaluation
    before the run is ended with a `RunError`. With a `seed`, each round chooses the same clients out of the
    same list in every run. `privacy` is told which nodes are asked to train in a round, and says what that
    costs them. `on_verdict` is called with who was admitted in each phase, `on_round` after each round.
    Everything else is passed on to FedAvg.

    Raises `ConfigError` for an unknown aggregation, or one that `adapters` cannot do; `AdapterError` for a
    kind of adapter that the aggregation does not know.
    """

    def __init__(
        self,
        layout: AdapterLayout,
        *,
        aggregation: str = "factorwise",
        adapters: MakeAdapter = one_for_all,
        optimizer: FedAvg | None = None,
        uploads: Callable[[Message], Mapping[str, Upload]] = plain_uploads,
        norm_limit: float = 0.0,
        max_failure_fraction: float = 0.5,
        seed: int | None = None,
        privacy: Charges | None = None,
        on_verdict: Callable[[Verdict], object] = id,
        on_round: Callable[[RoundReport, GlobalAdapter], None] = lambda *_: None,
        **fedavg: object,
    ) -> None:
        super().__init__(**fedavg)  # type: ignore[arg-type]
        self.adapters = adapters(layout, aggregation)
        self._optimizer = optimizer
        self._uploads = uploads
        self._norms = NormLimit(norm_limit)
        self._max_failure_fraction = max_failure_fraction
        self._seed = seed
        self._arrays = ArrayRecord()
        self._rounds_before = 0
        self._resumes = ""
        self._origins: dict[int, Origin] = {}
        self._on_verdict = on_verdict
        self._privacy = privacy
        self._on_round = on_round
        self._report = RoundReport(0)
        self._expected: dict[int, tuple[str, ...]] = {}
        self._chosen = 0
        self._failed: dict[int, str] = {}
        self._timeout = 3600.0

    def start(  # noqa: PLR0917  # Flower's order
        self,
        grid: Grid,
        initial_arrays: ArrayRecord,
        num_rounds: int = 3,
        timeout: float = 3600,
        train_config: ConfigRecord | None = None,
        evaluate_config: ConfigRecord | None = None,
        evaluate_fn: Callable[[int, ArrayRecord], MetricRecord | None] | None = None,
    ) -> Result:
        """Run all rounds; nodes may take `timeout` seconds to introduce themselves, too."""
        self._timeout = timeout
        return super().start(
            grid, initial_arrays, num_rounds, timeout, train_config, evaluate_config, evaluate_fn
        )

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Choose the clients of this round, and send each its adapter.

        Raises `RunError` when too many of them could not say who they are, where that matters.
        """
        number = self._rounds_before + server_round
        self._report = RoundReport(number)
        choose = super().configure_train if self._optimizer is None else self._optimizer.configure_train
        if self._seed is not None:
            random.seed(f"{self._seed}, round {number}")  # Flower chooses clients with it
        await_nodes(grid, self.min_available_nodes, number, self._timeout)
        messages = self._addressed(choose(number, arrays, config, grid), number, arrays, grid)
        if self._privacy is not None:  # whether an answer will be used or not: it may have left the node
            self._report.privacy = self._privacy.charge(self._expected)
        return messages

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Combine the clients' adapters, weighted by their numbers of examples.

        Raises `RunError` when too many clients failed.
        """
        admitted = self._admitted(replies, "train", self._expected)
        answers = [self._answer(reply) for reply in admitted]
        self._failed |= self._norms.refusals(answers)
        answers = [answer for answer in answers if answer.origin.node not in self._failed]
        if not answers or self._are_too_many_failures:
            self._end_phase("train", [])
            return None, None
        combined = self.adapters.combine(answers)
        self._failed |= combined.refused
        valid = [reply for reply in admitted if reply.metadata.src_node_id not in self._failed]
        self._end_phase("train", valid)
        self._report.projection_error = combined.projection_error
        self._report.trained = by_task(valid, self.weighted_by_key)
        metrics = self.train_metrics_aggr_fn([reply.content for reply in valid], self.weighted_by_key)
        arrays = to_arrays(combined.adapter)
        if self._optimizer is not None:
            weight = MetricRecord({self.weighted_by_key: sum(map(self._weight, valid))})
            reply = make_message(valid[0].metadata, content=RecordDict({ARRAYS: arrays, "metrics": weight}))
            number = self._rounds_before + server_round
            stepped, _ = self._optimizer.aggregate_train(number, [reply])
            assert stepped is not None
            arrays = to_arrays(to_state(stepped))  # Flower's optimizers may return float64
        return arrays, metrics

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Choose the clients that evaluate, as FedAvg does, and send each its adapter."""
        number = self._rounds_before + server_round
        await_nodes(grid, self.min_available_nodes, number, self._timeout)
        messages = super().configure_evaluate(number, arrays, config, grid)
        return self._addressed(messages, number, arrays, grid)

    def aggregate_evaluate(
        self,
        server_round: int,  # noqa: ARG002
        replies: Iterable[Message],
    ) -> MetricRecord | None:
        """Mean of the clients' metrics, and the report of the round per task.

        Raises `RunError` when too many clients failed.
        """
        valid = self._admitted(replies, "evaluate", dict.fromkeys(self._expected, ()))
        self._end_phase("evaluate", valid)
        self._report.evaluated = by_task(valid, self.weighted_by_key)
        self._report.groups = self._groups(valid)
        self._on_round(self._report, self.adapters)
        if not valid:
            return None
        return self.evaluate_metrics_aggr_fn([reply.content for reply in valid], self.weighted_by_key)

    def snapshot(self) -> dict[str, Tree]:
        """What it knows after a round: for `restore`. Take it in `on_round`."""
        return {
            "round": self._report.round,
            "arrays": to_state(self._arrays),
            "adapters": self.adapters.snapshot(),
            "optimizer": {} if self._optimizer is None else optimizer_snapshot(self._optimizer),
            "norms": self._norms.snapshot(),
            "privacy": None if self._privacy is None else self._privacy.snapshot(),
            "origins": [list(origin) for origin in self._origins.values()],
        }

    def restore(self, snapshot: Mapping[str, Tree], renamed: Mapping[int, int], run: str) -> ArrayRecord:
        """Go on after the round that a snapshot was made of; returns the arrays to start from.

        `renamed` has today's ids of the nodes that are still there, by their ids at that time. Nodes are told
        that this goes on with `run`, so that they go on with what they kept of it. Rounds are counted on:
        `start` is to be told how many are left.
        """
        arrays = to_arrays(snapshot["arrays"])
        self.adapters.restore(snapshot["adapters"], arrays, renamed)
        if self._optimizer is not None:
            restore_optimizer(self._optimizer, snapshot["optimizer"])
        self._norms.restore(snapshot["norms"])
        if self._privacy is not None:
            self._privacy.restore(snapshot["privacy"], renamed)
        self._rounds_before, self._resumes = snapshot["round"], run
        known = [Origin(*origin) for origin in snapshot["origins"]]
        self._origins = {
            renamed[origin.node]: origin._replace(node=renamed[origin.node])
            for origin in known
            if origin.node in renamed
        }
        return arrays

    def _answer(self, reply: Message) -> Answer:
        return Answer(origin_of(reply), self._uploads(reply), self._weight(reply))

    def _addressed(
        self, messages: Iterable[Message], server_round: int, arrays: ArrayRecord, grid: Grid
    ) -> list[Message]:
        """The messages to all who said who they are, with what each is to get."""
        messages = list(messages)
        strangers = self.adapters.strangers([message.metadata.dst_node_id for message in messages])
        unknown = introduce(strangers, self.adapters, grid, round_=server_round, timeout=self._timeout)
        self._failed = unknown
        self._expected, self._arrays = {}, arrays
        self.adapters.adopt(server_round, arrays)
        known = [message for message in messages if message.metadata.dst_node_id not in unknown]
        for message in known:
            sent = self.adapters.sent(message.metadata.dst_node_id)
            config = ConfigRecord(dict(message.content.config_records[self.configrecord_key]))
            config[CONTRACT] = sent.layout.contract
            if self._resumes:
                config[RESUMES] = self._resumes
            if sent.trains != tuple(sent.records):
                config[TRAINS] = list(sent.trains)
            message.content = RecordDict({**sent.records, self.configrecord_key: config})
            self._expected[message.metadata.dst_node_id] = sent.trains
        self._chosen = len(messages)
        self._check_failures("introduction")
        return known

    def _admitted(
        self, replies: Iterable[Message], phase: str, expected: Mapping[int, Sequence[str]]
    ) -> list[Message]:
        """The replies that take part, in an order that is the same in every run; notes who failed."""
        replies = list(replies)
        answers, errors = self._check_and_log_replies(replies, phase == "train", validate=False)
        valid, refusals = check_replies(answers, self.weighted_by_key, expected)
        missing = set(expected) - {reply.metadata.src_node_id for reply in replies}
        self._failed |= {node: f"node {node}: no reply in time" for node in sorted(missing)}
        self._failed |= {
            e.metadata.src_node_id: f"node {e.metadata.src_node_id}: {_reason(e.error)}" for e in errors
        }
        self._failed |= refusals
        self._origins |= {origin.node: origin for origin in map(origin_of, valid)}
        # Floating-point sums depend on their order, and node ids differ from run to run.
        return sorted(valid, key=origin_of)

    def _end_phase(self, phase: str, valid: Sequence[Message]) -> None:
        """Tell what became of the replies. Raises `RunError` when too many clients failed."""
        admitted = {origin_of(reply): self._weight(reply) for reply in valid}
        self._on_verdict(Verdict(self._report.round, phase, admitted, dict(self._failed)))
        self._report.failures += self._failed.values()
        self._check_failures(phase)

    @property
    def _are_too_many_failures(self) -> bool:
        return len(self._failed) > self._max_failure_fraction * self._chosen

    def _check_failures(self, phase: str) -> None:
        if self._are_too_many_failures:
            raise RunError(
                f"round {self._report.round}: {len(self._failed)} of {self._chosen} clients failed in "
                f"{PHASES[phase]}, more than max-failure-fraction = {self._max_failure_fraction:g} allows; "
                f"first: {next(iter(self._failed.values()))}"
            )

    def _weight(self, reply: Message) -> float:
        return metrics_of(reply)[self.weighted_by_key]

    def _groups(self, replies: list[Message]) -> dict[str, list[str]]:
        groups: dict[str, list[str]] = {}
        held = self.adapters.held()
        for origin in map(origin_of, replies):
            group = self.adapters.group_of(origin.node)
            if group != FOR_ALL and group in held:
                groups.setdefault(group, []).append(f"{origin.task}-{origin.partition}")
        return groups


def _reason(error: Error) -> str:
    reason = (error.reason or "").strip() or "no reason given"
    # For whatever else an app raised Flower may send a traceback, whose last line says what it was.
    return reason if error.code in (REJECTED_UPLOAD, EXPLAINED_ERROR) else reason.splitlines()[-1]
