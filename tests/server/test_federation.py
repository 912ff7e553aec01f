"""Whole federations in one process: the real ServerApp, the real ClientApp, really serialized messages."""

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from federation_cases import Federation, federate, grid_of, run_config_for, save_tiny_bert, write_texts

from fedkron.adapters import ADAPTER_KINDS, AdapterSpec, adapter_layout, attach
from fedkron.audit import verify
from fedkron.base import load_base
from fedkron.compression import codec, decode, inspect_header, payload_sizes
from fedkron.compression.shared_state import DIGEST_SIZE
from fedkron.errors import AdapterError, ConfigError, FedKronError, RunError
from fedkron.exchange import load_adapter, load_head
from fedkron.flower.wire import LAYOUT, PAYLOAD, deflated, unpack_broadcast
from fedkron.layout import AdapterLayout, flatten
from fedkron.rundir import (
    ADAPTER,
    AUDIT,
    CHECKPOINT,
    HEAD,
    LEDGER,
    NODES,
    OUTCOME,
    ROUNDS,
    SETTINGS,
    TENSORBOARD,
)
from fedkron.runlog import read_run
from fedkron.settings import Settings, run_config

SPEC = AdapterSpec(rank=2, d_a2=4)


def federation(
    output: Path, base: Path, *tasks: Path, nodes: int = 4, changes: Mapping[str, object] | None = None
) -> Federation:
    config = run_config_for(output, base, *tasks, changes=changes)
    return federate(config, grid_of(config, nodes))


@pytest.fixture(scope="module")
def two_tasks(tmp_path_factory: pytest.TempPathFactory, tiny_bert: Path, tasks: Path) -> Federation:
    """Four nodes, two tasks, two rounds."""
    return federation(tmp_path_factory.mktemp("runs"), tiny_bert, tasks / "animals", tasks / "colours")


def layout_of(base: Path, spec: AdapterSpec = SPEC) -> AdapterLayout:
    loaded = load_base(str(base))
    return adapter_layout(attach(loaded.backbone, spec), loaded.fingerprint)


# ------------------------------------------------------------------ what a run leaves behind


def test_run_folder_holds_what_happened(two_tasks: Federation, tiny_bert: Path, tasks: Path) -> None:
    folder, log = two_tasks.folder, two_tasks.log
    names = {path.name for path in folder.iterdir()}
    files = {SETTINGS, ADAPTER, CHECKPOINT, ROUNDS, LEDGER, OUTCOME, NODES, AUDIT, "audit-head.json"}
    assert names - {f".{AUDIT}.lock"} == files | {TENSORBOARD}
    verified = verify(folder)
    assert verified.rounds == 2
    assert [e.event for e in verified.entries if e.event != "upload"] == [
        "opened",
        *["admitted", "aggregated"] * 2,
        "ended",
    ]
    assert sum(entry.event == "upload" for entry in verified.entries) == 2 * 4
    assert json.loads((folder / OUTCOME).read_text()) == {"status": "completed"}
    written = json.loads((folder / SETTINGS).read_text())
    given = run_config_for(folder.parent, tiny_bert, tasks / "animals", tasks / "colours")
    assert written == {**run_config(Settings()), **given}
    assert log.outcome == "completed"
    assert [entry.round for entry in log.rounds] == [1, 2]
    assert all(entry.failures == () and entry.projection_error is None for entry in log.rounds)
    for entry in log.rounds:
        assert {name: figures.clients for name, figures in entry.tasks.items()} == {
            "animals": 2,
            "colours": 2,
        }
        assert entry.tasks["animals"].majority == pytest.approx(0.5)
        assert entry.tasks["colours"].majority == pytest.approx(1 / 3)


def test_adapter_file_fits_the_base_it_was_trained_on(two_tasks: Federation, tiny_bert: Path) -> None:
    adapter = load_adapter(two_tasks.folder / ADAPTER)
    assert adapter.layout.contract == layout_of(tiny_bert).contract
    assert adapter.base_name == str(tiny_bert)
    assert adapter.info["round"] == "2"
    # B1 starts at zero: it is not zero only where something was learned.
    assert all(np.abs(values).max() > 0 for name, values in adapter.state.items() if name.endswith(".B1"))


