"""The maps of a run: computed from its hidden states, each from the last, and kept in the store while they are current.

The map of an epoch starts from that of the epoch before, the map of a layer in the first epoch from that of the layer
above: all maps of a run go back to that of the last layer in the first epoch, and can be laid beside each other.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from t3vis.analysis.neighbours import MAX_EXACT
from t3vis.analysis.projection_quality import Estimate
from t3vis.analyze_maps import Maps, Method, Step
from t3vis.errors import AnalysisError
from t3vis.store.passes import Pass
from t3vis.store.reader import Run, Split
from t3vis.store.results import Result, read_result, result_names

MAX_WORK = 7_000_000
"""Examples times iterations, of all t-SNE maps together, that `last_map` spends: half a minute at 4 µs each."""


@dataclass(frozen=True, eq=False)
class AnalyzedProjection:
    """A map of one layer in one pass; arrays have shape (n_examples, ...).

    They are NaN for an example that was not seen in that pass, or whose states are not finite.
    """

    name: str
    """Method, pass and layer, as the result is named in the store."""
    coordinates: NDArray[np.float32]
    """Shape (n_examples, 2)."""
    columns: dict[str, NDArray[Any]]
    """What is known of each example, as `t3vis.analyze_maps.MEANINGS` says."""
    quality: dict[str, Estimate]
    """What the whole map keeps, each measure with its standard error."""
    attributes: dict[str, Any]
    """How the map was made: ``k``, ``n_sampled``, ``graph_recall``, ``kl_divergence``, ``explained``; and where it
    started from another: ``displacement``, the ``noise_floor`` to read that against, ``neighbour_overlap``."""

    @property
    def n_seen(self) -> int:
        """Examples on the map."""
        return int(np.count_nonzero(np.isfinite(self.coordinates[:, 0])))


def analyzed_projection(
    run: Run,
    split: Split,
    *,
    pass_index: int = -1,
    layer: int | None = None,
    method: Method = "tsne",
    seed: int = 0,
    cancel: Callable[[], bool] | None = None,
) -> AnalyzedProjection:
    """The map of a layer in a pass, from the store if it is there and current, else computed and written.

    Parameters
    ----------
    run, split
        What to map.
    pass_index
        Number of the epoch, or evaluation; -1 is the last.
    layer
        Which hidden states, by number; by default the last.
    method
        ``tsne``, ``pca`` or ``umap``.
    seed
        Of everything that is left to chance.
    cancel
        Asked every few iterations whether to stop. A t-SNE map that is stopped is kept, and the same call goes on
        from there.

    Raises
    ------
    AnalysisError
        If there are no hidden states of that pass and layer, fewer than four examples were seen, UMAP is not
        installed, or the computation was stopped.
    """
    wanted = Step(*_chosen(split, pass_index, layer))
    maps = Maps(run, split, method, seed, cancel)
    for last, step in _chain(split, wanted, method):
        known = maps.of(step, last)
    return _as_projection(f"{method}_{wanted.name}", known)


def last_map(run: Run, split: Split) -> AnalyzedProjection:
    """The map of the last layer in the last pass that can be had in half a minute: t-SNE, or PCA of more examples.

    Raises
    ------
    AnalysisError
        If there are more examples than even their neighbours can be found of in that time, or no map can be made of
        them at all: as `analyzed_projection`.
    """
    wanted = Step(*_chosen(split, -1, None))
    maps = Maps(run, split, "tsne", 0, None)
    n_iter = sum(maps.n_iter_left(step, last) for last, step in _chain(split, wanted, "tsne"))
    if n_iter * split.n_examples <= MAX_WORK:
        return analyzed_projection(run, split)
    if split.n_examples > MAX_EXACT:
        raise AnalysisError(
            f"a map of {split.n_examples:,} examples takes more than a minute; make it with: t3vis project {run.path}"
        )
    return analyzed_projection(run, split, method="pca")


def _chosen(split: Split, pass_index: int, layer: int | None) -> tuple[int, int]:
    """The pass and the layer that were asked for, if they were recorded."""
    if "hidden_states" not in split.arrays:
        raise AnalysisError(f"{split.path} holds no hidden states, of which maps are made; record them.")
    layers, passes = split.layers, [record.index for record in split.passes]
    chosen_layer = layers[-1] if layer is None else layer
    chosen_pass = passes[-1] if pass_index == -1 else pass_index
    if chosen_layer not in layers or chosen_pass not in passes:
        raise AnalysisError(
            f"{split.path} holds no hidden states of layer {chosen_layer} in pass {chosen_pass}; it holds layers "
            f"{layers} in passes {passes}."
        )
    return chosen_pass, chosen_layer


def _chain(split: Split, wanted: Step, method: Method) -> list[tuple[Step | None, Step]]:
    """The maps that go before the one that is wanted, and that one, each with the one that it starts from.

    The first of all is that of the last layer in the first pass. Only t-SNE starts from anything.
    """
    if method != "tsne":
        return [(None, wanted)]
    passes, layers = [record.index for record in split.passes], split.layers
    above = [Step(passes[0], layer) for layer in reversed(layers) if layers.index(layer) > layers.index(wanted.layer)]
    steps = [*above, *(Step(index, wanted.layer) for index in passes if index <= wanted.pass_index)]
    return list(zip([None, *steps[:-1]], steps, strict=True))


def _as_projection(name: str, known: Result) -> AnalyzedProjection:
    return AnalyzedProjection(
        name=name,
        coordinates=np.stack([known.columns["x"], known.columns["y"]], axis=1),
        columns=known.columns,
        quality={
            name: Estimate(np.nan, 0.0) if estimate is None else Estimate(**estimate)
            for name, estimate in known.attributes["quality"].items()
        },
        attributes=known.attributes,
    )


def kept_projection(run: Run, split: Split) -> AnalyzedProjection | None:
    """The current map in the store of the latest pass, and of its highest layer; ``None`` if there is none."""
    passes = {record.index: record for record in split.passes}
    kept = []
    for name in result_names(run.path, split.name):
        said = re.fullmatch(r"(tsne|umap|pca)_p(\d+)_l(\d+)", name)
        if said and int(said[2]) in passes:
            kept.append((int(said[2]), int(said[3]), said[1] != "pca", name))
    for pass_index, *_, name in sorted(kept, reverse=True):
        found = read_result(run.path, split.name, name)
        if found is not None and _is_of(found.attributes["provenance"], split, passes[pass_index]):
            return _as_projection(name, found)
    return None


def _is_of(provenance: dict[str, Any], split: Split, record: Pass) -> bool:
    """Whether a map was made of what is recorded now."""
    now = [record.index, record.last_step, record.n_seen, record.n_repeated]
    return bool(provenance["pass"] == now and provenance["fingerprint"] == split.attributes["fingerprint"])
