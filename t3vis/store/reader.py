"""Run: a lazy, read-only view of a run, finished or still training.

Every access looks at the disk anew. A copy at a URL is read as it was when it was opened, or when it last turned out
to have changed.
"""

from __future__ import annotations

import html
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from t3vis.errors import StoreError
from t3vis.store import schema, segments
from t3vis.store.examples import RaggedColumn, static_array, text_columns, token_ids
from t3vis.store.passes import Pass, PassReader, as_path
from t3vis.store.run_arrays import RaggedRunArray, RunArray
from t3vis.store.sealed import HeldShards
from t3vis.store.segments import split_names
from t3vis.store.storage import locate

if TYPE_CHECKING:
    from dask.array import Array

    from t3vis.viewer.notebook import View


class Split:
    """The training set, or one evaluation set: its examples, and what was recorded of them in every pass."""

    def __init__(self, run_path: schema.Node, name: str, held: HeldShards) -> None:
        self.name = name
        self.path = run_path / name
        self._reader = PassReader(run_path, name, held)
        self._recorded: set[str] = set()

    @property
    def kind(self) -> schema.SplitKind:
        """Whether it is the training set or an evaluation set."""
        return self._reader.kind

    @property
    def attributes(self) -> dict[str, Any]:
        """What the split says of itself: task, class names, mode, fingerprint, ..."""
        return self._reader.attributes

    @property
    def n_examples(self) -> int:
        """Number of examples; where the dataset did not tell, the largest id seen so far and one."""
        return self._reader.n_examples

    def __len__(self) -> int:
        return self.n_examples

    @property
    def class_names(self) -> list[str] | None:
        """Names of the classes in the order of the logits, where they are known."""
        names: list[str] | None = self.attributes.get("class_names")
        return names

    @property
    def arrays(self) -> list[str]:
        """Names of the arrays recorded so far, but for the ragged ones."""
        return [name for name, spec in schema.PASS_ARRAYS.items() if not spec.is_ragged and self._reader.has(name)]

    @property
    def ragged_arrays(self) -> list[str]:
        """Names of the arrays recorded so far that hold one value for each token."""
        return [name for name, spec in schema.PASS_ARRAYS.items() if spec.is_ragged and self._reader.has(name)]

    @property
    def logits(self) -> RunArray:
        """Outputs of the task head, float32, dims (pass, example, class)."""
        return self.array("logits")

    @property
    def loss(self) -> RunArray:
        """Loss of each example, float32, dims (pass, example)."""
        return self.array("loss")

    @property
    def step(self) -> RunArray:
        """Optimizer steps completed when each example was seen, int64, dims (pass, example); -1 = not seen."""
        return self.array("step")

    @property
    def visits(self) -> RunArray:
        """How often each example was seen in a pass, int32, dims (pass, example)."""
        return self.array("visits")

    @property
    def hidden_states(self) -> RunArray:
        """Pooled hidden states, float16, dims (pass, layer, example, hidden)."""
        return self.array("hidden_states")

    @property
    def head_gradients(self) -> RunArray:
        """Gradients of a gate on each attention head, float32, dims (epoch, layer, example, head)."""
        return self.array("head_gradients")

    @property
    def layers(self) -> list[int]:
        """Which hidden states the layers of ``hidden_states`` are; 0 is the output of the embeddings.

        Counted from 0 where whoever recorded them did not tell.
        """
        layers: list[int] | None = self.attributes["arrays"].get("hidden_states", {}).get("layers")
        if layers is None:
            return list(range(self.hidden_states.shape[1])) if self._reader.has("hidden_states") else []
        return layers

    def array(self, name: str) -> RunArray:
        """One of ``arrays`` by name.

        Raises
        ------
        StoreError
            If nothing of that name has been recorded.
        """
        self._check_recorded(name, is_ragged=False)
        return RunArray(self._reader, name)

    def ragged(self, name: str) -> RaggedRunArray:
        """One of ``ragged_arrays`` by name.

        Raises
        ------
        StoreError
            If nothing of that name has been recorded.
        """
        self._check_recorded(name, is_ragged=True)
        return RaggedRunArray(self._reader, name)

    def to_dask(self, name: str) -> Array:
        """One of ``arrays`` as a Dask array, of all passes, chunked as its shards are; read where it is computed.

        Raises
        ------
        StoreError
            If nothing of that name has been recorded, a pass is not sealed yet, or Dask is not installed.
        """
        from t3vis.store.dask_arrays import dask_array  # an extra

        return dask_array(self, name)

    @property
    def labels(self) -> NDArray[Any]:
        """Gold labels.

        Shape (n_examples,) int64 of classes, -1 where unknown; or, for multi-label and regression, shape
        (n_examples, n_outputs) float32, NaN where unknown. From the dataset, else as first seen in a batch.
        """
        for name in ("labels", "targets"):
            static = static_array(self.path, name)
            if static is not None:
                return static.read_all()
        for name in ("labels", "targets"):
            if self._reader.has(name):
                return self._first_seen(name)
        return np.full(self.n_examples, -1, np.int64)

    def label(self, example_id: int) -> Any:
        """Gold label of one example, as ``labels`` has it; the others are not read."""
        for name in ("labels", "targets"):
            static = static_array(self.path, name)
            if static is not None:
                row = static.row((), example_id)
                return row if row.shape else row[()]
        return self.labels[example_id]

    @property
    def length(self) -> NDArray[Any]:
        """Tokens of each example that are not padding, shape (n_examples,) int32; -1 where unknown."""
        static = static_array(self.path, "length")
        if static is not None:
            return static.read_all()
        return self._first_seen("length") if self._reader.has("length") else np.full(self.n_examples, -1, np.int32)

    @property
    def text(self) -> dict[str, RaggedColumn]:
        """Raw text columns by name, read on demand."""
        return text_columns(self.path)

    @property
    def token_ids(self) -> RaggedColumn | None:
        """Token ids of each example, read on demand; ``None`` where the dataset had none."""
        return token_ids(self.path)

    @property
    def passes(self) -> tuple[Pass, ...]:
        """What is known of each epoch, or evaluation, that anything was recorded of."""
        return self._reader.records()

    @property
    def epochs(self) -> NDArray[np.float64]:
        """Epoch of each pass: 0, 1, 2, ... in training; how many had been trained, for an evaluation."""
        return np.array([record.epoch for record in self.passes])

    def example(self, example_id: int) -> Example:
        """Everything recorded of one example, over all passes.

        Raises
        ------
        IndexError
            If the split has no such example.
        """
        n_examples = self.n_examples
        if not 0 <= example_id < n_examples:
            raise IndexError(f"example {example_id} of {self.name}, which has {n_examples}")
        ids = self.token_ids
        label, names = self.label(example_id), self.class_names
        known = np.ndim(label) == 0 and names is not None and 0 <= label < len(names)
        return Example(
            example_id=example_id,
            text={column: texts[example_id] for column, texts in self.text.items()},
            token_ids=None if ids is None else ids[example_id],
            label=label,
            label_name=names[label] if known and names is not None else None,
            arrays={
                name: self.array(name)[(..., example_id, *(slice(None) for _ in schema.PASS_ARRAYS[name].trailing))]
                for name in self.arrays
            },
            ragged={name: self.ragged(name)[:, example_id] for name in self.ragged_arrays},
            class_names=names,
        )

    def summary(self) -> str:
        """A few lines of text: examples, arrays, passes and what is missing."""
        lines = [f"{self.name}: {self.n_examples:,} examples, recorded in {self.attributes['mode']} mode"]
        lines += [f"  {self.array(name)!r}" for name in self.arrays]
        lines += [f"  {self.ragged(name)!r}" for name in self.ragged_arrays]
        for record in self.passes:
            what = f"epoch {record.epoch:g}" if self.kind == "train" else f"evaluation at epoch {record.epoch:g}"
            gaps = f", {record.n_never:,} never" if record.n_never else ""
            gaps += f", {record.n_repeated:,} more than once" if record.n_repeated else ""
            gaps += f", without {', '.join(record.attributes['dropped'])}" if record.attributes.get("dropped") else ""
            state = "" if record.sealed else " (in progress)"
            lines.append(f"  {what}: step {record.step}, {record.n_seen:,} seen{gaps}{state}")
        return "\n".join(lines)

    def __repr__(self) -> str:
        n_passes = len(self._reader.indices())
        return f"<{self.name} of {self.path.parent.name}: {self.n_examples:,} examples, {n_passes} passes>"

    # What has been recorded

    def _check_recorded(self, name: str, *, is_ragged: bool) -> None:
        if name in self._recorded:
            return
        recorded = self.ragged_arrays if is_ragged else self.arrays
        if name not in recorded:
            others = self.arrays if is_ragged else self.ragged_arrays
            hint = f" {name} is asked for by {'array' if is_ragged else 'ragged'}({name!r})." if name in others else ""
            found = ", ".join(recorded) or "none"
            kind = "ragged arrays" if is_ragged else "arrays"
            raise StoreError(f"{self.path} holds no {name} (yet) among its {kind}: {found}.{hint}")
        self._recorded.add(name)

    def _first_seen(self, name: str) -> NDArray[Any]:
        """A value that the batches carried, from the first pass in which each example was seen."""
        array, step = self.array(name), self.array("step")
        _, trailing = self._reader.row_shape(name)
        out = np.full((self.n_examples, *trailing), schema.PASS_ARRAYS[name].fill, array.dtype)
        unknown = np.ones(len(out), bool)
        for index in self._reader.indices():
            now = unknown & (step[index] >= 0)
            out[now] = array[index, now]
            unknown &= ~now
        return out


