"""Every way to combine, through the real programs: what nodes measured is what the exported bundle
answers.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
from federation_cases import Federation, ObservedGrid, federate, run_config_for

import clients.app
from fedkron.cli import main
from fedkron.edge.runtime import Bundle
from fedkron.errors import AdapterError, BundleError, RunError
from fedkron.exchange import load_adapter, load_terms
from fedkron.layout import HEAD_BIAS
from fedkron.rundir import ADAPTER, GROUPS, TERMS, group_directory

ANIMALS = "cat,dog"


def run(
    output: Path,
    base: Path,
    tasks: Sequence[Path],
    nodes: Sequence[Mapping[str, object]] = ({},) * 3,
    **changes: object,
) -> Federation:
    given = {name.replace("__", ".").replace("_", "-"): value for name, value in changes.items()}
    config = run_config_for(
        output, base, *tasks, changes={"num-server-rounds": 3, "train.epochs": 4, **given}
    )
    configs = [{"partition-id": i, "num-partitions": len(nodes), **own} for i, own in enumerate(nodes)]
    return federate(config, ObservedGrid(clients.app.app, configs, config))


def accuracy_of(bundle: Path, task: Path) -> float:
    """Of the bundle on the task's test texts, without torch."""
    rows = [json.loads(line) for line in (task / "test.jsonl").read_text().splitlines()]
    labels = json.loads((task / "labels.json").read_text())
    answers = Bundle.open(bundle).predict([row["text"] for row in rows], task.name)
    return float(
        np.mean([labels.index(a.label) == row["label"] for a, row in zip(answers, rows, strict=True)])
    )


@pytest.mark.parametrize("aggregation", ["factorwise", "merged", "merged_exact", "alternating", "stacked"])
def test_bundle_of_a_run_answers_as_the_nodes_measured(
    aggregation: str, tmp_path: Path, tiny_bert: Path, tasks: Path
) -> None:
    federation = run(tmp_path, tiny_bert, [tasks / "animals"], aggregation=aggregation, head="shared",
                     head_labels=ANIMALS)  # fmt: skip
    assert federation.log.outcome == "completed"
    assert all(entry.failures == () for entry in federation.log.rounds)
    projected = [entry.projection_error is not None for entry in federation.log.rounds]
    assert projected == [aggregation.startswith("merged")] * 3
    assert (federation.folder / TERMS).exists() == (aggregation in {"merged_exact", "stacked"})
    assert main(["export", str(federation.folder)]) == 0
    measured = federation.log.rounds[-1].tasks["animals"].accuracy
    assert accuracy_of(federation.folder / "bundle", tasks / "animals") == pytest.approx(measured)


def test_same_run_twice_has_the_same_bytes(tmp_path: Path, tiny_bert: Path, tasks: Path) -> None:
    for aggregation in ("alternating", "merged_exact"):
        folders = [
            run(
                tmp_path / f"{aggregation}-{i}", tiny_bert, [tasks / "animals"], aggregation=aggregation
            ).folder
            for i in (1, 2)
        ]
        for name in (ADAPTER, TERMS)[: 1 + (aggregation == "merged_exact")]:
            first, second = ((folder / name).read_bytes() for folder in folders)
            assert first == second


