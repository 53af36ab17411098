"""Importance of attention heads on a Dask cluster."""

from __future__ import annotations

from typing import TYPE_CHECKING

from t3vis.analysis.head_importance import (
    Draws,
    Form,
    HeadImportance,
    added,
    check_values_of_heads,
    head_sums,
    importance_of,
    layers_of,
    steps_of,
)
from t3vis.distributed.blocks import BLOCK_BYTES, as_dask, blocks, in_order

if TYPE_CHECKING:
    from dask.array import Array
    from distributed import Client


def head_importance(
    gradients: Array,
    form: Form = "gate",
    *,
    client: Client,
    n_resamples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> HeadImportance:
    """`t3vis.analysis.head_importance.head_importance` on a cluster, intervals included, to rounding.

    Parameters
    ----------
    gradients
        Dask array of shape (n_layers, n_examples, n_heads), such as ``run.train.to_dask("head_gradients")[-1]``.
    client
        Of the cluster; its workers find the run at the path or URL under which it was opened.
    form, n_resamples, level, seed
        As in memory: the same examples are drawn, wherever they are summed up.

    Raises
    ------
    AnalysisError
        As in memory; or if `gradients` is no Dask array, or the cluster has no worker.
    """
    each, then = steps_of(form)
    check_values_of_heads(as_dask(gradients, "gradients").shape, level=level)
    n_layers, n_examples, n_heads = gradients.shape
    draws = Draws(n_examples, n_resamples, seed)
    parts = draws.parts()
    n_together = max(BLOCK_BYTES // max(8 * (parts[0].stop - parts[0].start) * n_heads, 1), 1)
    sums = []
    for start in range(0, n_layers, n_together):
        of_layers = gradients[start : start + n_together]
        tasks = ((block, draws, number, each) for number, block in enumerate(blocks(of_layers, parts, axis=1)))
        sums.append(added(in_order(client, head_sums, tasks)))
    return importance_of(layers_of(sums), level=level, then=then)
