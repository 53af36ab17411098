"""Selection: which examples to keep, to drop, or to weigh, by their training dynamics."""

from typing import Any, Protocol, TypeVar, get_args

import numpy as np
from numpy.typing import NDArray

from t3vis.analysis.data_map import DataMap
from t3vis.analysis.label_quality import Suspects
from t3vis.errors import AnalysisError
from t3vis.strategies import Strategy


def select(
    data_map: DataMap,
    strategy: Strategy,
    *,
    fraction: float = 0.33,
    labels: NDArray[np.integer] | None = None,
    seed: int = 0,
) -> NDArray[np.int64]:
    """Ids of the examples that come first under a strategy.

    Parameters
    ----------
    data_map
        The training dynamics.
    strategy
        By highest variability (``"ambiguous"``), highest or lowest confidence (``"easy"``, ``"hard"``), highest or
        lowest correctness, most or fewest forgetting events (an example that was never learned counts as forgotten
        most), or at random: the paper's baselines.
    fraction
        Share of the known examples, in [0, 1], rounded to the nearest whole number of them.
    labels
        Shape (n_examples,). Where they are given, that share is taken of each class.
    seed
        Decides the random strategy, and which of equal examples come first.

    Returns
    -------
    Example ids in increasing order. Examples never seen or without a label are never selected. A larger fraction
    contains a smaller one of the same seed.

    Raises
    ------
    AnalysisError
        If the strategy is unknown, `fraction` is outside [0, 1], or `labels` has another length.

    Notes
    -----
    For the paper's mixtures join two selections with ``np.union1d``.

    References
    ----------
    Swayamdipta et al. (2020), "Dataset Cartography", section 3.1 and table 2; Toneva et al. (2019), section 5, for
    forgetting.

    Examples
    --------
    >>> from t3vis.analysis.data_map import data_map
    >>> gold = np.array([[0.9, 0.5, 0.1], [0.9, 0.9, 0.1]])
    >>> examples = data_map(np.log(np.stack([gold, 1 - gold], axis=-1)), np.zeros(3, dtype=int))
    >>> select(examples, "ambiguous"), select(examples, "hard", fraction=2 / 3)
    (array([1]), array([1, 2]))
    """
    if strategy not in get_args(Strategy):
        raise AnalysisError(f"strategy is {strategy!r} but must be one of {', '.join(get_args(Strategy))}.")
    _check_fraction(fraction)
    known = np.flatnonzero(~np.isnan(data_map.confidence))
    if labels is not None and len(labels) != data_map.n_examples:
        raise AnalysisError(
            f"labels has {len(labels)} examples but the data map has {data_map.n_examples}; "
            "pass those of the same examples in the same order."
        )
    shuffled = np.random.default_rng(seed).permutation(known)
    keys = _keys(data_map, strategy)[shuffled]
    ordered = shuffled[np.argsort(keys, kind="stable")]
    if labels is None:
        return np.sort(ordered[: round(fraction * len(ordered))])
    of_class = labels[ordered]
    by_class = np.argsort(of_class, kind="stable")
    _, starts, counts = np.unique(of_class[by_class], return_index=True, return_counts=True)
    place_in_class = np.arange(len(ordered)) - np.repeat(starts, counts)
    wanted = np.rint(fraction * counts)
    return np.sort(ordered[by_class[place_in_class < np.repeat(wanted, counts)]])


def suspect_ids(suspects: Suspects, *, fraction: float | None = None) -> NDArray[np.int64]:
    """Ids of the examples whose label is more probably wrong than right.

    Parameters
    ----------
    suspects
        The quality of every label.
    fraction
        Take this share of the examples that have a score instead, in [0, 1], the most suspicious first, rounded to the
        nearest whole number of them.

    Returns
    -------
    Example ids in increasing order; without `fraction`, those whose suggested label is more credible than the given
    one.

    Raises
    ------
    AnalysisError
        If `fraction` is outside [0, 1], or is missing where nothing is suggested, as of numbers.

    Examples
    --------
    >>> from t3vis.analysis.label_quality import suspected_errors
    >>> logits = np.log([[[8.0, 1.0, 1.0], [1.0, 6.0, 1.0], [2.0, 1.0, 5.0]]])
    >>> suspects = suspected_errors(logits, np.array([0, 0, 2]))
    >>> suspect_ids(suspects), suspect_ids(suspects, fraction=2 / 3)
    (array([1]), array([1, 2]))
    """
    known = ~np.isnan(suspects.score)
    if fraction is None:
        suggested = ~np.isnan(suspects.suggested_prob)
        if np.any(known) and not np.any(suggested):
            raise AnalysisError("no other label is suggested for these examples; pass fraction=0.05, say.")
        return np.flatnonzero(known & suggested & (suspects.suggested_prob > 1 - suspects.score))
    _check_fraction(fraction)
    return np.sort(suspects.ranking()[: round(fraction * np.count_nonzero(known))])


