"""Margins: by how much the given label won or lost, over training, and the threshold below which it is wrong."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from t3vis.analysis.trajectories import (
    CHUNK_SIZE,
    Columns,
    LogitsLike,
    by_example,
    check_logits_and_labels,
    classes_first,
    mean_over_epochs,
)
from t3vis.errors import AnalysisError


def area_under_margin(
    logits: LogitsLike, labels: NDArray[np.integer], *, chunk_size: int = CHUNK_SIZE
) -> NDArray[np.float64]:
    """Mean over the epochs of the gold logit minus the largest other logit.

    Parameters
    ----------
    logits, labels, chunk_size
        As in `data_map`.

    Returns
    -------
    Shape (n_examples,), in logits, unbounded. Low: the other examples taught the model another label. NaN for
    an example that has no label or was never seen.

    Raises
    ------
    AnalysisError
        As in `data_map`.

    Notes
    -----
    Pleiss et al. stop at the first drop of the learning rate, before wrong labels are memorised, and set the
    threshold by examples put into an extra class (`threshold_samples`); here all epochs given are used.

    References
    ----------
    Pleiss et al. (2020), "Identifying Mislabeled Data using the Area Under the Margin Ranking", section 3.

    Examples
    --------
    >>> logits = np.array([[[1.0, 2.0, 3.0], [6.0, 5.0, 4.0]], [[1.0, 5.0, 3.0], [9.0, 8.0, 7.0]]])
    >>> area_under_margin(logits, np.array([1, 0]))
    array([0.5, 1. ])
    """
    check_logits_and_labels(logits, labels, min_classes=2)

    def areas(some: NDArray[Any], of_some: NDArray[np.integer], _: slice) -> Columns:
        return {"aum": mean_over_epochs(margins(some, of_some))}

    return by_example(areas, logits, labels, chunk_size=chunk_size)["aum"]


def margins(logits: NDArray[Any], labels: NDArray[np.integer]) -> NDArray[np.float64]:
    """Gold logit minus the largest other logit in every epoch, for logits in memory.

    Shapes as in `data_map`. Returns shape (n_epochs, n_examples); NaN where the example was not seen
    or has no label.

    Examples
    --------
    >>> margins(np.array([[[1.0, 3.0, 0.0]]]), np.array([1]))
    array([[2.]])
    """
    values, _, seen = classes_first(logits)
    return margins_of(values, seen, labels)


def margins_of(
    values: NDArray[np.floating], seen: NDArray[np.bool_], labels: NDArray[np.integer]
) -> NDArray[np.float64]:
    """Do what `margins` does, from values and who was seen as `classes_first` returns them; leaves them as they were.

    Examples
    --------
    >>> margins_of(np.array([[[1.0]], [[3.0]]]), np.array([[True]]), np.array([1]))
    array([[2.]])
    """
    given = np.maximum(labels, 0), slice(None), np.arange(len(labels))
    gold = values[given]
    values[given] = -np.inf
    found = np.full(seen.shape, np.nan)
    with np.errstate(invalid="ignore"):
        np.subtract(gold.T, values.max(axis=0), out=found, where=seen & (labels >= 0), dtype=np.float64)
    values[given] = gold
    return found


def threshold_samples(labels: NDArray[np.integer], n_classes: int, *, seed: int = 0) -> list[NDArray[np.int64]]:
    """Draw the examples that are trained under an extra class, to learn what the margin of a wrong label looks like.

    Parameters
    ----------
    labels
        Shape (n_examples,), below `n_classes`; negative where there is none, and such examples are not drawn.
    n_classes
        Real classes. The extra one is class `n_classes`: the model needs one output more.
    seed
        Decides the draw.

    Returns
    -------
    Two sets of example ids, in increasing order, without an example in common. Train once for each, with the
    label `n_classes` for its examples, and judge in each training the examples that are not in its set.

    Raises
    ------
    AnalysisError
        If there are fewer than two labelled examples or less than one class.

    Notes
    -----
    Each set holds ``n_examples / (n_classes + 1)`` examples, as many as a class has on average, and at least one and
    at most half of all.

    References
    ----------
    Pleiss et al. (2020), section 3.2 and its algorithm for two trainings.

    Examples
    --------
    >>> threshold_samples(np.zeros(6, dtype=int), 2)
    [array([2, 3]), array([4, 5])]
    """
    known = np.flatnonzero(labels >= 0)
    if len(known) < 2 or n_classes < 1:
        raise AnalysisError(
            f"there are {len(known)} labelled examples of {n_classes} classes; threshold samples need two examples "
            "and a class at least."
        )
    size = int(np.clip(round(len(known) / (n_classes + 1)), 1, len(known) // 2))
    drawn = np.random.default_rng(seed).permutation(known)
    return [np.sort(drawn[start : start + size]) for start in (0, size)]


def aum_threshold(aum: NDArray[np.floating], threshold_ids: NDArray[np.integer], *, percentile: float = 99.0) -> float:
    """Area under the margin below which a label is taken to be wrong.

    Parameters
    ----------
    aum
        Shape (n_examples,): of a training in which the threshold samples had the extra class as their label.
    threshold_ids
        The ids of these samples.
    percentile
        Of their areas, in [0, 100].

    Returns
    -------
    In logits. NaN where no threshold sample has an area.

    Raises
    ------
    AnalysisError
        If `percentile` is outside [0, 100] or there are no ids.

    References
    ----------
    Pleiss et al. (2020), section 3.2: the 99th percentile.

    Examples
    --------
    >>> aum_threshold(np.array([3.0, -2.0, -4.0, 5.0]), np.array([1, 2]), percentile=50)
    -3.0
    """
    if not 0 <= percentile <= 100 or not len(threshold_ids):
        raise AnalysisError(
            f"percentile is {percentile} and there are {len(threshold_ids)} threshold samples; "
            "pass a percentile in [0, 100] and the ids of threshold_samples."
        )
    known = aum[threshold_ids]
    known = known[~np.isnan(known)]
    return float(np.percentile(known, percentile)) if len(known) else np.nan


def below_threshold(
    aums: list[NDArray[np.floating]], threshold_sets: list[NDArray[np.int64]], *, percentile: float = 99.0
) -> NDArray[np.bool_]:
    """Mask of the labels that are taken to be wrong, from one training for each set of threshold samples.

    Parameters
    ----------
    aums
        For each training the area of every example, shape (n_examples,).
    threshold_sets
        For each training the ids of its threshold samples, as `threshold_samples` drew them.
    percentile
        As in `aum_threshold`.

    Returns
    -------
    Shape (n_examples,): in some training in which it kept its own label, the area was below the threshold of that
    training. Unknown areas are below nothing.

    Raises
    ------
    AnalysisError
        If there are not as many areas as sets, or as in `aum_threshold`.

    Examples
    --------
    The first example is suspicious in both trainings; the second is a sample in the one and fine in the other:

    >>> below_threshold(
    ...     [np.array([-5.0, -3.0, 4.0]), np.array([-5.0, 3.0, -4.0])], [np.array([1]), np.array([2])]
    ... )
    array([ True, False, False])
    """
    if len(aums) != len(threshold_sets) or not aums:
        raise AnalysisError(
            f"there are areas of {len(aums)} trainings but {len(threshold_sets)} sets of threshold samples; "
            "pass one of each for every training."
        )
    found = np.zeros(len(aums[0]), dtype=np.bool_)
    for aum, ids in zip(aums, threshold_sets, strict=True):
        below = aum < aum_threshold(aum, ids, percentile=percentile)
        below[ids] = False
        found |= below
    return found