def test_every_node_keeps_its_own_head_on_its_own_disk(two_tasks: Federation, tiny_bert: Path) -> None:
    heads = {path.parent.name: load_head(path) for path in two_tasks.folder.glob(f"{NODES}/*/{HEAD}")}
    assert heads.keys() == {"animals-0", "colours-1", "animals-2", "colours-3"}
    contract = layout_of(tiny_bert).contract
    for name, head in heads.items():
        task = name.partition("-")[0]
        labels = {"animals": ("cat", "dog"), "colours": ("red", "green", "blue")}[task]
        assert (head.task, head.task_kind, head.labels) == (task, "classification", labels)
        assert head.contract == contract
        assert head.weight.shape == (len(labels), 32)
        assert np.abs(head.weight).max() > 0
    assert not np.array_equal(heads["animals-0"].weight, heads["animals-2"].weight)


def test_ledger_knows_every_message_of_every_node(two_tasks: Federation) -> None:
    transfers = two_tasks.log.transfers
    assert len(transfers) == 2 * 4 * 4  # rounds, nodes, train and evaluate there and back
    layout = load_adapter(two_tasks.folder / ADAPTER).layout
    defaults = Settings().codec
    updates, changes, states = (
        payload_sizes(layout, codec(name))
        for name in (defaults.upload, defaults.broadcast, codec(defaults.broadcast).state_codec)
    )
    for transfer in transfers:
        size = transfer.payload_bytes
        match transfer.phase, transfer.direction, transfer.round:
            case "train", "up", _:
                assert size in updates
            case "train", "down", 1:
                assert size - DIGEST_SIZE - len(deflated(layout)) in states
            case "train", "down", _:
                assert size == DIGEST_SIZE  # the nodes have it since they evaluated it
            case "evaluate", "down", _:
                assert size - 2 * DIGEST_SIZE in changes
            case _:
                assert size == 0
        carries = (transfer.phase, transfer.direction) != ("evaluate", "up")
        assert transfer.baseline_bytes == (4 * layout.lora_size(8) if carries else 0)
        assert transfer.head_bytes == 0


def test_adapter_file_is_bit_for_bit_what_every_node_has(two_tasks: Federation) -> None:
    adapter = load_adapter(two_tasks.folder / ADAPTER)
    for context in two_tasks.grid.contexts.values():
        held = np.frombuffer(context.state["fedkron.shared.arrays"]["vector"], np.float32)
        assert held.tobytes() == flatten(adapter.state, adapter.layout).tobytes()


def test_heads_that_are_local_are_in_no_message(two_tasks: Federation) -> None:
    layout = load_adapter(two_tasks.folder / ADAPTER).layout
    trained = [reply for reply in two_tasks.grid.up if reply.metadata.message_type == "train"]
    assert len(trained) == 8
    for reply in trained:
        assert set(reply.content) == {"arrays", "metrics", "origin"}
        assert set(reply.content["arrays"]) == {PAYLOAD}
        # It decodes with the saved layout, which has no head in it.
        assert decode(reply.content["arrays"][PAYLOAD], layout).update.keys() == layout.factor_names
    assert not any("head" in name for name in layout.factor_names)
    broadcasts = [message.content["arrays"] for message in two_tasks.grid.down]
    with_layout = [record for record in broadcasts if LAYOUT in record]
    assert len(with_layout) == 4  # to every node once
    for record in with_layout:
        assert unpack_broadcast(record).layout == layout
        assert len(record[LAYOUT]) < 1000
    for blob in (blob for record in broadcasts for blob in record[PAYLOAD]):
        header = inspect_header(blob)
        assert (header.contract, header.dense_bytes) == (layout.contract, 0)


