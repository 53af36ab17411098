"""How much each attention head matters, from the gradients of its gate: those recorded in training, or of a live model.

Two questions that no single score answers. Does the head matter for what the model says? ``gate``, the mean size of the
gradient, tells. Would the loss fall or rise without it? ``removal`` estimates that, and can be wrong: it is to be shown
beside a true ablation and their ``agreement``. Every score comes with an interval that resampled examples give.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, Protocol, get_args

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from t3vis.errors import AnalysisError

Form = Literal["gate", "removal", "group"]
FORMS: tuple[Form, ...] = get_args(Form)

_RESAMPLES_AT_A_TIME = 64


class LayersLike(Protocol):
    """Values of each head, shape (n_layers, n_examples, n_heads), read a layer at a time, such as a NumPy array."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Layers, examples and heads."""

    def __getitem__(self, layer: int, /) -> Any: ...


@dataclass(frozen=True, eq=False)
class HeadImportance:
    """One score of every head, with the interval in which it lies when other examples are drawn.

    Shapes (n_layers, n_heads); NaN where a layer has fewer heads, or nothing is known.
    """

    value: NDArray[np.float64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]
    n_examples: int

    @property
    def normalised(self) -> NDArray[np.float64]:
        """Divided by the largest size of all heads of all layers: in [-1, 1]."""
        largest = np.nanmax(np.abs(self.value), initial=0.0)
        return self.value / largest if largest > 0 else self.value

    def ranking(self) -> list[tuple[int, int]]:
        """Heads as (layer, head), the largest score first; those of which nothing is known are left out."""
        order = np.argsort(-self.value, axis=None, kind="stable")
        places = np.stack(np.unravel_index(order, self.value.shape), axis=1)
        return [(layer, head) for layer, head in places.tolist() if not np.isnan(self.value[layer, head])]


def head_importance(
    gradients: LayersLike, form: Form = "gate", *, n_resamples: int = 1000, level: float = 0.95, seed: int = 0
) -> HeadImportance:
    """Importance of every head from the gradients of its gate.

    Parameters
    ----------
    gradients
        dL/dg of each example's own loss for a gate g = 1 on what a head hands on, shape (n_layers, n_examples,
        n_heads); NaN where not known.
    form
        ``gate``: the mean of abs(dL/dg), over examples and not over batches, not normalised by layer. ``removal``: the
        mean of -dL/dg + (dL/dg)**2 / 2, an estimate of how much the loss rises without the head. ``group``: the square
        of the mean of dL/dg; that is the square of the sum of W * dL/dW over the columns of the output projection that
        read the head.
    n_resamples
        How often examples are drawn anew.
    level
        Part of the resampled scores that lies between ``low`` and ``high``.
    seed
        Of the resampling.

    Raises
    ------
    AnalysisError
        If the shape or the form is not one of these.

    References
    ----------
    Michel et al. (2019), "Are Sixteen Heads Really Better than One?", equation 2, for ``gate``, there without the
    normalisation by layer. Molchanov et al. (2019), "Importance Estimation for Neural Network Pruning", equations 6 to
    8, for ``removal`` and ``group``; the second derivative of a negative log-likelihood is estimated by the square of
    the first, as its expectation has it.

    Examples
    --------
    >>> gradients = np.array([[[0.5, -0.1], [-0.5, -0.3]]])  # one layer, two examples, two heads
    >>> head_importance(gradients).value
    array([[0.5, 0.2]])
    >>> head_importance(gradients, "removal").value
    array([[0.125, 0.225]])
    """
    if form not in FORMS:
        raise AnalysisError(f"there is no importance {form!r}; choose one of {', '.join(FORMS)}.")
    if form == "group":
        return mean_importance(gradients, n_resamples=n_resamples, level=level, seed=seed, then=np.square)
    return mean_importance(gradients, n_resamples=n_resamples, level=level, seed=seed, each=_EACH[form])


