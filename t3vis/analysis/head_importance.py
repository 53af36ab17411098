"""How much each attention head matters, from the gradients of its gate: those recorded in training, or of a live model.

Two questions that no single score answers. Does the head matter for what the model says? ``gate``, the mean size of the
gradient, tells. Would the loss fall or rise without it? ``removal`` estimates that, and can be wrong: it is to be shown
beside a true ablation and their ``agreement``. Every score comes with an interval that resampled examples give.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from functools import reduce
from typing import Any, Literal, Protocol, get_args

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from t3vis.errors import AnalysisError

Form = Literal["gate", "removal", "group"]
FORMS: tuple[Form, ...] = get_args(Form)

PART_SIZE = 65_536
"""Examples whose draws are made at a time: 34 MB of them."""
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
    each, then = steps_of(form)
    return mean_importance(gradients, n_resamples=n_resamples, level=level, seed=seed, each=each, then=then)


Step = Callable[[NDArray[np.float64]], NDArray[np.float64]]


def steps_of(form: Form) -> tuple[Step | None, Step | None]:
    """What a form of importance takes of the gradient of each example, and what of the mean of that.

    Raises
    ------
    AnalysisError
        If there is no such form.
    """
    if form not in FORMS:
        raise AnalysisError(f"there is no importance {form!r}; choose one of {', '.join(FORMS)}.")
    return (None, np.square) if form == "group" else (_EACH[form], None)


def mean_importance(
    values: LayersLike,
    *,
    n_resamples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
    each: Step | None = None,
    then: Step | None = None,
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
    check_values_of_heads(values.shape, level=level)
    draws = Draws(values.shape[1], n_resamples, seed)
    layers = [
        added(head_sums(rows[np.newaxis, part], draws, number, each) for number, part in enumerate(draws.parts()))
        for rows in (np.asarray(values[layer]) for layer in range(values.shape[0]))
    ]
    return importance_of(layers_of(layers), level=level, then=then)


@dataclass(frozen=True, eq=False)
class HeadSums:
    """Sums over examples of a value of each head: over each example once, then over each resample.

    Those of parts of the examples add up.
    """

    totals: NDArray[np.float64]
    """Shape (n_layers, 1 + n_resamples, n_heads)."""
    counts: NDArray[np.float64]
    """How many known values each is a sum of."""
    n_known: NDArray[np.int64]
    """Shape (n_layers,): examples of which any head is known."""

    def __add__(self, other: HeadSums) -> HeadSums:
        return HeadSums(self.totals + other.totals, self.counts + other.counts, self.n_known + other.n_known)


@dataclass(frozen=True)
class Draws:
    """How often each example is drawn: each once, then ``n_resamples`` times as many at random as there are.

    It is decided for a part of the examples at a time, whichever parts were asked for before.
    """

    n_examples: int
    n_resamples: int
    seed: int

    def parts(self) -> list[slice]:
        """The examples of each part, in order."""
        starts = range(0, max(self.n_examples, 1), PART_SIZE)
        return [slice(start, min(start + PART_SIZE, self.n_examples)) for start in starts]

    def weights(self, number: int) -> Iterator[NDArray[np.float64]]:
        """Draws of the examples of a part, shape (some resamples, n_examples of the part) at a time."""
        parts = self.parts()
        size = parts[number].stop - parts[number].start
        yield np.ones((1, size))
        shares = [(part.stop - part.start) / max(self.n_examples, 1) for part in parts]
        of_parts = np.random.default_rng([self.seed, 0])
        n_drawn = np.full(self.n_resamples, self.n_examples)
        if len(parts) > 1:
            n_drawn = of_parts.multinomial(self.n_examples, shares, size=self.n_resamples)[:, number]
        rng = np.random.default_rng([self.seed, number] if number else self.seed)
        for start in range(0, self.n_resamples, _RESAMPLES_AT_A_TIME):
            drawn = [
                np.bincount(rng.integers(size, size=n), minlength=size) for n in n_drawn[start:][:_RESAMPLES_AT_A_TIME]
            ]
            yield np.stack(drawn).astype(np.float64)


def head_sums(values: NDArray[np.floating], draws: Draws, number: int, each: Step | None) -> HeadSums:
    """Sums of the values of one part of the examples, shape (n_layers, n_examples of the part, n_heads).

    Parameters
    ----------
    draws
        Of all examples.
    number
        Of the part among ``draws.parts()``.
    each
        What is taken of each value.
    """
    layers = []
    for of_layer in values:
        rows = of_layer.astype(np.float64)
        known = ~np.isnan(rows)
        layers.append((np.where(known, rows if each is None else each(rows), 0.0), known))
    totals, counts = [], []
    for weights in draws.weights(number):
        totals.append(np.stack([weights @ rows for rows, _ in layers]))
        counts.append(np.stack([weights @ known for _, known in layers]))
    n_known = np.array([np.count_nonzero(known.any(axis=1)) for _, known in layers])
    return HeadSums(np.concatenate(totals, axis=1), np.concatenate(counts, axis=1), n_known)


def added(parts: Iterable[HeadSums]) -> HeadSums:
    """The sums over all parts, at least one."""
    return reduce(HeadSums.__add__, parts)


def layers_of(groups: Sequence[HeadSums]) -> HeadSums:
    """The sums of successive layers as one."""
    return HeadSums(*(np.concatenate([getattr(group, field.name) for group in groups]) for field in fields(HeadSums)))


def importance_of(sums: HeadSums, *, level: float, then: Step | None) -> HeadImportance:
    """The mean of each head, what is taken of it, and its interval among the resamples."""
    means = np.full(sums.totals.shape, np.nan)
    np.divide(sums.totals, sums.counts, out=means, where=sums.counts > 0)
    means = means if then is None else then(means)
    value, resampled = means[:, 0], means[:, 1:]
    low, high = np.full(value.shape, np.nan), np.full(value.shape, np.nan)
    has = sums.counts[:, 0] > 0
    if resampled.shape[1] and has.any():
        of_known = np.moveaxis(resampled, 1, 0)[:, has]
        low[has], high[has] = np.nanquantile(of_known, [(1 - level) / 2, (1 + level) / 2], axis=0)
    return HeadImportance(value, low, high, int(sums.n_known.max(initial=0)))


def check_values_of_heads(shape: tuple[int, ...], *, level: float) -> None:
    """Raise `AnalysisError` unless values of this shape have an importance with an interval of this level."""
    if len(shape) != 3:
        raise AnalysisError(f"expected values of shape (n_layers, n_examples, n_heads), found {shape}.")
    if not 0 < level < 1:
        raise AnalysisError(f"level={level}: expected a share between 0 and 1.")


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
    weights = np.concatenate(list(Draws(n_groups, n_resamples, seed).weights(0)))
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


_EACH: dict[Form, Step] = {"gate": np.abs, "removal": _removal}
