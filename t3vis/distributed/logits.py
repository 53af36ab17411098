"""Data map and label quality on a Dask cluster."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from t3vis.analysis.data_map import DataMap
from t3vis.analysis.data_map import data_map as data_map_in_memory
from t3vis.analysis.label_quality import Suspects, Votes, n_voters, suspects_of_some, vote_scale, voting_sample
from t3vis.analysis.nearest import Neighbours, References, n_references, sample_of
from t3vis.analysis.states import MeanDirection, SideBySide
from t3vis.analysis.trajectories import check_logits_and_labels, epoch_window, joined_columns
from t3vis.distributed.blocks import as_dask, blocks, gathered_references, in_order, row_slices
from t3vis.errors import AnalysisError

if TYPE_CHECKING:
    from dask.array import Array
    from distributed import Client


def data_map(
    logits: Array,
    labels: NDArray[np.integer],
    *,
    client: Client,
    burn_in: int = 0,
    burn_out: int | None = None,
) -> DataMap:
    """`t3vis.analysis.data_map.data_map` on a cluster: the same values, bit for bit.

    Parameters
    ----------
    logits
        Dask array of shape (n_epochs, n_examples, n_classes), such as ``run.train.to_dask("logits")``.
    labels
        Shape (n_examples,), in memory.
    client
        Of the cluster; its workers find the run at the path or URL under which it was opened.
    burn_in, burn_out
        As in memory.

    Raises
    ------
    AnalysisError
        As in memory; or if `logits` is no Dask array, or the cluster has no worker.
    """
    check_logits_and_labels(as_dask(logits, "logits"), labels)
    epochs = epoch_window(logits.shape[0], burn_in=burn_in, burn_out=burn_out)
    chosen = logits[epochs]
    rows = row_slices(chosen, axis=1)
    tasks = ((block, labels[part]) for block, part in zip(blocks(chosen, rows, axis=1), rows, strict=True))
    parts = [found.as_columns() for found in in_order(client, data_map_in_memory, tasks)]
    return DataMap(n_epochs=epochs.stop - epochs.start, **joined_columns(parts))


def suspected_errors(
    logits: Array,
    labels: NDArray[np.integer],
    *,
    client: Client,
    states: Array | None = None,
    k: int | None = None,
    references: NDArray[np.integer] | None = None,
) -> Suspects:
    """`t3vis.analysis.label_quality.suspected_errors` on a cluster, the neighbours included.

    Parameters
    ----------
    logits
        Dask array of shape (n_epochs, n_examples, n_classes).
    labels
        Shape (n_examples,), in memory.
    client
        Of the cluster; its workers find the run at the path or URL under which it was opened.
    states
        Dask array of hidden states, shape (n_epochs, n_layers, n_examples, hidden): neighbours are those by the mean
        direction over the epochs in these layers, side by side. Best the first, the middle and the last layer, as
        ``t3vis analyze`` takes them. None asks no neighbours.
    k
        Neighbours of each example, and `references` among which they are looked for, in increasing order; by default as
        many as ``t3vis analyze`` takes.

    Returns
    -------
    What the function in memory does with the same neighbours, but for rounding. Neighbours are not kept: each block
    finds its own, once before for the at most 100,000 examples that tell the scale of their distances.

    Raises
    ------
    AnalysisError
        As in memory; or if an array is no Dask array, or the cluster has no worker.
    """
    check_logits_and_labels(as_dask(logits, "logits"), labels, min_classes=2)
    if states is None:
        rows = row_slices(logits, axis=1)
        judged = ((block, labels[part], None) for block, part in zip(blocks(logits, rows, axis=1), rows, strict=True))
        return _joined(in_order(client, suspects_of_some, judged))
    n_examples = len(labels)
    if as_dask(states, "states").ndim != 4 or states.shape[2] != n_examples:
        raise AnalysisError(
            f"states has shape {states.shape} but must be (n_epochs, n_layers, {n_examples}, hidden): hidden states "
            "of the examples that the labels are of."
        )
    k = n_voters(n_examples) if k is None else k
    if k < 1:
        raise AnalysisError(f"k is {k} but must be at least 1 neighbour.")
    chosen = sample_of(n_examples, n_references(n_examples)) if references is None else references
    candidates = row_slices(states, axis=2, item_bytes=4, n_neighbours=k), row_slices(logits, axis=1)
    rows = min(candidates, key=lambda found: found[0].stop)
    known = gathered_references(client, states, chosen, rows, _directions)
    sent = client.scatter(_Voters(known, labels[known.ids]), broadcast=True)
    step = voting_sample(n_examples).step or 1
    sampled = [slice(part.start + -part.start % step, part.stop, step) for part in rows]
    tasks = ((block, part, k, sent) for block, part in zip(blocks(states, sampled, axis=2), sampled, strict=True))
    scale = vote_scale(np.concatenate(list(in_order(client, _distances, tasks))))
    both = zip(blocks(logits, rows, axis=1), blocks(states, rows, axis=2), rows, strict=True)
    voted = ((of_logits, of_states, labels[part], part, k, scale, sent) for of_logits, of_states, part in both)
    return _joined(in_order(client, _voted, voted))


@dataclass(frozen=True, eq=False)
class _Voters:
    """Examples that are asked about the labels of others, and their own labels."""

    references: References
    labels: NDArray[np.integer]

    def nearest(self, states: NDArray[Any], rows: slice, k: int) -> Neighbours:
        """The voters nearest to some examples; ids are places among the voters."""
        ids = np.arange(rows.start, rows.stop, rows.step)
        near = self.references.nearest(_directions(states), ids, k=k)
        places = np.searchsorted(self.references.ids, near.ids)
        return Neighbours(np.where(near.ids < 0, -1, places), near.distances)


def _directions(states: NDArray[Any]) -> NDArray[np.float32]:
    """The mean directions over the epochs, side by side, of states (n_epochs, n_layers, n_examples, hidden)."""
    layers = [MeanDirection(list(states[:, layer])) for layer in range(states.shape[1])]
    return SideBySide(layers)[:]


def _distances(states: NDArray[Any], rows: slice, k: int, voters: _Voters) -> NDArray[np.float64]:
    return voters.nearest(states, rows, k).distances.ravel()


def _voted(
    logits: NDArray[Any],
    states: NDArray[Any],
    labels: NDArray[np.integer],
    rows: slice,
    k: int,
    scale: float,
    voters: _Voters,
) -> Suspects:
    votes = Votes(voters.nearest(states, rows, k), len(labels), scale=scale)
    shares = votes.shares(slice(None), voters.labels, logits.shape[2])
    return suspects_of_some(logits, labels, shares)


def _joined(parts: Iterable[Suspects]) -> Suspects:
    return Suspects(**joined_columns([found.as_columns() for found in parts]))
