"""Maps by PCA of one epoch and the next are not each other's mirror images."""

import numpy as np
import pytest

from t3vis import open_run
from t3vis.aligned import aligned_pca, signs
from t3vis.analyze_projection import analyzed_projection
from t3vis.example_columns import columns_of
from tests.test_analyze_projection import LAYERS, recorded


@pytest.mark.parametrize("mirrored", [(-1, 1), (1, -1), (-1, -1), (1, 1)])
def test_a_map_that_is_mirrored_is_turned_back(mirrored):
    rng = np.random.default_rng(0)
    first = rng.normal(size=(40, 2)) * [3, 1]
    drifted = first + rng.normal(size=(40, 2)) / 10
    unseen = drifted * mirrored
    unseen[:5] = np.nan
    assert signs([first, unseen]).tolist() == list(mirrored)
    assert signs([first, unseen, drifted]).tolist() == [1, 1]  # an epoch between does not matter


def test_every_epoch_is_shown_as_the_one_before(tmp_path):
    epoch = iter(range(3))
    path = recorded(tmp_path / "run.zarr", unseen={1: [3]}, spoiled=lambda states: states * (-1) ** next(epoch))
    run = open_run(path)
    columns = {column.id: column for column in columns_of(run, run.train)}
    shown = [[columns[f"{axis}:pca:{LAYERS[0]}@{index}"].values() for axis in "xy"] for index in range(3)]
    for index, axes in enumerate(shown):
        kept = analyzed_projection(run, run.train, pass_index=index, layer=LAYERS[0], method="pca").coordinates
        np.testing.assert_array_equal(np.abs(axes), np.abs(kept.T))
        if index:
            assert (np.nansum(np.multiply(axes, shown[index - 1]), axis=1) > 0).all()
    found = aligned_pca(run, run.train, layer=LAYERS[0], pass_index=2)
    np.testing.assert_array_equal([found["x"], found["y"]], shown[2])
