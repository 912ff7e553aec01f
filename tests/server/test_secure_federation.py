"""Secure aggregation through the real programs, with identities that the nodes know, and without."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from federation_cases import Federation, ObservedGrid, federate, run_config_for

import clients.app
from fedkron.errors import RunError
from fedkron.flower.secure_wire import MASKED
from fedkron.flower.wire import PAYLOAD
from fedkron.secure.keys import new_identity

NODES = 4


def identities(folder: Path, count: int = NODES) -> list[dict[str, object]]:
    """Node configs that name a key pair for each node, and the list of all public keys."""
    configs, lines = [], []
    for number in range(count):
        key, path = new_identity(), folder / f"node{number}"
        path.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()))
        path.chmod(0o600)
        lines.append(key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode())
        configs.append({"secure-identity": str(path), "secure-peers": str(folder / "peers")})
    (folder / "peers").write_text("\n".join(lines) + "\n")
    return configs


def run(
    output: Path, base: Path, task: Path, nodes: Sequence[Mapping[str, object]], **changes: object
) -> Federation:
    given = {name.replace("__", ".").replace("_", "-"): value for name, value in changes.items()}
    config = run_config_for(output, base, task, changes={"train.epochs": 4, **given})
    configs = [{"partition-id": i, "num-partitions": len(nodes), **own} for i, own in enumerate(nodes)]
    return federate(config, ObservedGrid(clients.app.app, configs, config))


def test_a_run_learns_as_much_from_sums_as_from_single_uploads(
    tmp_path: Path, tiny_bert: Path, tasks: Path
) -> None:
    shared = {"head": "shared", "head_labels": "cat,dog", "num_server_rounds": 3}
    secure = run(
        tmp_path / "secure",
        tiny_bert,
        tasks / "animals",
        identities(tmp_path),
        secure__aggregation=True,
        **shared,
    )
    plain = run(
        tmp_path / "plain", tiny_bert, tasks / "animals", [{}] * NODES, codec__upload="fp32", **shared
    )
    assert secure.log.outcome == "completed"
    assert all(entry.failures == () for entry in secure.log.rounds)
    accuracies = [log.rounds[-1].tasks["animals"].accuracy for log in (secure.log, plain.log)]
    assert accuracies[0] >= accuracies[1] - 0.1
    assert accuracies[0] > 0.7
    uploads = [
        [key for key in (MASKED, PAYLOAD) for found in reply.content.config_records.values() if key in found]
        for reply in secure.grid.up
        if reply.metadata.message_type == "train"
    ]
    assert uploads == [[MASKED]] * (3 * NODES)
    phases = {transfer.phase for transfer in secure.log.transfers}
    assert phases == {"query.secure_keys", "query.secure_shares", "train", "query.secure_unmask", "evaluate"}
    up = [t for t in secure.log.transfers if (t.phase, t.direction) == ("train", "up")]
    assert all(t.head_bytes > 0 and t.factor_bytes > t.head_bytes and t.baseline_bytes > 0 for t in up)


def test_one_node_whose_identity_nobody_knows_ends_the_run(
    tmp_path: Path, tiny_bert: Path, tasks: Path
) -> None:
    nodes = identities(tmp_path)
    peers = tmp_path / "peers"
    peers.write_text("".join(peers.read_text().splitlines(keepends=True)[:-1]))
    with pytest.raises(
        RunError, match=r"clients failed in training.* which is not in the list of nodes' keys"
    ):
        run(tmp_path, tiny_bert, tasks / "animals", nodes, secure__aggregation=True)


def test_two_nodes_are_too_few_for_a_sum_that_hides_either(
    tmp_path: Path, tiny_bert: Path, tasks: Path
) -> None:
    with pytest.raises(RunError, match="round 1 has 2 nodes, fewer than 3"):
        run(tmp_path, tiny_bert, tasks / "animals", [{}] * 2, secure__aggregation=True)
