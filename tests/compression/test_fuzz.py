"""A bounded part of benchmarks/fuzz_payload.py: the same mutations, the same judge."""

from collections import Counter
from collections.abc import Iterator
from random import Random

import pytest

from benchmarks.fuzz_payload import mutants
from benchmarks.fuzzing.judging import ACCEPTED, DecoderFaultError, judge, memory_limit, traced_memory
from benchmarks.fuzzing.mutations import MUTATIONS, Mutant, Sealing, mutant_of, sealed
from benchmarks.fuzzing.rewriting import rewritten
from benchmarks.fuzzing.victims import LARGE, SMALL, Victim, victims

VICTIMS = victims(SMALL, seed=0)
LARGE_VICTIMS = victims([LARGE], seed=0)[::3]


@pytest.fixture(autouse=True, scope="module")
def tracing() -> Iterator[None]:
    with traced_memory():
        yield


@pytest.mark.parametrize("victim", VICTIMS)
def test_a_right_payload_is_written_the_one_way_it_can_be_written(victim: Victim) -> None:
    assert rewritten(victim.payload, victim.layout) == victim.payload
    assert sealed(victim.payload, Sealing.REFITTED) == victim.payload


def test_the_same_seed_makes_the_same_mutants() -> None:
    assert list(mutants(VICTIMS, VICTIMS, 200, seed=3)) == list(mutants(VICTIMS, VICTIMS, 200, seed=3))


def test_the_judge_objects_to_what_is_accepted_without_a_checksum_made_right() -> None:
    with pytest.raises(DecoderFaultError, match="accepted with a checksum that nobody made right"):
        judge(Mutant("", Sealing.RAW, VICTIMS[0].payload), VICTIMS[0])


@pytest.mark.filterwarnings("error")
def test_mutants_are_refused_or_are_right_payloads_themselves() -> None:
    chance = Random(1)
    outcomes: Counter[str] = Counter()
    for _ in range(4000):
        victim = chance.choice(VICTIMS)
        mutant = mutant_of(victim, chance.choice(VICTIMS), chance)
        outcomes[judge(mutant, victim).outcome] += 1
    assert set(outcomes) == {
        ACCEPTED,
        *("PayloadError", "UnknownVersionError", "UnknownCodecError", "TruncatedPayloadError"),
        *("TrailingBytesError", "ChecksumError", "NonFiniteError", "ContractError"),
    }
    assert outcomes[ACCEPTED] < 2000


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", ["lengths", "header field", "entropy table", "entropy recoded"])
def test_attacks_on_lengths_and_counts_allocate_no_more_than_the_layout_needs(name: str) -> None:
    chance = Random(2)
    for number in range(300):
        victim = chance.choice(LARGE_VICTIMS if number % 10 == 0 else VICTIMS)
        data = bytearray(victim.payload)
        MUTATIONS[name](data, chance, chance.choice(VICTIMS))
        sealing = chance.choice((Sealing.RESEALED, Sealing.REFITTED))
        verdict = judge(Mutant(name, sealing, sealed(bytes(data), sealing)), victim)
        assert verdict.allocated <= memory_limit(victim)
