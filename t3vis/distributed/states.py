"""Principal components and outliers on a Dask cluster."""

from __future__ import annotations

from functools import partial, reduce
from operator import add
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from t3vis.analysis.difficulty import loss_trajectories
from t3vis.analysis.nearest import References, n_references, sample_of
from t3vis.analysis.outliers import Outliers, Whitening, check_shrinkage, knn_distance, residual_products
from t3vis.analysis.outliers import outliers as outliers_in_memory
from t3vis.analysis.principal_axes import (
    PrincipalAxes,
    axes_of,
    check_component_count,
    first_mean,
    moments_of,
)
from t3vis.analysis.separability import class_sums, number_of_classes
from t3vis.analysis.states import check_states_and_labels
from t3vis.distributed.blocks import as_dask, blocks, gathered_references, in_order, row_slices
from t3vis.errors import AnalysisError

if TYPE_CHECKING:
    from dask.array import Array
    from distributed import Client


def principal_axes(states: Array, *, client: Client, n_components: int = 2) -> PrincipalAxes:
    """`t3vis.analysis.principal_axes.principal_axes` on a cluster, to rounding.

    Parameters
    ----------
    states
        Dask array of shape (n_examples, hidden), finite, such as ``run.train.to_dask("hidden_states")[-1, -1]``.
    client
        Of the cluster; its workers find the run at the path or URL under which it was opened.
    n_components
        How many; in ``[1, hidden]``.

    Raises
    ------
    AnalysisError
        As in memory; or if `states` is no Dask array, or the cluster has no worker.
    """
    check_component_count(_checked(states).shape, n_components)
    rows = row_slices(states, axis=0, item_bytes=8)
    about = next(in_order(client, first_mean, [(block,) for block in blocks(states, rows[:1], axis=0)]))
    parts = in_order(client, moments_of, ((block, about) for block in blocks(states, rows, axis=0)))
    return axes_of(reduce(add, parts), about, n_components=n_components)


def coordinates(axes: PrincipalAxes, states: Array, *, client: Client) -> NDArray[np.float64]:
    """States along principal axes, shape (n_examples, n_components), in memory.

    Parameters
    ----------
    axes
        As `principal_axes` finds them.
    states
        Dask array of shape (n_examples, hidden).
    client
        Of the cluster.
    """
    rows = row_slices(_checked(states), axis=0, item_bytes=8)
    parts = in_order(client, axes.coordinates, ((block,) for block in blocks(states, rows, axis=0)))
    return np.concatenate(list(parts))


def outliers(
    states: Array,
    labels: NDArray[np.integer],
    loss: Array,
    *,
    client: Client,
    k: int = 15,
    references: NDArray[np.integer] | None = None,
    shrinkage: float = 1e-3,
) -> Outliers:
    """Outliers in hidden space and by loss, to rounding what `t3vis.analysis.outliers` finds.

    Parameters
    ----------
    states
        Dask array of shape (n_examples, hidden), such as ``run.train.to_dask("hidden_states")[-1, -1]``.
    labels
        Shape (n_examples,), in memory; negative where there is none.
    loss
        Dask array of shape (n_epochs, n_examples).
    client
        Of the cluster; its workers find the run at the path or URL under which it was opened.
    k
        Neighbours whose mean distance counts, and `references` among which they are looked for; by default as many as
        ``t3vis analyze`` takes.
    shrinkage
        As in `t3vis.analysis.outliers.mahalanobis`.

    Raises
    ------
    AnalysisError
        As in memory; or if an array is no Dask array, or the cluster has no worker.
    """
    check_shrinkage(shrinkage)
    check_states_and_labels(_checked(states), labels)
    if as_dask(loss, "loss").ndim != 2 or loss.shape[1] != len(labels):
        raise AnalysisError(f"loss has shape {loss.shape} but must be (n_epochs, {len(labels)}).")
    if k < 1:
        raise AnalysisError(f"k is {k} but must be at least 1 neighbour.")
    nearest, own = _mahalanobis(states, labels, client=client, shrinkage=shrinkage)
    chosen = sample_of(len(labels), n_references(len(labels))) if references is None else references
    rows = row_slices(states, axis=0, item_bytes=4, n_neighbours=k)
    known = client.scatter(gathered_references(client, states, chosen, rows, _as_float32), broadcast=True)
    tasks = ((block, part, k, known) for block, part in zip(blocks(states, rows, axis=0), rows, strict=True))
    distance = np.concatenate(list(in_order(client, _knn_distance, tasks)))
    of_loss = row_slices(loss, axis=1, item_bytes=8)
    mean_loss = list(in_order(client, _mean_loss, ((block,) for block in blocks(loss, of_loss, axis=1))))
    return outliers_in_memory(distance, nearest, own, np.concatenate(mean_loss))


def _mahalanobis(
    states: Array, labels: NDArray[np.integer], *, client: Client, shrinkage: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    rows = row_slices(states, axis=0, item_bytes=8)

    def tasks(*more: Any) -> Any:
        found = zip(blocks(states, rows, axis=0), rows, strict=True)
        return ((block, labels[part], *more) for block, part in found)

    summed = partial(class_sums, n_classes=number_of_classes(labels))
    sums = reduce(add, in_order(client, summed, tasks()))
    products = reduce(add, in_order(client, residual_products, tasks(sums.means)))
    space = client.scatter(Whitening.of(sums, products, shrinkage=shrinkage), broadcast=True)
    parts = list(in_order(client, _distances, tasks(space)))
    return np.concatenate([nearest for nearest, _ in parts]), np.concatenate([own for _, own in parts])


def _distances(
    states: NDArray[Any], labels: NDArray[np.integer], space: Whitening
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    return space.distances(states, labels)


def _knn_distance(states: NDArray[Any], rows: slice, k: int, references: References) -> NDArray[np.float64]:
    return knn_distance(references.nearest(_as_float32(states), np.arange(rows.start, rows.stop), k=k))


def _mean_loss(loss: NDArray[Any]) -> NDArray[np.float64]:
    return loss_trajectories(loss).mean


def _as_float32(states: NDArray[Any]) -> NDArray[np.float32]:
    return states.astype(np.float32)


def _checked(states: Array) -> Array:
    """The states, if they are a Dask array of one pass and layer."""
    if as_dask(states, "states").ndim != 2:
        raise AnalysisError(
            f"the hidden states have shape {states.shape} but must be (n_examples, hidden); "
            "pass those of one pass and one layer."
        )
    return states