def dropped(n_examples: int, ids: NDArray[np.integer]) -> NDArray[np.int64]:
    """Ids of all other examples.

    Raises
    ------
    AnalysisError
        If an id is out of range.

    Examples
    --------
    >>> dropped(5, np.array([1, 3]))
    array([0, 2, 4])
    """
    if len(ids) and not 0 <= ids.min() <= ids.max() < n_examples:
        raise AnalysisError(f"ids run from {ids.min()} to {ids.max()} but there are {n_examples} examples.")
    return np.setdiff1d(np.arange(n_examples), ids)


def example_weights(quantity: NDArray[np.floating], *, smoothing: float = 0.1) -> NDArray[np.float64]:
    """Weights for a loss or a sampler that favour examples of a high quantity.

    Parameters
    ----------
    quantity
        Shape (n_examples,), from 0: variability or threshold closeness, say; NaN where not known.
    smoothing
        Added to every value, as a multiple of the mean of the known ones, so that none is left out; from 0.

    Returns
    -------
    Shape (n_examples,), of mean 1; an example of which nothing is known weighs 1. All ones where no value is
    positive.

    Raises
    ------
    AnalysisError
        If a value or `smoothing` is negative.

    References
    ----------
    Chang et al. (2017), "Active Bias: Training More Accurate Neural Networks by Emphasizing High Variance Samples",
    sections 3.2 and 3.3, where the smoothing is the mean of the values.

    Examples
    --------
    >>> example_weights(np.array([0.1, 0.3, np.nan]), smoothing=0)
    array([0.5, 1.5, 1. ])
    """
    known = ~np.isnan(quantity)
    if smoothing < 0 or np.any(quantity[known] < 0):
        raise AnalysisError("weights need a quantity and a smoothing of at least 0; pass variability, say.")
    mean = quantity[known].mean() if known.any() else 0.0
    weights = np.ones(len(quantity))
    if mean > 0:
        weights[known] = (quantity[known] / mean + smoothing) / (1 + smoothing)
    return weights


class Selectable(Protocol):
    """A dataset with ``select``, as a ``datasets.Dataset`` is one."""

    def __len__(self) -> int: ...

    def select(self, indices: Any, /) -> Any:
        """Return the rows of these numbers."""


DatasetT = TypeVar("DatasetT", bound=Selectable)


def kept(dataset: DatasetT, ids: NDArray[np.integer]) -> DatasetT:
    """Rows of a ``datasets.Dataset`` by example id; with the ids of `dropped`, all but those.

    Parameters
    ----------
    dataset
        The dataset that the run was trained on, row for row.
    ids
        Example ids to keep, in this order.

    Raises
    ------
    AnalysisError
        If an id is out of range: then it is another dataset.

    Examples
    --------
    >>> from datasets import Dataset
    >>> kept(Dataset.from_dict({"text": ["a", "b", "c"]}), np.array([0, 2]))["text"][:]
    ['a', 'c']
    """
    if len(ids) and not 0 <= ids.min() <= ids.max() < len(dataset):
        raise AnalysisError(
            f"ids run from {ids.min()} to {ids.max()} but the dataset has {len(dataset)} rows; "
            "pass the dataset that was trained on, before any filter."
        )
    filtered: DatasetT = dataset.select(ids)
    return filtered


def _check_fraction(fraction: float) -> None:
    if not 0 <= fraction <= 1:
        raise AnalysisError(f"fraction is {fraction} but must be in [0, 1]; pass 0.33 for a third of the examples.")


def _keys(data_map: DataMap, strategy: Strategy) -> NDArray[np.float64]:
    """What to sort by, lowest first; the order of equal examples is for the caller to shuffle."""
    forgotten = np.where(data_map.never_learned, np.inf, data_map.forgetting_events)
    keys: dict[str, NDArray[np.float64]] = {
        "ambiguous": -data_map.variability,
        "easy": -data_map.confidence,
        "hard": data_map.confidence,
        "most_correct": -data_map.correctness,
        "least_correct": data_map.correctness,
        "most_forgotten": -forgotten,
        "least_forgotten": forgotten,
        "random": np.zeros(data_map.n_examples),
    }
    return keys[strategy]
