"""What a node may answer: everything else is refused with its reason, and the round goes on without it."""

import struct
import zlib
from collections.abc import Callable, Iterable

import numpy as np
import pytest
from flwr.app import ConfigRecord, Context, Message, MetricRecord
from seam_cases import SHAPES, initial, record, state_of, third_party_app

from fedkron.compression import HEADER_SIZE, codec, encode
from fedkron.flower import FedKron, compressed_exchange
from fedkron.flower.awaited import Arrival
from fedkron.flower.round_report import Verdict
from fedkron.flower.unopened_grid import UnopenedGrid
from fedkron.flower.wire import PAYLOAD
from fedkron.layout import AdapterLayout
from simulations.in_process import InProcessGrid, transported

LAYOUT = AdapterLayout.of_arrays(initial())
LIAR = 1
Change = Callable[[Message], None]


def resealed(payload: bytearray) -> bytes:
    """With a checksum that is right again."""
    checksum = zlib.crc32(payload[HEADER_SIZE:], zlib.crc32(payload[: HEADER_SIZE - 4]))
    payload[HEADER_SIZE - 4 : HEADER_SIZE] = struct.pack("<I", checksum)
    return bytes(payload)


def other_payload(make: Callable[[bytes], bytes]) -> Change:
    def change(reply: Message) -> None:
        reply.content["arrays"] = ConfigRecord({PAYLOAD: make(reply.content["arrays"][PAYLOAD])})

    return change


def patched(start: int, values: bytes) -> Change:
    def patch(payload: bytes) -> bytes:
        changed = bytearray(payload)
        changed[start : start + len(values)] = values
        return resealed(changed)

    return other_payload(patch)


def zeros(name: str, round_: int = 1) -> bytes:
    nothing = {tensor.name: np.zeros(tensor.shape, np.float32) for tensor in LAYOUT.tensors}
    return encode(nothing, LAYOUT, codec(name), round=round_)


def add(key: str, entry: object) -> Change:
    def change(reply: Message) -> None:
        reply.content[key] = entry

    return change


def foreign() -> bytes:
    layout = AdapterLayout.of_arrays({"weight": np.zeros((40, 30), np.float32)})
    return encode({"weight": np.zeros((40, 30), np.float32)}, layout, codec("int4"), round=1)


LIES: dict[str, tuple[Change, str]] = {
    "other codec": (
        other_payload(lambda _: zeros("fp32")),
        "payload is encoded with fp32, the server asked for int4",
    ),
    "other round": (other_payload(lambda _: zeros("int4", 7)), "payload is of round 7, expected round 1"),
    "flipped byte": (other_payload(lambda p: p[:-1] + bytes([p[-1] ^ 1])), "checksum"),
    "cut off": (other_payload(lambda p: p[:-1]), "truncated"),
    "longer": (other_payload(lambda p: p + b"\0"), "trailing"),
    "NaN, sealed": (patched(HEADER_SIZE, struct.pack("<f", float("nan"))), "nan"),
    "another adapter": (other_payload(lambda _: foreign()), "payload has contract"),
    "no payload": (add("arrays", ConfigRecord({"x": 1})), "expected"),
    "uncompressed": (add("arrays", record(initial())), "uncompressed"),
    "a second one": (
        add("arrays.2", ConfigRecord({PAYLOAD: zeros("int4")})),
        "answers nothing that was sent",
    ),
    "ballast": (add("ballast", ConfigRecord({"x": bytes(1 << 17)})), "bytes beside its uploads"),
    "no weight": (add("metrics", MetricRecord({"num-examples": 0})), "expected a number above 0"),
    "NaN metric": (
        add("metrics", MetricRecord({"num-examples": 3, "partition": float("nan")})),
        "finite number",
    ),
}


class TwiceGrid(InProcessGrid):
    """One node answers each message twice, and another node that was not asked answers, too."""

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        replies = list(super().pull_messages(message_ids))
        for reply in [r for r in replies if r.metadata.src_node_id == 1000 + LIAR]:
            stranger = transported(reply)
            stranger.metadata.__dict__["_src_node_id"] = 77
            replies += [transported(reply), stranger]
        return replies


class Run:
    """Four nodes, one round; the second node's reply is changed by `lie`."""

    def __init__(self, lie: Change = id, grid: type[InProcessGrid] = InProcessGrid) -> None:
        def liar(message: Message, context: Context, call_next: Callable) -> Message:
            reply = call_next(message, context)
            if context.node_config["partition-id"] == LIAR and message.metadata.message_type == "train":
                lie(reply)
            return reply

        self.arrivals: list[Arrival] = []
        self.verdicts: list[Verdict] = []
        seam = UnopenedGrid(
            grid(third_party_app([liar, compressed_exchange]), 4, {}),
            upload="int4",
            broadcast="fp32",
            on_upload=self.arrivals.append,
        )
        strategy = FedKron(
            LAYOUT,
            uploads=seam.uploads,
            norm_limit=10,
            on_verdict=self.verdicts.append,
            max_failure_fraction=0.5,
        )
        result = strategy.start(seam, record(initial()), num_rounds=1)
        self.arrays = state_of(result.arrays)


@pytest.mark.parametrize("name", LIES)
def test_a_lie_is_refused_with_its_reason_and_leaves_no_trace(name: str) -> None:
    lie, said = LIES[name]
    run = Run(lie)
    verdict = run.verdicts[0]
    assert verdict.refused.keys() == {1000 + LIAR}
    assert said in verdict.refused[1000 + LIAR]
    assert [origin.node for origin in verdict.admitted] == [1000, 1002, 1003]

    def absent(_reply: Message) -> None:
        raise RuntimeError("not there")

    without = Run(absent)
    assert all(np.array_equal(run.arrays[name], without.arrays[name]) for name in SHAPES)


def test_one_upload_per_node_and_round_and_only_from_those_who_were_asked() -> None:
    run = Run(grid=TwiceGrid)
    assert {origin.node for origin in run.verdicts[0].admitted} == {1000, 1002, 1003}
    refused = run.verdicts[0].refused
    assert "it is the second of this node" in refused[1000 + LIAR]
    assert "nothing was asked of this node" in refused[77]
    assert refused.keys() == {77, 1000 + LIAR}


def test_what_arrives_is_told_with_its_hash_whether_it_is_admitted_or_not() -> None:
    run = Run(LIES["other round"][0])
    assert sorted(arrival.node for arrival in run.arrivals) == [1000, 1001, 1002, 1003]
    sizes = {size for arrival in run.arrivals for _, size in arrival.payloads.values()}
    assert sizes == {len(zeros("int4"))}
    digests = {digest for arrival in run.arrivals for digest, _ in arrival.payloads.values()}
    assert len(digests) == 4
