"""Maps of hidden states in two dimensions: t-SNE by openTSNE, UMAP where it is installed.

A t-SNE map is made of the graph of nearest neighbours and of a start: the first two principal components for the
first map, the last map for one that is to be compared with it.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from openTSNE import TSNEEmbedding
from openTSNE.affinity import Uniform
from openTSNE.nearest_neighbors import PrecomputedNeighbors
from openTSNE.tsne import OptimizationInterrupt, gradient_descent
from scipy.linalg import orthogonal_procrustes

from t3vis.analysis.nearest import Progress
from t3vis.analysis.neighbours import NeighbourGraph, nearest_in
from t3vis.analysis.principal_axes import principal_axes
from t3vis.analysis.states import StatesLike
from t3vis.errors import AnalysisError

START_SCALE = 1e-4
"""Standard deviation of a start along its first axis, as in openTSNE."""
MIN_EXAMPLES = 4
"""Fewer points make no map: t-SNE of three is a triangle, whatever they are."""
REPORT_EVERY = 10
"""Iterations between two calls of a callback."""


@dataclass(frozen=True)
class Phase:
    """Iterations of gradient descent with one exaggeration of the attractive forces."""

    n_iter: int
    exaggeration: float
    learning_rate: float = 1
    """In multiples of openTSNE's own, the number of examples over the exaggeration."""


FRESH = (Phase(250, 12), Phase(100, 1, learning_rate=2), Phase(250, 1, learning_rate=4))
"""For a map that starts from principal components. openTSNE's own are 250 with exaggeration and 500 without, at its
rate: they take longer, and the KL divergence of these is 0.2 to 0.5 % above theirs up to 10,000 examples, 1.4 % at
50,000; the parts ``tsne10k`` and ``tsne50k`` of ``benchmarks/bench_projection.py``."""
CONTINUED = (Phase(250, 1, learning_rate=6),)
"""For a map that starts from the last one. With exaggeration it moves though no state has changed, with a lower rate
it fits worse: the part ``next`` of ``benchmarks/bench_projection.py``."""
REARRANGED = (Phase(50, 4), Phase(50, 1, learning_rate=2), Phase(150, 1, learning_rate=4))
"""For a map that starts from one on which most examples had other neighbours: without exaggeration they cannot pass
each other, and what it moves means nothing in any case."""
MIN_KEPT = 0.3
"""Share of the neighbours kept below which a map is rearranged: half are enough to hold on to, a tenth is not."""


@dataclass(frozen=True, eq=False)
class TSNEMap:
    """A t-SNE map, and what its optimizer needs to go on from there."""

    coordinates: NDArray[np.float64]
    """Shape (n_examples, 2)."""
    kl_divergence: float
    """Of the affinities in the map from those of the states, in nats; without exaggeration."""
    n_iter: int
    """Iterations done."""
    n_planned: int
    """Iterations of all phases."""
    gains: NDArray[np.float64]
    """Shape (n_examples, 2): of the optimizer."""
    update: NDArray[np.float64]
    """Shape (n_examples, 2): the last step of the optimizer."""

    @property
    def finished(self) -> bool:
        """Whether all iterations are done."""
        return self.n_iter == self.n_planned


Callback = Callable[[int, int, float], bool | None]
"""Called with the iterations done, those planned and the KL divergence; true stops the optimization."""


def pca_start(states: StatesLike, *, seed: int = 0) -> NDArray[np.float64]:
    """Where a t-SNE map starts: the first two principal components, made small, and jittered by a hundredth.

    Parameters
    ----------
    states
        Shape (n_examples, hidden), finite.
    seed
        Of the jitter, which parts examples with equal states.

    Returns
    -------
    Shape (n_examples, 2); the standard deviation along the first axis is 1e-4.

    Raises
    ------
    AnalysisError
        As `principal_axes`.

    References
    ----------
    Kobak and Berens (2019), "The art of using t-SNE for single-cell transcriptomics".

    Examples
    --------
    >>> pca_start(np.array([[1.0, 0.0], [3.0, 0.0]])).round(5)[:, 0]
    array([-0.0001,  0.0001])
    """
    start = principal_axes(states).coordinates(states)
    spread = start[:, 0].std()
    start *= START_SCALE / spread if spread > 0 else 0
    return start + np.random.default_rng(seed).normal(0, START_SCALE * (0.01 if spread > 0 else 1), start.shape)


