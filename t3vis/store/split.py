"""Split: what a run holds of the training set, or of one evaluation set."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from t3vis.errors import StoreError
from t3vis.store import schema
from t3vis.store.example import Example
from t3vis.store.examples import RaggedColumn, static_array, text_columns, token_ids
from t3vis.store.passes import Pass, PassReader
from t3vis.store.run_arrays import RaggedRunArray, RunArray
from t3vis.store.sealed import HeldShards

if TYPE_CHECKING:
    from dask.array import Array


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
        """Gradients of a gate on each attention head, float32, dims (epoch, attention, example, head)."""
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
