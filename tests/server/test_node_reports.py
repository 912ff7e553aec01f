"""What is written down of single nodes: what they sent, and no measurement where they are protected."""

import json
from pathlib import Path

import numpy as np
import pytest
from federation_cases import Federation, federate, grid_of, run_config_for

from fedkron.audit import read_log
from fedkron.compression import decode
from fedkron.exchange import load_adapter
from fedkron.flower.wire import PAYLOAD
from fedkron.rundir import ADAPTER, AUDIT, ROUNDS


def federation(output: Path, base: Path, *tasks: Path, nodes: int, **changes: object) -> Federation:
    config = run_config_for(output, base, *tasks, changes=changes)
    return federate(config, grid_of(config, nodes))


def nodes_of(run: Federation) -> list[dict[str, dict]]:
    return [json.loads(line)["nodes"] for line in (run.folder / ROUNDS).read_text().splitlines()]


def test_nodes_are_written_down_with_what_they_sent(tmp_path: Path, tiny_bert: Path, tasks: Path) -> None:
    run = federation(tmp_path, tiny_bert, tasks / "animals", tasks / "quiz", tmp_path / "nowhere", nodes=3)
    layout = load_adapter(run.folder / ADAPTER).layout
    uploads = [reply for reply in run.grid.up if reply.has_content() and "arrays" in reply.content]
    measured = [reply for reply in run.grid.up if reply.has_content() and "arrays" not in reply.content]
    for number, nodes in enumerate(nodes_of(run)):
        assert set(nodes) == {"1000", "1001", "1002"}
        for reply in uploads[2 * number : 2 * number + 2]:
            node = nodes[str(reply.metadata.src_node_id)]
            update = decode(reply.content["arrays"][PAYLOAD], layout).update
            norm = np.sqrt(sum(float(np.sum(values.astype(np.float64) ** 2)) for values in update.values()))
            assert node["update_norm"] == pytest.approx(norm, rel=1e-5)
            metrics = dict(next(iter(reply.content.metric_records.values())))
            assert node["examples"] == metrics.pop("num-examples")
            assert node["trained"] == metrics
            assert node["failures"] == []
        for reply in measured[2 * number : 2 * number + 2]:
            metrics = dict(next(iter(reply.content.metric_records.values())))
            del metrics["num-examples"]
            assert nodes[str(reply.metadata.src_node_id)]["evaluated"] == metrics
        assert [nodes["1000"][key] for key in ("task", "partition")] == ["animals", 0]
        assert (nodes["1002"]["task"], nodes["1002"]["examples"]) == ("", None)
        assert len(nodes["1002"]["failures"]) == 2


PROTECTED: dict[str, dict[str, object]] = {
    "central privacy": {"privacy.kind": "central"},
    "local privacy": {"privacy.kind": "local"},
    "secure aggregation": {"secure.aggregation": True},
}


@pytest.mark.parametrize("name", PROTECTED)
def test_of_protected_nodes_only_what_the_audit_log_says(
    name: str, tmp_path: Path, tiny_bert: Path, tasks: Path
) -> None:
    changes = {"num-server-rounds": 1, **PROTECTED[name]}
    run = federation(tmp_path, tiny_bert, tasks / "animals", nodes=3, **changes)
    (nodes,) = nodes_of(run)
    (admitted,) = [e.fields["nodes"] for e in read_log(run.folder / AUDIT) if e.event == "admitted"]
    said = {n["node"]: (n["task"], n["partition"], n["weight"]) for n in admitted}
    assert {i: (n["task"], n["partition"], n["examples"]) for i, n in nodes.items()} == said
    for node in nodes.values():
        assert (node["update_norm"], node["trained"], node["evaluated"]) == (None, {}, {})
    assert run.log.rounds[0].tasks  # the means are there
