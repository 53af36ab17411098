"""The tokens of a run, one row each: where they are, what was predicted there, and their training dynamics."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from t3vis.analysis.data_map import DataMap, map_of
from t3vis.analysis.trajectories import Trajectories
from t3vis.errors import AnalysisError
from t3vis.store.ragged import Ragged, offsets_of
from t3vis.store.reader import Split


@dataclass(frozen=True, eq=False)
class TokenTable:
    """The scored tokens of a split, example after example.

    ``example``, ``position`` (in the input), ``label`` and ``prediction`` have shape (n_tokens,); ``prediction`` is
    that of the last pass in which the example was seen. ``data_map`` has one row for each token. The tokens of
    example i are ``offsets[i]`` up to ``offsets[i + 1]``, as `t3vis.analysis.generalised.by_sentence` takes them.
    """

    example: NDArray[np.int64]
    position: NDArray[np.int32]
    label: NDArray[np.int32]
    prediction: NDArray[np.int32]
    data_map: DataMap
    offsets: NDArray[np.int64]

    def hardest(self, n_tokens: int) -> NDArray[np.int64]:
        """Rows of the tokens with the lowest confidence, the lowest first."""
        return np.argsort(self.data_map.confidence, kind="stable")[:n_tokens]


def token_table(split: Split) -> TokenTable:
    """The tokens of a task that scores them, with their data map; what was recorded of them is held in memory.

    Raises
    ------
    StoreError
        If log-probability, prediction, label and position of the tokens were not recorded.
    AnalysisError
        If an example has not the same tokens in every pass.
    """
    names = ("position", "label", "prediction", "logprob")
    position, label, prediction, logprob = (split.ragged(f"token_{name}")[:] for name in names)
    lengths = np.array([rows.lengths for rows in position])
    offsets = offsets_of(lengths.max(axis=0))
    example = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
    seen = lengths[:, example] > 0
    _check_lengths(lengths)
    probs = np.full(seen.shape, np.nan)
    correct = np.zeros(seen.shape, np.bool_)
    for index, is_seen in enumerate(seen):
        probs[index, is_seen] = np.exp(logprob[index].values.astype(np.float64))
        correct[index, is_seen] = prediction[index].values == label[index].values
    return TokenTable(
        example=example,
        position=_same(position, seen, example),
        label=_same(label, seen, example),
        prediction=_last(prediction, seen),
        data_map=map_of(Trajectories(probs, correct, seen)),
        offsets=offsets,
    )


def _last(passes: Sequence[Ragged], seen: NDArray[np.bool_]) -> NDArray[Any]:
    """The value of each token in the last pass that has one."""
    found = np.empty(seen.shape[1], passes[0].values.dtype)
    for rows, is_seen in zip(passes, seen, strict=True):
        found[is_seen] = rows.values
    return found


def _same(passes: Sequence[Ragged], seen: NDArray[np.bool_], example: NDArray[np.int64]) -> NDArray[Any]:
    """The value of each token, which is the same in every pass that has one."""
    found = _last(passes, seen)
    for index, (rows, is_seen) in enumerate(zip(passes, seen, strict=True)):
        differs = example[is_seen][rows.values != found[is_seen]]
        if len(differs):
            raise _other_tokens(int(differs[0]), index)
    return found


def _check_lengths(lengths: NDArray[np.int64]) -> None:
    index, differs = np.nonzero((lengths > 0) & (lengths != lengths.max(axis=0)))
    if len(index):
        raise _other_tokens(int(differs[0]), int(index[0]))


def _other_tokens(example: int, index: int) -> AnalysisError:
    return AnalysisError(
        f"example {example} has other tokens in pass {index} than in another pass, as where masks are drawn anew in "
        "every epoch; the dynamics of a token need the same tokens in all of them."
    )