def tsne(
    graph: NeighbourGraph,
    start: NDArray[np.floating],
    *,
    phases: Sequence[Phase] = FRESH,
    resume: TSNEMap | None = None,
    callback: Callback | None = None,
    n_jobs: int = 1,
) -> TSNEMap:
    """A t-SNE map of a graph of nearest neighbours.

    Parameters
    ----------
    graph
        The neighbours, of at least four examples; each neighbour of an example attracts it equally.
    start
        Where the optimization starts, shape (n_examples, 2): `pca_start`, or the coordinates of another map, which
        this one is then comparable with.
    phases
        `FRESH` after `pca_start`, what `phases_after` says after another map.
    resume
        A map that was stopped, of the same graph and phases, to go on from; `start` is then ignored.
    callback
        Called every ten iterations.
    n_jobs
        Threads, -1 for as many as processors; the map does not depend on it. On a busy machine, or for a few
        thousand examples, one thread is the fastest.

    Returns
    -------
    The map; if `callback` has stopped the optimization it is not ``finished``, and can be resumed to the same end.

    Raises
    ------
    AnalysisError
        If there are fewer than four examples, or `start` or `resume` are not of the examples of the graph.

    Notes
    -----
    Affinities are uniform over the neighbours rather than of a perplexity, and no exaggeration is left on:
    ``benchmarks/bench_projection.py`` measures both. Forces are interpolated by FFT from 10,000 examples and taken
    from a tree below (Barnes-Hut). Of each example a third of the others attract it at most: were it all of them,
    the map would be one point. Equal input gives an equal map on one machine.

    References
    ----------
    van der Maaten and Hinton (2008), "Visualizing Data using t-SNE"; Poličar et al. (2024), "openTSNE: A Modular
    Python Library for t-SNE Dimensionality Reduction and Embedding".

    Examples
    --------
    >>> from t3vis.analysis.neighbours import neighbour_graph
    >>> two_clouds = np.random.default_rng(0).normal(size=(60, 5)) + 9 * (np.arange(60) < 30)[:, np.newaxis]
    >>> found = tsne(neighbour_graph(two_clouds, k=10), pca_start(two_clouds))
    >>> found.finished, bool(found.kl_divergence < 1)
    (True, True)
    >>> bool(found.coordinates[:30, 0].min() > found.coordinates[30:, 0].max())
    True
    """
    n_examples = graph.n_examples
    if n_examples < MIN_EXAMPLES:
        raise AnalysisError(f"{n_examples} examples make no t-SNE map; pass at least {MIN_EXAMPLES}, or use PCA.")
    n_planned = sum(phase.n_iter for phase in phases)
    if resume is not None and resume.n_planned != n_planned:
        raise AnalysisError(f"the map to resume was to take {resume.n_planned} iterations, these phases {n_planned}.")
    given = start if resume is None else resume.coordinates
    if given.shape != (n_examples, 2):
        raise AnalysisError(
            f"the start has shape {given.shape} but the graph has {n_examples} examples; pass a start of the same "
            "examples in the same order."
        )
    optimizer = gradient_descent()
    kl_divergence = float("nan")
    n_done = n_before = 0
    if resume is not None:
        optimizer.gains, optimizer.update = resume.gains.copy(), resume.update.copy()
        n_done, kl_divergence = resume.n_iter, resume.kl_divergence
    k = max(min(graph.k, (n_examples - 1) // 3), 1)
    affinities = Uniform(knn_index=PrecomputedNeighbors(graph.indices[:, :k], graph.distances[:, :k]))
    embedding = TSNEEmbedding(given, affinities, optimizer=optimizer, max_step_norm=5, n_jobs=n_jobs)
    matrix = affinities.P
    for phase in phases:
        n_left = n_before + phase.n_iter - n_done
        n_before += phase.n_iter
        if n_left <= 0:
            continue
        affinities.P = matrix.copy()  # exaggeration multiplies it in place, and dividing again is not exact
        watch = _Watch(callback, n_done, n_planned)
        try:
            embedding.optimize(
                n_left,
                exaggeration=phase.exaggeration,
                learning_rate=phase.learning_rate * n_examples / phase.exaggeration,
                momentum=0.8,
                inplace=True,
                propagate_exception=True,
                callbacks=watch,
                callbacks_every_iters=REPORT_EVERY,
            )
        except OptimizationInterrupt as interrupt:
            n_done, kl_divergence = watch.n_done, interrupt.error
            break
        n_done, kl_divergence = n_done + n_left, embedding.kl_divergence
    return TSNEMap(np.array(embedding), kl_divergence, n_done, n_planned, optimizer.gains, optimizer.update)


def phases_after(kept: float) -> tuple[Phase, ...]:
    """How to go on from the last map, by the share of the neighbours in hidden space kept since then, in [0, 1].

    Examples
    --------
    >>> phases_after(0.66) == CONTINUED, phases_after(0.09) == REARRANGED
    (True, True)
    """
    return CONTINUED if kept >= MIN_KEPT else REARRANGED


def place(
    states: NDArray[np.floating],
    landmarks: NDArray[np.floating],
    graph: NeighbourGraph,
    coordinates: NDArray[np.floating],
    *,
    progress: Progress | None = None,
    n_jobs: int = 1,
) -> NDArray[np.float64]:
    """Places of further examples on a map of others, which stay where they are.

    Parameters
    ----------
    states
        Shape (n_examples, hidden): what to place.
    landmarks, graph, coordinates
        States of the examples on the map, shape (n_landmarks, hidden), their neighbours, and where they are, shape
        (n_landmarks, 2).
    progress
        Called while the neighbours of the examples among the landmarks are looked for.
    n_jobs
        Threads; -1 is all processors.

    Returns
    -------
    Shape (n_examples, 2). Each starts at the median of its neighbours and moves by the forces of the landmarks only.

    Raises
    ------
    AnalysisError
        If an array is not finite, or their shapes disagree.

    Notes
    -----
    The settings are those of ``TSNEEmbedding.transform`` in openTSNE, with the affinities that the map is made of.

    Examples
    --------
    >>> from t3vis.analysis.neighbours import neighbour_graph
    >>> clouds = np.random.default_rng(0).normal(size=(60, 5)) + 9 * (np.arange(60) < 30)[:, np.newaxis]
    >>> graph = neighbour_graph(clouds, k=10)
    >>> known = tsne(graph, pca_start(clouds)).coordinates
    >>> placed = place(np.full((1, 5), 9.0), clouds, graph, known)
    >>> bool(placed[0, 0] > known[30:, 0].max())
    True
    """
    if not len(landmarks) == graph.n_examples == len(coordinates):
        raise AnalysisError(
            f"there are {len(landmarks)} landmarks, {graph.n_examples} in their graph and {len(coordinates)} on the "
            "map; pass the same examples in the same order."
        )
    affinities = Uniform(knn_index=_Searchable(graph, landmarks, progress))
    fixed = TSNEEmbedding(coordinates, affinities, n_jobs=n_jobs)
    middle = (np.max(coordinates, axis=0) + np.min(coordinates, axis=0)) / 2
    fixed -= middle  # openTSNE lays its grid about the origin
    moving = fixed.prepare_partial(states, initialization="median", k=graph.k, k_neighbors=graph.k)
    moving.optimize(250, learning_rate=0.1, exaggeration=1.5, momentum=0.8, max_grad_norm=0.25, inplace=True)
    placed: NDArray[np.float64] = np.array(moving) + middle
    return placed


def umap(states: NDArray[np.floating], graph: NeighbourGraph, start: NDArray[np.floating], *, seed: int = 0) -> Any:
    """A UMAP map of the same graph, by the library umap-learn.

    Parameters
    ----------
    states
        Shape (n_examples, hidden).
    graph
        Their neighbours.
    start
        Where it starts, shape (n_examples, 2).
    seed
        Of its negative samples.

    Returns
    -------
    Coordinates of shape (n_examples, 2), float64.

    Raises
    ------
    AnalysisError
        If umap-learn is not installed.

    Examples
    --------
    >>> from t3vis.analysis.neighbours import neighbour_graph
    >>> clouds = np.random.default_rng(0).normal(size=(60, 5)) + 9 * (np.arange(60) < 30)[:, np.newaxis]
    >>> coordinates = umap(clouds, neighbour_graph(clouds, k=10), pca_start(clouds))
    >>> bool(coordinates[:30, 0].min() > coordinates[30:, 0].max())
    True
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Tensorflow not installed", category=ImportWarning)
        warnings.filterwarnings("ignore", message="precomputed_knn", category=UserWarning)  # only to place further ones
        try:
            from umap import UMAP
        except ImportError as error:
            raise AnalysisError('UMAP needs umap-learn; install it with: pip install "t3vis[umap]"') from error
        own = np.arange(graph.n_examples, dtype=np.int32)[:, np.newaxis]  # for UMAP the first neighbour of each
        indices = np.concatenate([own, graph.indices], axis=1)
        distances = np.concatenate([np.zeros_like(own, dtype=np.float32), graph.distances], axis=1)
        fitted = UMAP(
            n_neighbors=graph.k + 1,
            precomputed_knn=(indices, distances),
            init=start * (10 / np.abs(start).max()),
            random_state=seed,
            n_jobs=1,
        )
        return fitted.fit_transform(states).astype(np.float64)


def displacement(before: NDArray[np.floating], after: NDArray[np.floating]) -> NDArray[np.float64]:
    """How far every example is from where it was on another map, once the maps are laid over each other.

    Parameters
    ----------
    before, after
        Coordinates of the same examples in the same order, shape (n_examples, 2).

    Returns
    -------
    Shape (n_examples,), in units of the radius of `before`: the root mean square distance from its middle.
    The root mean square of all is in [0, 1]; two maps that have nothing in common are at about 1.

    Raises
    ------
    AnalysisError
        If the shapes disagree, or all examples of a map are at one place.

    Notes
    -----
    Laid over each other by Procrustes: moved, turned, mirrored and scaled to the least sum of squares.

    Examples
    --------
    >>> square = np.array([[0.0, 0.0], [0.0, 1.0], [1.0, 1.0], [1.0, 0.0]])
    >>> turned = 3 * square[:, ::-1] + 7
    >>> displacement(square, turned).round(9)
    array([0., 0., 0., 0.])
    >>> displacement(square, square[[1, 0, 2, 3]]).round(3)
    array([1.118, 1.118, 0.5  , 0.5  ])
    """
    if before.shape != after.shape:
        raise AnalysisError(f"the maps have shapes {before.shape} and {after.shape}; pass maps of the same examples.")
    one, other = (each - each.mean(axis=0) for each in (before.astype(np.float64), after.astype(np.float64)))
    radius = np.sqrt((one**2).sum(axis=1).mean())
    if radius == 0 or not other.any():
        raise AnalysisError("all examples of a map are at one place; there is nothing to compare.")
    turn, overlap = orthogonal_procrustes(other, one)
    moved: NDArray[np.float64] = np.linalg.norm(one - other @ turn * (overlap / (other**2).sum()), axis=1) / radius
    return moved


class _Watch:
    """Counts the iterations of a phase, passes them on, and stops when it is told to."""

    def __init__(self, callback: Callback | None, n_before: int, n_planned: int) -> None:
        self._callback = callback
        self._n_before = n_before
        self._n_planned = n_planned
        self.n_done = n_before

    def __call__(self, iteration: int, error: float, _embedding: TSNEEmbedding) -> bool:
        self.n_done = self._n_before + iteration - 1  # this iteration's step is taken after the call
        return self._callback is not None and bool(self._callback(self.n_done, self._n_planned, error))


class _Searchable(PrecomputedNeighbors):  # type: ignore[misc]  # openTSNE has no types
    """Neighbours of landmarks, among which those of further examples can be looked for."""

    def __init__(self, graph: NeighbourGraph, landmarks: NDArray[np.floating], progress: Progress | None) -> None:
        super().__init__(graph.indices, graph.distances)
        self._landmarks = landmarks
        self._progress = progress

    def query(self, query: NDArray[np.floating], k: int) -> tuple[NDArray[np.int32], NDArray[np.float64]]:
        indices, distances = nearest_in(query, self._landmarks, k=k, progress=self._progress)
        return indices, distances.astype(np.float64)
