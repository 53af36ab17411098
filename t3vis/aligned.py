"""Maps by PCA with the signs that let epochs be laid beside each other.

The sign of a principal component is arbitrary, so that the map of one epoch may be the mirror image of that of the
epoch before. The viewer shows each axis with the sign that makes it run as in the epoch before; t-SNE maps start from
each other and need none of this (`t3vis.analyze_projection`). Axes stay principal components: nothing is rotated.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from t3vis.analyze_projection import analyzed_projection
from t3vis.store.reader import Run, Split


def aligned_pca(run: Run, split: Split, *, layer: int, pass_index: int) -> dict[str, NDArray[np.float32]]:
    """Coordinates ``x`` and ``y`` of a map, aligned with those of the same layer in all epochs before.

    Raises
    ------
    AnalysisError
        As `analyzed_projection`.
    """
    earlier = [
        record.index
        for record in split.passes
        if record.index <= pass_index and "hidden_states" not in record.attributes.get("dropped", ())
    ]
    maps = [
        analyzed_projection(run, split, pass_index=index, layer=layer, method="pca").coordinates for index in earlier
    ]
    x, y = (maps[-1] * signs(maps)).T
    return {"x": x, "y": y}


def signs(maps: Iterable[NDArray[np.floating]]) -> NDArray[np.float32]:
    """The signs by which the last map runs as the first does, each map compared with the one before.

    Parameters
    ----------
    maps
        Each of shape (n_examples, 2); NaN for an example that is not on the map.

    Returns
    -------
    Shape (2,), 1 or -1 by axis.

    Examples
    --------
    >>> first = np.array([[-2.0, 1.0], [1.0, -1.0], [1.0, 0.0]])
    >>> signs([first, first * [-1, 1], first * [-1, -1]]).tolist()
    [-1.0, -1.0]
    """
    turned = np.ones(2, np.float32)
    for before, after in pairwise(maps):
        agreement = np.nansum(before * after, axis=0, dtype=np.float64)  # axes of a PCA have a mean of zero
        turned[agreement < 0] *= -1
    return turned