@dataclass(frozen=True)
class Example:
    """One example: what it is, and its trajectory.

    ``arrays`` holds, for each recorded array, its values over the passes, such as ``loss`` of shape (n_passes,),
    ``logits`` (n_passes, n_classes) and ``hidden_states`` (n_passes, n_layers, hidden). ``ragged`` holds for each
    ragged array a list of its values in every pass, such as one number per token.
    """

    example_id: int
    text: dict[str, str]
    token_ids: NDArray[np.int32] | None
    label: Any
    label_name: str | None
    arrays: dict[str, NDArray[Any]]
    ragged: dict[str, list[NDArray[Any]]]
    class_names: list[str] | None

    @property
    def logits(self) -> NDArray[Any]:
        """Shape (n_passes, n_classes)."""
        return self.arrays["logits"]

    @property
    def loss(self) -> NDArray[Any]:
        """Shape (n_passes,)."""
        return self.arrays["loss"]

    @property
    def hidden_states(self) -> NDArray[Any]:
        """Shape (n_passes, n_layers, hidden)."""
        return self.arrays["hidden_states"]

    def __repr__(self) -> str:
        lines = [f"example {self.example_id}, label {self.label_name or self.label}"]
        lines += [f"  {column}: {text}" for column, text in self.text.items()]
        if "loss" in self.arrays:
            lines.append("  loss: " + " ".join(f"{value:.3f}" for value in self.loss))
        if "logits" in self.arrays and np.ndim(self.label) == 0:
            best = self.logits.argmax(-1)
            known = self.class_names or []
            names = [known[i] if i < len(known) else str(i) for i in best]
            seen = np.isfinite(self.logits).all(-1)
            lines.append("  predicted: " + " ".join(name if ok else "-" for name, ok in zip(names, seen, strict=True)))
        return "\n".join(lines)


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