def test_learning_on_the_federation_beats_the_majority(tmp_path: Path, tiny_bert: Path, tasks: Path) -> None:
    changes = {"num-server-rounds": 4, "train.epochs": 4}
    log = federation(tmp_path, tiny_bert, tasks / "animals", nodes=2, changes=changes).log
    last = log.rounds[-1].tasks["animals"]
    assert last.accuracy > last.majority + 0.2
    assert log.rounds[-1].train_loss < log.rounds[0].train_loss


# ------------------------------------------------------------------ determinism


def test_same_seed_gives_the_same_adapter_bytes_and_payloads_and_another_seed_others(
    two_tasks: Federation, tmp_path: Path, tiny_bert: Path, tasks: Path
) -> None:
    def state_of(run: Federation) -> dict[str, bytes]:
        return {name: values.tobytes() for name, values in load_adapter(run.folder / ADAPTER).state.items()}

    def uploads(run: Federation) -> dict[tuple[int, int], bytes]:
        payloads = [(m, m.content["arrays"][PAYLOAD]) for m in run.grid.up if "arrays" in m.content]
        return {(m.metadata.src_node_id, inspect_header(blob).round): blob for m, blob in payloads}

    def again(seed: int) -> Federation:
        sources = (tasks / "animals", tasks / "colours")
        return federation(tmp_path / str(seed), tiny_bert, *sources, changes={"seed": seed})

    same, other = again(0), again(1)
    assert state_of(same) == state_of(two_tasks)
    assert uploads(same) == uploads(two_tasks)
    assert state_of(other) != state_of(two_tasks)
    sizes, same_sizes = (
        # Counted, since replies are entered as they arrive.
        Counter((t.round, t.node, t.phase, t.direction, t.payload_bytes) for t in run.log.transfers)
        for run in (two_tasks, same)
    )
    assert same_sizes == sizes


# ------------------------------------------------------------------ settings that change the federation


def test_head_can_be_shared_by_tasks_with_the_same_labels(
    tmp_path: Path, tiny_bert: Path, tasks: Path
) -> None:
    changes = {"head": "shared", "head-labels": "cat,dog"}
    run = federation(tmp_path, tiny_bert, tasks / "animals", tasks / "pets", changes=changes)
    adapter = load_adapter(run.folder / ADAPTER)
    assert adapter.layout.contract == layout_of(tiny_bert).with_head(2, 32).contract
    assert adapter.state["head.weight"].shape == (2, 32)
    assert np.abs(adapter.state["head.weight"]).max() > 0
    assert run.log.rounds[-1].failures == ()
    assert not list((run.folder / NODES).rglob(HEAD))


def test_shared_head_is_refused_by_name_where_the_labels_differ(
    tmp_path: Path, tiny_bert: Path, tasks: Path
) -> None:
    changes = {"head": "shared", "head-labels": "cat,dog"}
    run = federation(tmp_path, tiny_bert, tasks / "animals", tasks / "colours", changes=changes)
    failures = run.log.rounds[0].failures
    assert len(failures) == 4  # two nodes, in training and in evaluation
    for failure in failures:
        assert "'head-labels' is 'cat,dog', but task 'colours' of node" in failure
        assert "red,green,blue" in failure
    assert run.log.rounds[-1].tasks.keys() == {"animals"}


def test_shared_head_without_labels_is_for_multiple_choice(
    tmp_path: Path, tiny_bert: Path, tasks: Path
) -> None:
    run = federation(tmp_path, tiny_bert, tasks / "quiz", nodes=2, changes={"head": "shared"})
    assert load_adapter(run.folder / ADAPTER).state["head.weight"].shape == (1, 32)
    assert run.log.rounds[-1].failures == ()


def test_multiple_choice_task_is_learned(tmp_path: Path, tiny_bert: Path, tasks: Path) -> None:
    run = federation(tmp_path, tiny_bert, tasks / "quiz", nodes=2)
    figures = run.log.rounds[-1].tasks["quiz"]
    assert figures.accuracy > figures.majority + 0.2
    head = load_head(run.folder / NODES / "quiz-0" / HEAD)
    assert (head.task_kind, head.labels, head.weight.shape) == ("multiple_choice", (), (1, 32))