def test_adapter_of_a_base_with_terms_fits_nowhere_else(
    tmp_path: Path, tiny_bert: Path, tasks: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = run(tmp_path, tiny_bert, [tasks / "animals"], aggregation="stacked").folder
    head = folder / "nodes" / "animals-0" / "head.safetensors"
    assert main(["export", str(folder / ADAPTER), "--head", str(head), "-o", str(tmp_path / "alone")]) == 1
    assert "fingerprint" in capsys.readouterr().err
    assert main(["convert", str(folder), "--to", "peft", "-o", str(tmp_path / "peft")]) == 1
    assert "terms folded in, which would be lost here: export its run folder" in capsys.readouterr().err
    terms = (folder / TERMS).read_bytes()
    (folder / TERMS).write_bytes(terms[:-8] + b"\x00\x00\x80\x3f" * 2)
    assert main(["export", str(folder), "-o", str(tmp_path / "altered")]) == 1
    assert "fingerprint" in capsys.readouterr().err
    (folder / TERMS).write_bytes(terms[:-3])
    with pytest.raises(AdapterError, match="is not a safetensors file"):
        load_terms(folder / TERMS)


def test_alternating_nodes_answer_only_what_they_trained(
    tmp_path: Path, tiny_bert: Path, tasks: Path
) -> None:
    federation = run(tmp_path, tiny_bert, [tasks / "animals"], aggregation="alternating")
    turns = [
        {key for key in reply.content if key.startswith("arrays")}
        for reply in federation.grid.up
        if reply.metadata.message_type == "train"
    ]
    assert turns == [{"arrays.B1"}] * 3 + [{"arrays.B2"}] * 3 + [{"arrays.B1"}] * 3


@pytest.mark.parametrize("by", ["task", "cluster"])
def test_groups_have_adapters_and_bundles_of_their_own(
    by: str, tmp_path: Path, tiny_bert: Path, tasks: Path
) -> None:
    federation = run(tmp_path, tiny_bert, [tasks / "animals", tasks / "colours"], ({},) * 4, groups__by=by)
    groups = federation.log.groups
    assert sorted(node for nodes in groups.values() for node in nodes) == [
        "animals-0", "animals-2", "colours-1", "colours-3"
    ]  # fmt: skip
    assert {folder.name for folder in (federation.folder / GROUPS).iterdir()} == set(groups)
    if by == "task":
        assert groups == {"animals": ("animals-0", "animals-2"), "colours": ("colours-1", "colours-3")}
        assert main(["export", str(federation.folder), "--group", "colours"]) == 0
        bundle = federation.folder / GROUPS / "colours" / "bundle"
        assert set(Bundle.open(bundle).tasks()) == {"colours"}
        # Both nodes measured with their own heads; the bundle has that of the first one.
        measured = federation.log.rounds[-1].tasks["colours"].accuracy
        assert abs(accuracy_of(bundle, tasks / "colours") - measured) < 0.3
    from fedkron.commands.export import export_bundle

    with pytest.raises(BundleError, match="no group 'flowers' with an adapter: it has"):
        export_bundle(federation.folder, None, group="flowers", report=lambda _: None)


def test_nodes_of_different_sizes_learn_together(tmp_path: Path, tiny_bert: Path, tasks: Path) -> None:
    own = ({"rank": 1}, {"rank": 1, "d-a2": 2}, {})
    federation = run(
        tmp_path, tiny_bert, [tasks / "animals"], own, aggregation="merged", adapter__sizes="own",
        head="shared", head_labels=ANIMALS, codec__broadcast="fp32",
    )  # fmt: skip
    assert all(entry.failures == () for entry in federation.log.rounds)
    assert federation.log.rounds[-1].tasks["animals"].accuracy > 0.9
    whole = load_adapter(federation.folder / ADAPTER)
    ranks = {}
    for name, nodes in federation.log.groups.items():
        adapter = load_adapter(group_directory(federation.folder, name) / ADAPTER)
        B2 = next(values for tensor, values in adapter.state.items() if tensor.endswith(".B2"))
        ranks[nodes] = len(B2)
        np.testing.assert_allclose(adapter.state[HEAD_BIAS], whole.state[HEAD_BIAS], atol=1e-6)
    assert ranks == {("animals-0",): 1, ("animals-1",): 1, ("animals-2",): 2}
    # What travelled had the node's own size.
    sizes = {
        reply.metadata.src_node_id: sum(map(len, (reply.content["arrays"]["fedkron.payload"],)))
        for reply in federation.grid.up
        if reply.metadata.message_type == "train"
    }
    assert sizes[1000] < sizes[1002]


def test_size_that_does_not_fit_is_a_failure_of_its_node(
    tmp_path: Path, tiny_bert: Path, tasks: Path
) -> None:
    own = ({"rank": 5}, {}, {})
    federation = run(
        tmp_path, tiny_bert, [tasks / "animals"], own, aggregation="merged", adapter__sizes="own"
    )
    failures = federation.log.rounds[0].failures
    assert failures
    assert all("rank is 5" in failure and "it may be 1 to 2" in failure for failure in failures)


def test_size_of_its_own_needs_the_setting(tmp_path: Path, tiny_bert: Path, tasks: Path) -> None:
    with pytest.raises(RunError, match=r"set the run-config key adapter\.sizes = 'own'"):
        run(tmp_path, tiny_bert, [tasks / "animals"], ({"rank": 1},) * 3)


@pytest.mark.parametrize("strategy", ["fedprox", "fedavgm", "fedadagrad", "fedadam", "fedyogi"])
def test_server_strategies_of_flower_run_on_the_merged_adapter(
    strategy: str, tmp_path: Path, tiny_bert: Path, tasks: Path
) -> None:
    common = {"aggregation": "merged", "num_server_rounds": 2}
    plain = run(tmp_path / "plain", tiny_bert, [tasks / "animals"], **common)
    other = run(tmp_path / "other", tiny_bert, [tasks / "animals"], server__strategy=strategy, **common)
    assert other.log.outcome == "completed"
    first, second = (load_adapter(f.folder / ADAPTER).state for f in (plain, other))
    assert any(not np.array_equal(first[name], second[name]) for name in first)


def test_proximal_term_keeps_nodes_near_what_they_received(
    tmp_path: Path, tiny_bert: Path, tasks: Path
) -> None:
    drifts = []
    for mu in (0.0, 100.0):
        federation = run(
            tmp_path / str(mu), tiny_bert, [tasks / "animals"], server__strategy="fedprox",
            server__proximal_mu=mu, num_server_rounds=1, codec__upload="fp32",
        )  # fmt: skip
        adapter = load_adapter(federation.folder / ADAPTER).state
        drifts.append(sum(float((v**2).sum()) for name, v in adapter.items() if name.endswith("B1")))
    assert drifts[1] < 0.5 * drifts[0]
