import pytest
from torch import nn

from fedkron.adapters import AdapterSpec, adapter_kind
from fedkron.errors import AdapterError

DIVIDING_KINDS = ["kron_lora", "krona", "adakron", "moka"]


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("kron_lora", {"A": (4, 2), "B1": (768, 8), "B2": (8, 384)}),
        ("lora", {"lora_A": (8, 768), "lora_B": (3072, 8)}),
        ("krona", {"A": (4, 2), "B": (768, 384)}),
        ("adakron", {"A": (3, 4, 2), "B1": (768, 24), "B2": (24, 384), "gates": (3,)}),
        ("moka", {"A": (3, 4, 2), "B1": (768, 24), "B2": (24, 384), "gates": (3,)}),
    ],
)
def test_factors_have_the_shapes_of_the_papers(kind: str, expected: dict[str, tuple[int, ...]]) -> None:
    # DistilBERT's first feed-forward layer: 768 → 3072 with d_A1 = 2, d_A2 = 4, r = 8.
    layer = adapter_kind(kind).wrap(nn.Linear(768, 3072), AdapterSpec(kind, d_a2=4, terms=3))
    assert {name: tuple(factor.shape) for name, factor in layer.factors().items()} == expected


@pytest.mark.parametrize("kind", DIVIDING_KINDS)
@pytest.mark.parametrize(
    ("d_in", "d_out", "message"),
    [
        (9, 8, r"d_in = 9 does not divide by d_a1 = 2: d_a1 may be 1, 3, 9$"),
        (8, 10, r"d_out = 10 does not divide by d_a2 = 4: d_a2 may be 1, 2, 5, 10$"),
    ],
)
def test_a_layer_that_does_not_divide_is_refused_with_the_divisors_that_would(
    kind: str, d_in: int, d_out: int, message: str
) -> None:
    with pytest.raises(AdapterError, match=message):
        adapter_kind(kind).wrap(nn.Linear(d_in, d_out), AdapterSpec(kind, d_a1=2, d_a2=4))


@pytest.mark.parametrize("kind", DIVIDING_KINDS)
def test_a_spec_without_d_a2_is_refused(kind: str) -> None:
    with pytest.raises(AdapterError, match="d_a2 is not set"):
        adapter_kind(kind).wrap(nn.Linear(8, 8), AdapterSpec(kind))
