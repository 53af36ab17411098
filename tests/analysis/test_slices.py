import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from t3vis.analysis.slices import by_group, quantile_groups
from t3vis.errors import AnalysisError

NAN = np.nan
COLUMNS = st.lists(st.tuples(st.one_of(st.just(NAN), st.floats(-9, 9)), st.integers(-1, 3)), min_size=1, max_size=30)


def test_by_group_by_hand():
    values = np.array([1.0, 5.0, NAN, 3.0, 7.0, 9.0])
    found = by_group(values, np.array([0, 0, 0, 0, 2, -1]), n_groups=4)
    assert found.n_examples.tolist() == [4, 0, 1, 0]
    assert found.n_known.tolist() == [3, 0, 1, 0]
    np.testing.assert_array_equal(found.mean, [3, NAN, 7, NAN])
    np.testing.assert_array_equal(found.quantiles[0], [2, 3, 4])
    np.testing.assert_array_equal(found.quantiles[2], [7, 7, 7])
    assert np.isnan(found.quantiles[[1, 3]]).all()


@given(COLUMNS)
def test_each_group_is_what_numpy_says_of_its_examples(rows):
    values, groups = np.array([value for value, _ in rows]), np.array([group for _, group in rows])
    found = by_group(values, groups, n_groups=4)
    for group in range(4):
        own = values[groups == group]
        known = own[~np.isnan(own)]
        assert (found.n_examples[group], found.n_known[group]) == (len(own), len(known))
        if len(known):
            np.testing.assert_allclose(found.mean[group], known.mean(), atol=1e-12)
            np.testing.assert_allclose(found.quantiles[group], np.quantile(known, [0.25, 0.5, 0.75]), atol=1e-12)


def test_masks_and_counts_can_be_summed_up_too():
    assert by_group(np.array([True, False, True]), np.array([0, 0, 1])).mean.tolist() == [0.5, 1]


@given(st.lists(st.integers(0, 20), min_size=1, max_size=50), st.integers(1, 6))
def test_quantile_groups_keep_order_and_equal_values_together(values, n_groups):
    column = np.array(values)
    groups, edges = quantile_groups(column, n_groups)
    assert 0 <= groups.min() <= groups.max() < n_groups
    order = np.argsort(column, kind="stable")
    assert np.all(np.diff(groups[order]) >= 0)
    for value in set(values):
        assert len(set(groups[column == value])) == 1
    assert (edges[0], edges[-1]) == (column.min(), column.max())


@given(st.lists(st.floats(-9, 9), min_size=2, max_size=50, unique=True), st.integers(1, 6))
def test_quantile_groups_are_those_of_pandas(values, n_groups):
    groups, edges = quantile_groups(np.array(values), n_groups)
    assert groups.tolist() == pd.cut(values, [*edges[:-1], np.inf], right=False, labels=False).tolist()


def test_what_is_not_known_is_in_no_group():
    groups, _ = quantile_groups(np.array([1.0, NAN, 2.0]), 2)
    assert groups.tolist() == [0, -1, 1]
    groups, edges = quantile_groups(np.array([NAN]), 2)
    assert (groups.tolist(), len(edges)) == ([-1], 0)


def test_errors_say_what_disagrees():
    with pytest.raises(AnalysisError, match=r"values has shape \(3,\) but groups has shape \(2,\)"):
        by_group(np.zeros(3), np.zeros(2, int))
    with pytest.raises(AnalysisError, match="there is a group 3 but n_groups is 2"):
        by_group(np.zeros(1), np.array([3]), n_groups=2)
    with pytest.raises(AnalysisError, match="n_groups is 0"):
        quantile_groups(np.zeros(3), 0)
