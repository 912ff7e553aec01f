import numpy as np
import pytest
from aggregation_cases import kron_module, layout_of, neighbours

from fedkron.aggregation import AGGREGATIONS, aggregate, factorwise_mean, merged_mean
from fedkron.errors import ConfigError

LAYOUT = layout_of(kron_module())
ADAPTERS = neighbours(LAYOUT, 3, np.random.default_rng(0))


def test_factorwise_by_name_is_the_factor_mean_and_projects_nothing() -> None:
    result = aggregate("factorwise", ADAPTERS, [1, 2, 3], LAYOUT)
    expected = factorwise_mean(ADAPTERS, [1, 2, 3], LAYOUT)
    assert all(np.array_equal(result.adapter[name], expected[name]) for name in expected)
    assert result.projection_error is None


def test_merged_by_name_is_the_merged_mean_with_its_projection_error() -> None:
    result = aggregate("merged", ADAPTERS, [1, 2, 3], LAYOUT)
    expected = merged_mean(ADAPTERS, [1, 2, 3], LAYOUT)
    assert all(np.array_equal(result.adapter[name], expected.adapter[name]) for name in expected.adapter)
    assert result.projection_error == expected.projection_error > 0


def test_an_unknown_name_is_answered_with_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="aggregation 'median' does not exist") as error:
        aggregate("median", ADAPTERS, [1, 2, 3], LAYOUT)
    assert all(name in str(error.value) for name in AGGREGATIONS)