def test_merged_aggregation_reports_what_its_projection_lost(
    tmp_path: Path, tiny_bert: Path, tasks: Path
) -> None:
    changes = {"aggregation": "merged"}
    run = federation(tmp_path, tiny_bert, tasks / "animals", tasks / "colours", changes=changes)
    assert all(0 < entry.projection_error < 1 for entry in run.log.rounds)
    assert load_adapter(run.folder / ADAPTER).info["aggregation"] == "merged"


@pytest.mark.parametrize("kind", [kind for kind in ADAPTER_KINDS if kind != "kron_lora"])
def test_every_other_kind_is_trained_and_sent_too(
    tmp_path: Path, tiny_bert: Path, tasks: Path, kind: str
) -> None:
    run = federation(tmp_path, tiny_bert, tasks / "animals", nodes=2, changes={"adapter.kind": kind})
    adapter = load_adapter(run.folder / ADAPTER)
    assert adapter.layout.contract == layout_of(tiny_bert, AdapterSpec(kind, rank=2, d_a2=4)).contract
    assert {module.kind for module in adapter.layout.modules} == {kind}
    assert (adapter.spec["kind"], adapter.spec["rank"]) == (kind, 2)
    assert adapter.lineage == (f"run {run.folder.name}: {run.log.rounds[-1].round} rounds on animals",)
    assert run.log.rounds[-1].failures == ()


def test_only_targeted_layers_travel(tmp_path: Path, tiny_bert: Path, tasks: Path) -> None:
    changes = {"adapter.targets": "*.query, *.value"}
    run = federation(tmp_path, tiny_bert, tasks / "animals", nodes=2, changes=changes)
    paths = [module.path for module in load_adapter(run.folder / ADAPTER).layout.modules]
    assert len(paths) == 4
    assert all(path.endswith((".query", ".value")) for path in paths)


def test_half_of_the_nodes_train_in_a_round_chosen_by_the_seed_and_all_evaluate(
    tmp_path: Path, tiny_bert: Path, tasks: Path
) -> None:
    def uploads(name: str) -> set[tuple[int, str, str]]:
        run = federation(tmp_path / name, tiny_bert, tasks / "animals", changes={"fraction-train": 0.5})
        return {(t.round, t.phase, t.node) for t in run.log.transfers if t.direction == "up"}

    first = uploads("first")
    assert Counter((round_, phase) for round_, phase, _ in first) == {
        (1, "query"): 4,  # who they are: ids differ from run to run
        (1, "train"): 2,
        (1, "evaluate"): 4,
        (2, "train"): 2,
        (2, "evaluate"): 4,
    }
    # Two choices of two nodes out of four: by chance they would agree once in 36 runs.
    assert uploads("second") == uploads("third") == first


def test_round_is_saved_without_evaluation_too(tmp_path: Path, tiny_bert: Path, tasks: Path) -> None:
    run = federation(tmp_path, tiny_bert, tasks / "animals", nodes=2, changes={"fraction-evaluate": 0.0})
    assert [entry.tasks for entry in run.log.rounds] == [{}, {}]
    assert load_adapter(run.folder / ADAPTER).info["round"] == "2"


# ------------------------------------------------------------------ nodes that fail


def test_node_with_another_base_is_refused_by_contract_and_the_others_go_on(
    tmp_path: Path, tiny_bert: Path, tasks: Path
) -> None:
    config = run_config_for(tmp_path, tiny_bert, tasks / "animals")
    grid = grid_of(config, 3)
    foreign = save_tiny_bert(tmp_path / "foreign", seed=5)
    grid.contexts[1002].run_config["base"] = str(foreign)
    run = federate(config, grid)
    assert run.log.outcome == "completed"
    for entry in run.log.rounds:
        training, evaluation = entry.failures
        for failure in (training, evaluation):
            assert failure.startswith("node 1002: ContractError: the server's adapter has contract ")
            assert f"this node's base '{foreign}' needs {layout_of(foreign).contract[:12]}" in failure
        assert entry.tasks["animals"].clients == 2


