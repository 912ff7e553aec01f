"""A run that was cut off goes on from its checkpoint, and ends with the bytes of one that was not."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from federation_cases import ObservedGrid, federate, run_config_for, save_tiny_bert
from flwr.app import Message

import clients.app
from fedkron.audit import verify
from fedkron.errors import ConfigError, ContractError
from fedkron.ledger import read_ledger
from fedkron.rundir import ADAPTER, CHECKPOINT, GROUPS, LEDGER, OUTCOME, ROUNDS, SETTINGS, TERMS
from fedkron.runlog import read_run

SMALL = {"num-server-rounds": 3, "train.max-train-examples": 16, "train.max-test-examples": 12}


class CutOffError(Exception):
    """The server is gone."""


class FragileGrid(ObservedGrid):
    """Is cut off at the n-th push: before nodes got the messages, or after they have worked on them.

    `first_id` makes the ids of its nodes others than those of another grid, as Flower's are in each run, and
    in another order.
    """

    cut_at = -1
    after = False
    pushes = 0

    def __init__(self, nodes: list[dict[str, object]], config: Mapping[str, object], first_id: int) -> None:
        super().__init__(clients.app.app, nodes, config)
        contexts = list(self.contexts.values())
        places = [(7 * i + first_id) % len(contexts) for i in range(len(contexts))]
        assert sorted(places) == list(range(len(contexts)))
        self.contexts = {first_id + i: contexts[place] for i, place in enumerate(places)}
        for node, context in self.contexts.items():
            context.node_id = node

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        messages = list(messages)
        self.pushes += 1
        if self.pushes == self.cut_at and not self.after:
            raise CutOffError
        ids = super().push_messages(messages)
        if self.pushes == self.cut_at:
            raise CutOffError
        return ids


@dataclass
class Case:
    """A federation of four nodes and three rounds, in its own folder."""

    output: Path
    base: Path
    tasks: list[Path]
    changes: dict[str, object]
    nodes: list[dict[str, object]]

    def config(self, **changes: object) -> dict[str, object]:
        return run_config_for(
            self.output, self.base, *self.tasks, changes={**SMALL, **self.changes, **changes}
        )

    def grid(self, config: Mapping[str, object], first_id: int) -> FragileGrid:
        nodes = [
            {"partition-id": i, "num-partitions": len(self.nodes), **own} for i, own in enumerate(self.nodes)
        ]
        return FragileGrid(nodes, config, first_id)

    def undisturbed(self) -> Path:
        return federate(self.config(), self.grid(self.config(), 1000)).folder

    def cut_off(self, at: int, *, after: bool) -> Path:
        grid = self.grid(self.config(), 1000)
        grid.cut_at, grid.after = at, after
        with pytest.raises(CutOffError):
            federate(self.config(), grid)
        return self.output / "run"

    def resumed(self, **changes: object) -> Path:
        config = self.config(resume=True, **changes)
        return federate(config, self.grid(config, 2001)).folder


def results_of(folder: Path) -> dict[str, object]:
    """Everything that is the same in every run: adapters, terms, and what was measured."""
    files = [folder / ADAPTER, folder / TERMS, *sorted((folder / GROUPS).rglob("*.safetensors"))]
    lines = [json.loads(line) for line in (folder / ROUNDS).read_text().splitlines()]
    for line in lines:
        del line["seconds"]
        line["nodes"] = list(line["nodes"].values())  # their ids are others
    return {str(f.relative_to(folder)): f.read_bytes() for f in files if f.exists()} | {"rounds": lines}


@pytest.fixture
def two(tmp_path: Path, tiny_bert: Path, tasks: Path) -> tuple[Case, Case]:
    """The same federation twice, in two folders."""
    sources = [tasks / "animals", tasks / "colours"]
    one, other = (Case(tmp_path / name, tiny_bert, sources, {}, [{}] * 4) for name in ("one", "other"))
    return one, other


WAYS: dict[str, dict[str, object]] = {
    "factorwise": {},
    "merged": {"aggregation": "merged"},
    "merged_exact": {"aggregation": "merged_exact"},
    "stacked": {"aggregation": "stacked"},
    "alternating": {"aggregation": "alternating"},
    "per task": {"groups.by": "task"},
    "clusters": {"groups.by": "cluster"},
    "fedavgm": {"server.strategy": "fedavgm"},
    "fedadam": {"server.strategy": "fedadam"},
    "fedyogi": {"server.strategy": "fedyogi"},
    "some nodes": {"fraction-train": 0.5, "fraction-evaluate": 0.75},
    "4 bits at random": {"codec.upload": "int4:stochastic", "codec.broadcast": "int4:stochastic"},
}


@pytest.mark.parametrize("way", WAYS)
def test_resumed_run_ends_with_the_same_bytes(way: str, two: tuple[Case, Case]) -> None:
    for case in two:
        case.changes = WAYS[way]
    undisturbed, broken = two
    expected = results_of(undisturbed.undisturbed())
    # Each round pushes for training and for evaluation: the 4th is the evaluation of the second round, after
    # which its nodes have trained once too often.
    broken.cut_off(4, after=True)
    assert read_run(broken.output / "run").outcome == "failed"
    folder = broken.resumed()
    assert read_run(folder).outcome == "completed"
    assert results_of(folder) == expected
    verified = verify(folder)
    assert verified.rounds == 3
    assert [entry.event for entry in verified.entries].count("aggregated") == 3


def test_nodes_of_other_sizes_go_on_with_theirs(two: tuple[Case, Case]) -> None:
    for case in two:
        case.changes = {"adapter.sizes": "own", "aggregation": "merged"}
        case.nodes = [{}, {"rank": 1}, {}, {"rank": 1}]
    undisturbed, broken = two
    expected = results_of(undisturbed.undisturbed())
    broken.cut_off(4, after=False)
    assert results_of(broken.resumed()) == expected


@pytest.fixture(scope="module")
def coarse(tmp_path_factory: pytest.TempPathFactory, tiny_bert: Path, tasks: Path) -> tuple[Case, object]:
    """A federation that leaves much for later in every upload and broadcast, and what it ends with."""
    changes = {"codec.upload": "ecsq:0.7", "codec.broadcast": "ecsq:0.7"}
    case = Case(tmp_path_factory.mktemp("coarse"), tiny_bert, [tasks / "animals"], changes, [{}] * 2)
    return case, results_of(case.undisturbed())


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("at", range(1, 7))
def test_it_does_not_matter_where_a_run_is_cut_off(
    at: int,
    after: bool,
    coarse: tuple[Case, object],
    tmp_path: Path,
) -> None:
    case, expected = coarse
    broken = replace(case, output=tmp_path)
    broken.cut_off(at, after=after)
    assert results_of(broken.resumed()) == expected


def test_a_run_may_be_cut_off_again_and_again(two: tuple[Case, Case]) -> None:
    undisturbed, broken = two
    expected = results_of(undisturbed.undisturbed())
    broken.cut_off(2, after=True)
    for first_id, at in ((2001, 2), (3002, 3), (4003, 4)):
        config = broken.config(resume=True)
        grid = broken.grid(config, first_id)
        grid.cut_at, grid.after = at, True
        with pytest.raises(CutOffError):
            federate(config, grid)
    assert results_of(broken.resumed()) == expected


def test_what_residuals_hold_is_sent_once(two: tuple[Case, Case]) -> None:
    """With nodes that forget everything the result is another one: they do go on with what they kept."""
    for case in two:
        case.changes = {"codec.upload": "ecsq:0.5"}
    undisturbed, broken = two
    expected = results_of(undisturbed.undisturbed())
    folder = broken.cut_off(4, after=True)
    for state in folder.rglob("round-*.safetensors"):
        state.unlink()
    assert results_of(broken.resumed()) != expected


def test_a_completed_run_is_given_more_rounds(two: tuple[Case, Case]) -> None:
    longer, shorter = two
    shorter.changes = {"num-server-rounds": 2}
    expected = results_of(longer.undisturbed())
    shorter.undisturbed()
    shorter.changes = {}
    found = results_of(shorter.resumed())
    assert found[ADAPTER] == expected[ADAPTER]
    assert json.loads((shorter.output / "run" / SETTINGS).read_text())["num-server-rounds"] == 3


def test_aborted_messages_have_cost_their_bytes(two: tuple[Case, Case]) -> None:
    undisturbed, broken = two
    whole = read_ledger(undisturbed.undisturbed() / LEDGER)
    folder = broken.cut_off(4, after=True)
    with (folder / LEDGER).open("a") as ledger:
        ledger.write('{"round": 2, "no')  # what a killed process leaves
    broken.resumed()
    found = read_ledger(folder / LEDGER)

    def trained(transfers: list, number: int) -> int:
        return sum(t.round == number and t.phase == "train" and t.direction == "up" for t in transfers)

    assert [trained(whole, n) for n in range(1, 4)] == [4, 4, 4]
    assert [trained(found, n) for n in range(1, 4)] == [4, 8, 4]


def test_other_settings_and_bases_are_refused_and_change_nothing(
    two: tuple[Case, Case], tmp_path: Path
) -> None:
    case, _ = two
    case.base = save_tiny_bert(tmp_path / "base", seed=0)
    folder = case.cut_off(4, after=True)
    before = {path: path.read_bytes() for path in folder.glob("*") if path.is_file()}
    with pytest.raises(ConfigError, match=r"'train.learning-rate' is 0.5, the run in .* has 0.01"):
        case.resumed(**{"train.learning-rate": 0.5})
    assert {path: path.read_bytes() for path in folder.glob("*") if path.is_file()} == before
    save_tiny_bert(case.base, seed=1)
    with pytest.raises(ContractError, match="it is not the base that the run began with"):
        case.resumed()
    assert (folder / CHECKPOINT).read_bytes() == before[folder / CHECKPOINT]
    assert json.loads((folder / OUTCOME).read_text())["status"] == "failed"
