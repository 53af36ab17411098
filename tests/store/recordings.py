"""What the tests of the store have in common: small real runs, and a dictionary that says what they must hold."""

from pathlib import Path
from typing import Any

import numpy as np

from t3vis.store import schema
from t3vis.store.ragged import Ragged
from t3vis.store.reader import Split
from t3vis.store.seal import seal_pass
from t3vis.store.writer import RunWriter, create_run

Rows = dict[str, np.ndarray | Ragged]


def split_attributes(n_examples: int | None, kind: schema.SplitKind = "train", **more: Any) -> dict[str, Any]:
    return {"kind": kind, "mode": kind, "n_examples": n_examples, "fingerprint": "f", **more}


def rows_of(
    ids: Any, step: int, seed: int = 0, *, n_classes: int = 3, n_layers: int = 2, hidden: int = 4, tokens: bool = True
) -> Rows:
    """A batch as the recorder hands it over."""
    rng = np.random.default_rng([seed, step])
    n = len(ids)
    rows = {
        "example": np.asarray(ids, np.int64),
        "step": np.full(n, step, np.int64),
        "logits": rng.normal(size=(n, n_classes)).astype(np.float32),
        "loss": rng.random(n).astype(np.float32),
    }
    if n_layers:
        rows["hidden_states"] = rng.normal(size=(n_layers, n, hidden)).astype(np.float16)
    if tokens:
        lengths = (np.asarray(ids, np.int64) + step) % 4
        rows["token_logprob"] = Ragged.with_lengths(rng.random(lengths.sum()).astype(np.float32), lengths)
    return rows


def new_run(path: Path, n_examples: int | None = 10, **options: Any) -> RunWriter:
    """A run with a training split, about to record its first epoch."""
    writer = create_run(path, {"model": {"class": "Tiny"}}, **options)
    writer.add_split("train", split_attributes(n_examples))
    writer.begin_pass("train", 0, {"epoch": 0, "step": 0})
    return writer


class Expected:
    """What a split must hold: for each pass and example its visits (step and row), in order of arrival."""

    def __init__(self, n_examples: int | None) -> None:
        self._n_examples = n_examples
        self._visits: dict[tuple[int, int], list[tuple[int, Rows]]] = {}
        self._still_counted: dict[tuple[int, int], int] = {}  # visits taken back that a sealed pass may still count
        self._passes: set[int] = set()

    def log(self, writer: RunWriter, index: int, rows: Rows) -> None:
        """Record rows, and remember them."""
        writer.log("train", rows)
        for i, example in enumerate(rows["example"].tolist()):
            row = {
                name: array[:, i] if schema.PASS_ARRAYS[name].leading else array[i]
                for name, array in rows.items()
                if name != "example"
            }
            self._visits.setdefault((index, example), []).append((int(rows["step"][i]), row))
        if len(rows["example"]):
            self._passes.add(index)

    def take_back(self, start_step: int, sealed: set[int]) -> None:
        """Training begins again at a step. Of a sealed pass only the first visits can be told apart."""
        for key, visits in list(self._visits.items()):
            kept = [visit for visit in visits if visit[0] < start_step]
            if key[0] in sealed:
                self._still_counted[key] = self._still_counted.get(key, 0) + len(visits) - len(kept)
            self._visits[key] = kept
        self._visits = {key: visits for key, visits in self._visits.items() if visits}
        self._passes = {index for index, _ in self._visits}

    @property
    def n_passes(self) -> int:
        return max(self._passes, default=-1) + 1

    @property
    def n_examples(self) -> int:
        seen = (example + 1 for _, example in self._visits)
        return self._n_examples if self._n_examples is not None else max(seen, default=0)

    def last_step(self, index: int) -> int:
        return max((step for (i, _), visits in self._visits.items() if i == index for step, _ in visits), default=-1)

    def array(self, name: str) -> np.ndarray:
        """The whole array, built example by example."""
        spec = schema.PASS_ARRAYS[name]
        like = np.asarray(next(iter(self._visits.values()))[0][1].get(name, 0))
        n_leading = len(spec.leading)
        shape = (self.n_passes, *like.shape[:n_leading], self.n_examples, *like.shape[n_leading:])
        out = np.full(shape, spec.fill, spec.dtype)
        for (index, example), visits in self._visits.items():
            value = len(visits) if name == "visits" else visits[0][1][name]
            out[(index, *[slice(None)] * n_leading, example)] = value
        return out

    def ragged(self, name: str, index: int) -> list[list[float]]:
        """The rows of one pass of a ragged array."""
        found: list[list[float]] = [[] for _ in range(self.n_examples)]
        for (of_pass, example), visits in self._visits.items():
            if of_pass == index:
                found[example] = visits[0][1][name].tolist()
        return found

    def names(self, *, ragged: bool = False) -> list[str]:
        recorded = self._recorded()
        return [name for name, spec in schema.PASS_ARRAYS.items() if spec.is_ragged == ragged and name in recorded]

    def _recorded(self) -> set[str]:
        return {"visits"}.union(*(row for visits in self._visits.values() for _, row in visits))

    def check(self, split: Split) -> None:
        """The split holds exactly this."""
        assert len(split.passes) == len(self._passes)
        if not self._passes:
            return
        assert split.arrays == self.names()
        for name in self.names():
            array = split.array(name)
            expected = self.array(name)
            assert array.shape == expected.shape, name
            if name == "visits":
                for (index, example), slack in self._still_counted.items():
                    if index < len(expected) and expected[index, example]:
                        counted = array[index, example]
                        assert expected[index, example] <= counted <= expected[index, example] + slack
                        expected[index, example] = counted
            np.testing.assert_array_equal(array[:], expected, err_msg=name)
        assert split.ragged_arrays == self.names(ragged=True)
        for name in split.ragged_arrays:
            array = split.ragged(name)
            assert array.shape == (self.n_passes, self.n_examples)
            for index, rows in enumerate(array[:]):
                assert [row.tolist() for row in rows] == self.ragged(name, index), name
        for record in split.passes:
            counts = split.visits[record.index]
            assert record.n_seen == np.count_nonzero(counts)
            assert record.n_repeated == np.count_nonzero(counts > 1)
            assert record.n_never == record.n_examples - record.n_seen


def two_epochs(path: Path, *, seal: bool = False) -> tuple[RunWriter, Expected]:
    """Two epochs over ten examples, one never seen and one seen twice in the second; two segments in each."""
    writer, expected = new_run(path), Expected(10)
    for index, order in enumerate(([3, 1, 4, 0, 5, 9, 2, 6, 8, 7], [2, 7, 1, 8, 2, 5, 9, 0, 4, 3])):
        writer.begin_pass("train", index, {"epoch": index, "step": 2 * index})
        for half in range(2):
            expected.log(writer, index, rows_of(order[5 * half : 5 * half + 5], 2 * index + half))
            writer.flush()
        if seal:
            seal_pass(path, "train", index)
    return writer, expected