def mean_importance(
    values: LayersLike,
    *,
    n_resamples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
    each: Callable[[NDArray[np.float64]], NDArray[np.float64]] | None = None,
    then: Callable[[NDArray[np.float64]], NDArray[np.float64]] | None = None,
) -> HeadImportance:
    """The mean over examples of a value of each head, such as the effect of its removal.

    Parameters
    ----------
    values
        Shape (n_layers, n_examples, n_heads); NaN where not known.
    n_resamples, level, seed
        As for ``head_importance``.
    each
        What is taken of the value of each example.
    then
        What is taken of the mean.

    Raises
    ------
    AnalysisError
        If the shape is another, or ``level`` is no share.

    Examples
    --------
    >>> effects = np.array([[[0.1, 0.0], [0.3, 0.0]]])  # one layer, two examples, two heads
    >>> found = mean_importance(effects)
    >>> found.value.round(3), found.n_examples
    (array([[0.2, 0. ]]), 2)
    >>> found.low.round(3), found.high.round(3)
    (array([[0.1, 0. ]]), array([[0.3, 0. ]]))
    """
    if len(values.shape) != 3:
        raise AnalysisError(f"expected values of shape (n_layers, n_examples, n_heads), found {values.shape}.")
    if not 0 < level < 1:
        raise AnalysisError(f"level={level}: expected a share between 0 and 1.")
    n_layers, n_examples, n_heads = values.shape
    tails = [(1 - level) / 2, (1 + level) / 2]
    out = np.full((3, n_layers, n_heads), np.nan)
    n_known = 0
    for layer in range(n_layers):
        rows = np.asarray(values[layer], np.float64)
        known = ~np.isnan(rows)
        n_known = max(n_known, int(known.any(axis=1).sum()))
        rows = np.where(known, rows if each is None else each(rows), 0.0)
        means = np.concatenate([_means(w, rows, known) for w in _draws(n_examples, n_resamples, seed)])
        means = means if then is None else then(means)
        has = known.any(axis=0)
        out[0, layer, has] = means[0, has]
        if has.any() and n_resamples:
            out[1:, layer, has] = np.nanquantile(means[1:, has], tails, axis=0)
    return HeadImportance(out[0], out[1], out[2], n_known)


def quadratic_importance(
    products: NDArray[np.floating],
    sizes: NDArray[np.integer],
    *,
    n_resamples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> HeadImportance:
    """A score that is a square of summed gradients, from the inner products of the gradients of groups of examples.

    Parameters
    ----------
    products
        For each head the inner products of what the groups add up to, shape (n_layers, n_heads, n_groups, n_groups).
    sizes
        Examples of each group, shape (n_groups,).
    n_resamples, level, seed
        As for ``head_importance``; what is drawn anew are the groups.

    Examples
    --------
    Gradients of a head that add up to 2 over one example and to 4 over another: the square of their mean.

    >>> quadratic_importance(np.array([[[[4.0, 8.0], [8.0, 16.0]]]]), np.array([1, 1])).value
    array([[9.]])
    """
    n_groups = len(sizes)
    weights = np.concatenate(list(_draws(n_groups, n_resamples, seed)))
    shares = weights / (weights @ sizes)[:, None]
    found = np.einsum("rj,lhjk,rk->rlh", shares, products.astype(np.float64), shares, optimize=True)
    low, high = np.quantile(found[1:], [(1 - level) / 2, (1 + level) / 2], axis=0)
    return HeadImportance(found[0], low, high, int(sizes.sum()))


def agreement(score: NDArray[np.floating], truth: NDArray[np.floating]) -> float:
    """Spearman's rank correlation of a score of every head with another, over the heads of which both are known.

    Returns
    -------
    In [-1, 1]; NaN where fewer than three heads are known, or one of the two is constant.

    Examples
    --------
    >>> agreement(np.array([[1.0, 2, 5], [4, 9, np.nan]]), np.array([[0.1, 0.2, 0.3], [0.4, 0.5, 0.9]]))
    0.9
    """
    known = ~(np.isnan(score) | np.isnan(truth))
    if known.sum() < 3:
        return float("nan")
    one, other = rankdata(score[known]), rankdata(truth[known])
    one, other = one - one.mean(), other - other.mean()
    size = np.sqrt((one @ one) * (other @ other))
    return float(round(one @ other / size, 12)) if size > 0 else float("nan")


def _removal(gradients: NDArray[np.float64]) -> NDArray[np.float64]:
    return -gradients + gradients**2 / 2


_EACH: dict[Form, Callable[[NDArray[np.float64]], NDArray[np.float64]]] = {"gate": np.abs, "removal": _removal}


def _draws(n: int, n_resamples: int, seed: int) -> Any:
    """How often each of ``n`` things is drawn: once each, then at random; shape (some resamples, n) at a time."""
    yield np.ones((1, n))
    rng = np.random.default_rng(seed)
    for start in range(0, n_resamples, _RESAMPLES_AT_A_TIME):
        size = min(_RESAMPLES_AT_A_TIME, n_resamples - start)
        yield np.stack([np.bincount(rng.integers(n, size=n), minlength=n) for _ in range(size)]).astype(np.float64)


def _means(weights: NDArray[np.float64], rows: NDArray[np.float64], known: NDArray[np.bool_]) -> NDArray[np.float64]:
    counts = weights @ known
    return np.divide(weights @ rows, counts, out=np.full_like(counts, np.nan), where=counts > 0)
