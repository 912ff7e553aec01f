import numpy as np
import pytest
from aggregation_cases import combined, kron_module, layout_of, neighbours

from fedkron.aggregation import (
    AGGREGATIONS,
    FactorwiseMean,
    MergedExact,
    MergedMean,
    Stacked,
    aggregate,
    aggregator,
)
from fedkron.errors import AdapterError, ConfigError
from fedkron.layout import ModuleLayout, TensorLayout

LAYOUT = layout_of(kron_module())
ADAPTERS = neighbours(LAYOUT, 3, np.random.default_rng(0))
WAYS = {"factorwise": FactorwiseMean, "merged": MergedMean, "merged_exact": MergedExact, "stacked": Stacked}


def test_these_ways_exist() -> None:
    assert dict(AGGREGATIONS) == WAYS


@pytest.mark.parametrize("name", WAYS)
def test_by_name_it_is_the_same_as_by_class(name: str) -> None:
    result, expected = (
        aggregate(name, ADAPTERS, [1, 2, 3], LAYOUT),
        combined(WAYS[name](LAYOUT), ADAPTERS, [1, 2, 3]),
    )
    assert all(np.array_equal(result.adapter[key], expected.adapter[key]) for key in expected.adapter)
    assert result.projection_error == expected.projection_error
    assert (result.terms is None) == (expected.terms is None)
    for key in expected.terms or {}:
        assert np.array_equal(result.terms[key], expected.terms[key])


def test_an_unknown_name_is_answered_with_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="aggregation 'median' does not exist") as error:
        aggregator("median", LAYOUT)
    assert all(name in str(error.value) for name in WAYS)


def test_a_weight_for_each_adapter_is_asked_for() -> None:
    with pytest.raises(ConfigError, match="2 weights for 3 adapters"):
        aggregate("merged", ADAPTERS, [1, 2], LAYOUT)


@pytest.mark.parametrize("name", ["merged", "merged_exact", "stacked"])
def test_a_kind_that_a_way_cannot_do_is_refused_before_anybody_trains(name: str) -> None:
    layout = layout_of(ModuleLayout("q", "moka", 1.0, (4, 4), (TensorLayout("gates", (4,)),)))
    with pytest.raises(AdapterError, match=rf"'q' has kind 'moka', {name} aggregation knows .*krona"):
        aggregator(name, layout)
