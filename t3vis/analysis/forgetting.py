"""Forgetting: examples that were predicted right and, the next time they were seen, wrong."""

import numpy as np
from numpy.typing import NDArray

from t3vis.errors import AnalysisError


def forgetting_events(correct: NDArray[np.bool_], seen: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Count, for each example, how often it went from right to wrong between two successive presentations.

    Parameters
    ----------
    correct
        Shape (n_epochs, n_examples): was the example predicted right in that epoch. Ignored where not seen.
    seen
        Shape (n_epochs, n_examples): was the example seen in that epoch. An epoch in which it was not seen is
        skipped: the last known state carries over.

    Returns
    -------
    Shape (n_examples,), in ``[0, n_epochs // 2]``.

    Raises
    ------
    AnalysisError
        If the two arrays are not boolean, not two-dimensional, or differ in shape.

    Notes
    -----
    An example that was never right has forgotten nothing: 0 events here, and `never_learned` tells it from
    one that was learned and kept. Toneva et al. call its count infinite; the released code of Dataset
    Cartography writes 1000.

    References
    ----------
    Toneva et al. (2019), "An Empirical Study of Example Forgetting during Deep Neural Network Learning",
    section 3.

    Examples
    --------
    One example over six epochs, forgotten in the second and in the fourth:

    >>> correct = np.array([[1, 0, 1, 0, 0, 1]], dtype=bool).T
    >>> forgetting_events(correct, np.ones_like(correct))
    array([2])
    """
    check_correct_and_seen(correct, seen)
    if seen.all():
        return np.asarray((correct[:-1] & ~correct[1:]).sum(axis=0))
    n_examples = correct.shape[1]
    events = np.zeros(n_examples, dtype=np.int64)
    was_right = np.zeros(n_examples, dtype=np.bool_)
    for is_right, is_seen in zip(correct, seen, strict=True):
        events += was_right & ~is_right & is_seen
        was_right = np.where(is_seen, is_right, was_right)
    return events


def never_learned(correct: NDArray[np.bool_], seen: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Mask of the examples that were seen at least once and never predicted right.

    Parameters
    ----------
    correct, seen
        Shape (n_epochs, n_examples), as in `forgetting_events`.

    Returns
    -------
    Shape (n_examples,). False for an example that was never seen: nothing is known of it.

    Raises
    ------
    AnalysisError
        If the two arrays are not boolean, not two-dimensional, or differ in shape.

    References
    ----------
    Toneva et al. (2019), section 3, where such examples count as forgotten infinitely often.

    Examples
    --------
    Never right; right once; never seen:

    >>> correct = np.array([[0, 0, 0], [0, 1, 0]], dtype=bool)
    >>> seen = np.array([[1, 1, 0], [1, 1, 0]], dtype=bool)
    >>> never_learned(correct, seen)
    array([ True, False, False])
    """
    check_correct_and_seen(correct, seen)
    ever_right = (seen & correct).any(axis=0)
    return np.asarray(seen.any(axis=0) & ~ever_right)


def first_learned(correct: NDArray[np.bool_], seen: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Return the first epoch in which each example was predicted right.

    Parameters
    ----------
    correct, seen
        Shape (n_epochs, n_examples), as in `forgetting_events`.

    Returns
    -------
    Shape (n_examples,), in ``[0, n_epochs)``; -1 for an example that was never predicted right.

    Raises
    ------
    AnalysisError
        If the two arrays are not boolean, not two-dimensional, or differ in shape.

    Examples
    --------
    Right from the second epoch on; never:

    >>> correct = np.array([[0, 0], [1, 0], [1, 0]], dtype=bool)
    >>> first_learned(correct, np.ones_like(correct))
    array([ 1, -1])
    """
    check_correct_and_seen(correct, seen)
    right = correct & seen
    return np.where(right.any(axis=0), right.argmax(axis=0), -1) if len(right) else np.full(right.shape[1], -1)


def check_correct_and_seen(correct: NDArray[np.bool_], seen: NDArray[np.bool_]) -> None:
    """Raise `AnalysisError` unless both are boolean and of one shape (n_epochs, n_examples)."""
    if correct.shape != seen.shape or correct.ndim != 2:
        raise AnalysisError(
            f"correct has shape {correct.shape} and seen has shape {seen.shape}, but both must be "
            "(n_epochs, n_examples); pass arrays for the same epochs and examples in the same order."
        )
    if correct.dtype != np.bool_ or seen.dtype != np.bool_:
        raise AnalysisError(
            f"correct has dtype {correct.dtype} and seen has dtype {seen.dtype}, but both must be bool; "
            "an epoch in which an example was not seen is False in seen, not NaN in correct."
        )
