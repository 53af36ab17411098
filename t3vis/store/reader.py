"""Run: a lazy, read-only view of a run, finished or still training.

Every access looks at the disk anew. A copy at a URL is read as it was when it was opened, or when it last turned out
to have changed.
"""

from __future__ import annotations

import html
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from t3vis.errors import AnalysisError, StoreError
from t3vis.store import schema, segments
from t3vis.store.examples import RaggedColumn
from t3vis.store.passes import Pass, as_path
from t3vis.store.sealed import HeldShards
from t3vis.store.segments import split_names
from t3vis.store.split import Split
from t3vis.store.storage import locate

if TYPE_CHECKING:
    import datasets
    import pyarrow as pa
    import xarray as xr
    from dask.array import Array

    from t3vis.strategies import Strategy
    from t3vis.viewer.notebook import View


__all__ = ["Evaluations", "Run", "Split", "open_run"]


class Evaluations(Mapping[str, Split]):
    """The evaluation sets of a run by the names that the Trainer gives their metrics: ``eval``, ``eval_<name>``."""

    def __init__(self, run: Run) -> None:
        self._run = run

    def __getitem__(self, name: str) -> Split:
        if name not in list(self):
            raise KeyError(f"{name!r}; recorded are: {', '.join(self) or 'no evaluations'}")
        return self._run._split(name)

    def __iter__(self) -> Iterator[str]:
        return (name for name in split_names(as_path(self._run.path)) if name != "train")

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __repr__(self) -> str:
        return f"<evaluations: {', '.join(self) or 'none'}>"