def test_node_whose_task_folder_is_missing_counts_as_failed_with_the_reason(
    tmp_path: Path, tiny_bert: Path, tasks: Path
) -> None:
    run = federation(tmp_path, tiny_bert, tasks / "animals", tasks / "colours", tasks / "nowhere", nodes=3)
    assert run.log.outcome == "completed"
    assert run.log.rounds[0].tasks.keys() == {"animals", "colours"}
    for failure in run.log.rounds[0].failures:
        assert failure.startswith("node 1002: ")
        assert f"There is no task folder {tasks / 'nowhere'}" in failure


def failed(output: Path, base: Path, *tasks: Path, **options: object) -> FedKronError:
    """The error of a run that must fail, after checking that its folder says the same."""
    with pytest.raises(FedKronError) as caught:
        federation(output, base, *tasks, **options)
    log = read_run(output / "run")
    assert log.outcome == "failed"
    assert log.error == f"{type(caught.value).__name__}: {caught.value}"
    return caught.value


def test_run_in_which_too_many_nodes_fail_ends_as_failed_with_the_first_reason(
    tmp_path: Path, tiny_bert: Path, tasks: Path
) -> None:
    error = failed(tmp_path, tiny_bert, tasks / "nowhere", nodes=2)
    assert isinstance(error, RunError)
    assert "round 1: 2 of 2 clients failed in training" in str(error)
    assert "There is no task folder" in str(error)


def test_base_whose_dimensions_do_not_divide_fails_with_the_layer_before_anything_is_sent(
    tmp_path: Path, tasks: Path
) -> None:
    base = save_tiny_bert(tmp_path / "base", hidden=30)
    error = failed(tmp_path, base, tasks / "animals", changes={"adapter.d-a2": 16})
    assert isinstance(error, AdapterError)
    assert "layer 'encoder.layer.0.attention.self.query' cannot be wrapped" in str(error)
    assert "30" in str(error)
    assert read_run(tmp_path / "run").transfers == ()


def test_missing_base_fails_with_its_name(tmp_path: Path, tasks: Path) -> None:
    error = failed(tmp_path, tmp_path / "no-base", tasks / "animals")
    assert isinstance(error, ConfigError)
    assert "no-base" in str(error)


def test_training_that_diverges_ends_as_failed_and_says_so(
    tmp_path: Path, tiny_bert: Path, tasks: Path
) -> None:
    changes = {"train.learning-rate": 1e30, "train.epochs": 3}
    error = failed(tmp_path, tiny_bert, tasks / "animals", nodes=2, changes=changes)
    assert "training diverged: lower train.learning-rate" in str(error)
    assert not (tmp_path / "run" / NODES).exists()


def test_run_folder_that_is_taken_is_refused_and_left_as_it_is(
    two_tasks: Federation, tiny_bert: Path, tasks: Path
) -> None:
    before = {path: path.read_bytes() for path in two_tasks.folder.rglob("*") if path.is_file()}
    with pytest.raises(ConfigError, match="is taken: choose another run-name"):
        federation(two_tasks.folder.parent, tiny_bert, tasks / "pets")
    assert {path: path.read_bytes() for path in two_tasks.folder.rglob("*") if path.is_file()} == before


def test_bad_setting_is_refused_before_a_folder_is_made(tmp_path: Path, tiny_bert: Path, tasks: Path) -> None:
    with pytest.raises(ConfigError, match=r"'codec.upload' is 'int5'"):
        federation(tmp_path, tiny_bert, tasks / "animals", changes={"codec.upload": "int5"})
    assert list(tmp_path.iterdir()) == []


def test_tasks_of_the_same_name_keep_their_heads_apart(tmp_path: Path, tiny_bert: Path, tasks: Path) -> None:
    other = write_texts(tmp_path / "animals", {"cow": "milk", "fox": "leaf"}, seed=8)
    run = federation(tmp_path / "runs", tiny_bert, tasks / "animals", other, nodes=2)
    heads = {load_head(path).labels for path in run.folder.glob(f"{NODES}/*/{HEAD}")}
    assert heads == {("cat", "dog"), ("cow", "fox")}