class Run:
    """A recorded run, read-only and lazy; it grows under the reader's eyes while training goes on."""

    def __init__(self, path: schema.Node) -> None:
        self.path = path
        self._splits: dict[str, Split] = {}
        self._held = HeldShards()
        schema.run_attributes(path)

    @property
    def attributes(self) -> dict[str, Any]:
        """What the run says of itself: model, TrainingArguments, recorder settings, library versions."""
        return schema.run_attributes(self.path)

    @property
    def train(self) -> Split:
        """The training set.

        Raises
        ------
        StoreError
            If nothing has been trained in this run (yet).
        """
        if "train" in self._splits:
            return self._splits["train"]
        if not schema.node_exists(self.path / "train"):
            raise StoreError(
                f"{self.path} holds no training pass (yet); evaluations: {', '.join(self.evals) or 'none'}."
            )
        return self._split("train")

    @property
    def evals(self) -> Evaluations:
        """The evaluation sets by name."""
        return Evaluations(self)

    @property
    def splits(self) -> dict[str, Split]:
        """All splits by name."""
        return {name: self._split(name) for name in split_names(as_path(self.path))}

    def named(self, split: str) -> Split:
        """One of ``splits`` by name.

        Raises
        ------
        AnalysisError
            If there is none of that name.
        """
        found = split_names(as_path(self.path))
        if split not in found:
            raise AnalysisError(f"{self.path} holds no split {split!r}; it holds: {', '.join(found) or 'none'}.")
        return self._split(split)

    def _split(self, name: str) -> Split:
        split = self._splits.get(name)
        if split is None:
            split = self._splits[name] = Split(self.path, name, self._held)
        return split

    @property
    def epochs(self) -> tuple[Pass, ...]:
        """What is known of each epoch of training."""
        return self.train.passes

    @property
    def missing_rows(self) -> int:
        """Rows that could not be recorded, over all processes and attempts."""
        return sum(sum(attempt["missing_rows"].values()) for attempt in segments.attempts(as_path(self.path)))

    @property
    def has_tokens(self) -> bool:
        """Whether the run was recorded with a tokenizer, so that `tokens` can name them."""
        return schema.node_exists(self.path / "tokenizer" / "text" / "token" / "values")

    def tokens(self, ids: ArrayLike) -> list[str]:
        """Token ids as the tokens they stand for.

        Raises
        ------
        StoreError
            If the run was recorded without a tokenizer.
        """
        if not self.has_tokens:
            raise StoreError(f"{self.path} holds no vocabulary; give the Trainer its tokenizer as processing_class.")
        column = RaggedColumn(self.path / "tokenizer" / "text" / "token", text=True)
        return [column[int(i)] for i in np.asarray(ids)]

    def summary(self) -> str:
        """The run in a few lines of text: model, versions, and each split's arrays, passes and gaps."""
        attributes = self.attributes
        model = attributes.get("model", {})
        lines = [
            f"{self.path}: {model.get('class', 'unknown model')}, begun {attributes['t3vis']['created']}",
            *(split.summary() for split in self.splits.values()),
        ]
        attempts = segments.attempts(as_path(self.path))
        if len({attempt["attempt"] for attempt in attempts}) > 1:
            starts = [known["start_step"] for known in attempts if known["attempt"] and known["start_step"]]
            lines += [f"resumed from step {', '.join(map(str, starts))}"] if starts else []
        if self.missing_rows:
            causes = {attempt["first_error"] for attempt in attempts if attempt["first_error"]}
            lines.append(f"{self.missing_rows:,} rows could not be recorded: {'; '.join(sorted(causes))}")
        return "\n".join(lines)

    def to_dask(self) -> dict[str, dict[str, Array]]:
        """All arrays of all splits as Dask arrays, by split and name; the ragged ones are left out.

        Their chunks are the shards, one pass and layer each, so that no shard is read twice. Nothing is read before
        they are computed; who computes them has to find the run at the same path or URL.

        Raises
        ------
        StoreError
            If a pass is not sealed yet, or Dask is not installed.
        """
        return {name: {array: split.to_dask(array) for array in split.arrays} for name, split in self.splits.items()}

    def table(self, split: str = "train", *, epoch: int = -1, columns: Sequence[str] | None = None) -> pa.Table:
        """What is known of every example, as an Arrow table; one row for each, in the order of the ids.

        Parameters
        ----------
        split
            ``train``, or the name of an evaluation set.
        epoch
            Of which epoch, or evaluation, the loss, prediction, probability and logits are; negative from the last.
        columns
            Their names: text columns; ``label``, ``length``, ``loss``, ``prediction``, ``probability`` (of the gold
            label), ``logits``; of the analyses ``confidence``, ``variability``, ``correctness``, ``region``,
            ``suspicion``, ``suggested_label``, ``outlier`` and so on, which are computed if they have not been;
            ``x`` and ``y`` of the last map; ``hidden_states`` of the last layer or ``hidden_states:4``; those of
            another epoch as ``loss@3``. By default all but the hidden states and what would have to be computed,
            other than the data map. ``example``, the id, is always the first.

        Returns
        -------
        Classes by their names, what is not known as null. The whole table is in memory; see ``t3vis export`` for a
        file.

        Raises
        ------
        AnalysisError
            If there is no such split, epoch or column, or a column cannot be computed.
        """
        from t3vis.exports.table import table  # the analyses, which readers do not need

        return table(self, self.named(split), epoch=epoch, columns=columns)

    def to_xarray(self) -> xr.DataTree:
        """The run as a tree of labelled, lazy arrays: one group for each split, see ``docs/exports.md``.

        Raises
        ------
        ConfigurationError
            If the extra ``t3vis[xarray]`` is not installed.
        """
        from t3vis.exports.xarrays import to_xarray

        return to_xarray(self)

    def annotate(
        self, dataset: datasets.Dataset, *, split: str = "train", epoch: int = -1, columns: Sequence[str] | None = None
    ) -> datasets.Dataset:
        """The dataset with what is known of each example in further columns.

        Parameters
        ----------
        dataset
            The one that was recorded, row for row, also before or after it was tokenized.
        split, epoch, columns
            As in `table`. By default ``confidence``, ``variability``, ``correctness``, ``region``, ``suspicion`` and
            ``suggested_label``, as far as there are such things of the task.

        Raises
        ------
        AnalysisError
            If it is another dataset: another number of rows, or other texts (token ids, labels) than were recorded;
            or if it has a column of one of these names already.
        """
        from t3vis.exports.retraining import annotated

        return annotated(self, self.named(split), dataset, epoch=epoch, columns=columns)

    def select(
        self,
        strategy: Strategy,
        dataset: datasets.Dataset | None = None,
        *,
        fraction: float = 0.33,
        balanced: bool = False,
        seed: int = 0,
        split: str = "train",
    ) -> datasets.Dataset:
        """The examples that come first under a strategy, as a dataset to train on.

        Parameters
        ----------
        strategy, fraction, seed
            As in `t3vis.analysis.selection.select`: ``ambiguous``, ``easy``, ``hard``, ...
        dataset
            The one that was recorded, row for row; by default its texts and labels as the store has them, in memory.
        balanced
            Whether that share is taken of each class.
        split
            What is selected from.

        Returns
        -------
        Those rows, in their order.

        Raises
        ------
        AnalysisError
            If the split has no data map, or `dataset` is another one, as in `annotate`; if it is not given and the
            store has no texts.
        """
        from t3vis.exports.retraining import selected

        return selected(self, self.named(split), strategy, dataset, fraction=fraction, balanced=balanced, seed=seed)

    def drop_suspects(
        self, dataset: datasets.Dataset | None = None, *, fraction: float | None = None, split: str = "train"
    ) -> datasets.Dataset:
        """The examples whose label is not suspected to be wrong, as a dataset to train on.

        Parameters
        ----------
        dataset, split
            As in `select`.
        fraction
            Drop this share of the examples, the most suspicious; by default those of which another label is more
            credible than the given one.

        Raises
        ------
        AnalysisError
            As `select`; also where no other label is suggested and no `fraction` is given.
        """
        from t3vis.exports.retraining import without_suspects

        return without_suspects(self, self.named(split), dataset, fraction=fraction)

    def view(self, *, height: int = 800, host: str = "localhost", port: int = 0) -> View:
        """Show the viewer in a notebook; what is selected there comes back as ``.selected``.

        Parameters
        ----------
        height
            Of the frame, in pixels.
        host
            The name under which the notebook is open, ``localhost`` or ``127.0.0.1``.
        port
            Of the viewer's server; 0 is any that is free.

        Raises
        ------
        ModuleNotFoundError
            If the extra ``t3vis[viewer]`` is not installed.
        """
        from t3vis.viewer.notebook import View  # a server, which readers do not need

        return View(self, height=height, host=host, port=port)

    def __repr__(self) -> str:
        return f"<t3vis run {self.path}>\n{self.summary()}"

    def _repr_html_(self) -> str:
        return f"<pre>{html.escape(self.summary())}</pre>"


def open_run(path: str | os.PathLike[str]) -> Run:
    """Open a run for reading, also one that is still being recorded.

    Parameters
    ----------
    path
        Of its directory; or the URL of a copy made by ``push``, such as ``s3://bucket/run.zarr``, of which only what
        is asked for is fetched.

    Raises
    ------
    StoreError
        If there is no t3vis run at ``path``, or its format is newer than this t3vis; or if the protocol of a URL
        is not known, or needs a package that is not installed.
    """
    return Run(locate(path))
