"""The live reader: reads all the time, through one ``Run`` that was opened once.

``python -m tests.store.stress.onlooker FOLDER PLAN``
"""

from __future__ import annotations

import json
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from t3vis.errors import StoreError
from t3vis.store import schema
from t3vis.store.reader import Split, open_run

from .folder import Checkpoint, Folder
from .plan import Ints, Plan, check_owners, origins, visit_steps


class Onlooker:
    """Reads one thing after another; anything wrong is an exception."""

    def __init__(self, folder: Folder, plan: Plan) -> None:
        self.folder, self.plan = folder, plan
        self.run = open_run(folder.run)
        self.counts: Counter[str] = Counter()
        self._random = np.random.default_rng(plan.seed)
        self._kept = KeptRows(folder, plan)
        self._owners = cache(lambda attempt: folder.owners(plan, attempt))

    def look(self) -> None:
        """Read something, and check it."""
        readings: list[Callable[[Split, int], None]] = [self.whole, self.part, self.trajectories, self.together]
        split = self.run.train if self._random.random() < 0.8 else self.run.splits.get("eval")
        if split is None or not split.arrays:
            return
        before = self.folder.latest()
        try:
            n_passes = len(split.array("loss"))
            if n_passes:
                reading = readings[self._random.integers(len(readings))]
                reading(split, int(self._random.integers(n_passes)))
                self.counts[reading.__name__] += 1
            if self._random.random() < 0.2:
                self.coverage(split)
        except (IndexError, StoreError) as error:  # a pass may be taken back as a whole, but by a resumption only
            if "holds no" not in str(error) and not isinstance(error, IndexError):
                raise
            if self._settled(before) is not None:
                raise
            self.counts["taken back"] += 1

    def whole(self, split: Split, index: int) -> None:
        before, n_announced = self.folder.latest(), len(self.folder.announced())
        name, layer = self._array()
        array = split.array(name)[index, layer] if name == "hidden_states" else split.array(name)[index]
        origin = self._check(split, name, index, np.arange(len(array)), array, layer, before)
        if split.name == "train":
            self._kept.check(index, n_announced, origin)

    def part(self, split: Split, index: int) -> None:
        before = self.folder.latest()
        name, layer = self._array()
        ids = self._ids(len(split))
        array = split.array(name)
        if name == "hidden_states":
            block = array[index, :, ids]
            parts = [self._check(split, name, index, ids, block[:, i], i, before) for i in range(self.plan.n_layers)]
            assert all(np.array_equal(part, parts[0]) for part in parts), "layers of one row come from different times"
        elif self._random.random() < 0.5:
            self._check(split, name, index, ids, array[index, ids], layer, before)
        else:
            start, stop = sorted(self._random.integers(0, len(split) + 1, 2).tolist())
            self._check(split, name, index, np.arange(start, stop), array[index, start:stop], layer, before)

    def trajectories(self, split: Split, index: int) -> None:
        before = self.folder.latest()
        ids = self._ids(len(split))[:20]
        for name in ("loss", "logits"):
            for number, rows in enumerate(split.array(name)[:, ids]):
                self._check(split, name, number, ids, rows, 0, before)
        example = split.example(int(ids[0]))
        for number, row in enumerate(example.logits):
            self._check(split, "logits", number, ids[:1], row[None], 0, before)
        for number, layers in enumerate(example.hidden_states):
            for layer, row in enumerate(layers):
                self._check(split, "hidden_states", number, ids[:1], row[None], layer, before)

    def together(self, split: Split, index: int) -> None:
        """In a pass that is sealed all of the time the arrays belong together."""
        before, stamp = self.folder.latest(), _commit(split, index)
        ids = self._ids(len(split))
        loss, logits = split.loss[index, ids], split.logits[index, ids]
        hidden, step = split.hidden_states[index][:, ids], split.step[index, ids]
        visits = split.visits[index, ids]
        first = self._check(split, "loss", index, ids, loss, 0, before)
        others = [self._check(split, "logits", index, ids, logits, 0, before)]
        others += [self._check(split, "hidden_states", index, ids, rows, i, before) for i, rows in enumerate(hidden)]
        if stamp is None or _commit(split, index) != stamp:
            return
        self.counts["sealed together"] += 1
        assert all(np.array_equal(first, other) for other in others), f"{split.name}, pass {index}: arrays disagree"
        assert np.array_equal(first >= 0, visits > 0), f"{split.name}, pass {index}: visits disagree"
        if split.name == "train":
            steps = visit_steps(self.plan, index)[np.maximum(first, 0) % 2, ids]
            assert np.array_equal(step, np.where(first < 0, -1, steps)), f"train, pass {index}: steps disagree"

    def coverage(self, split: Split) -> None:
        for record in split.passes:
            assert record.n_seen + record.n_never == record.n_examples == len(split), record
            self.counts["passes"] += 1

    def _array(self) -> tuple[str, int]:
        name = ("loss", "logits", "hidden_states")[self._random.integers(3)]
        return name, int(self._random.integers(self.plan.n_layers)) if name == "hidden_states" else 0

    def _ids(self, n_examples: int) -> Ints:
        return self._random.integers(0, n_examples, int(self._random.integers(1, 300)))

    def _check(
        self, split: Split, name: str, index: int, ids: Ints, rows: NDArray[Any], layer: int, before: tuple[int, bool]
    ) -> Ints:
        """Right rows of that pass, and of the right attempt as long as no other one is about to begin."""
        origin = origins(self.plan, name, (split.name, index), ids, rows, layer)
        self.counts["rows"] += len(rows)
        attempt = self._settled(before)
        if attempt is not None and split.name == "train":
            check_owners(self.plan, index, ids, origin, self._owners(attempt))
        elif split.name == "eval":
            assert len(set(origin[origin >= 0].tolist())) <= 1, f"evaluation {index} is of several attempts"
        return origin

    def _settled(self, before: tuple[int, bool]) -> int | None:
        """The attempt that has been training since ``before``; ``None`` if one was just starting."""
        return before[0] if before[1] and self.folder.latest() == before else None


class KeptRows:
    """Rows that were seen stay, at every moment, unless an attempt takes their step again."""

    def __init__(self, folder: Folder, plan: Plan) -> None:
        self.folder, self.plan = folder, plan
        self._seen: dict[int, tuple[int, Ints]] = {}  # by epoch: attempts announced by then, and origins that stay
        self._number = cache(lambda attempt: folder.opened(attempt).number)
        self._ids = np.arange(plan.n_examples)

    def check(self, epoch: int, n_before: int, origin: Ints) -> None:
        """Compare rows with those seen before; ``n_before`` attempts were announced before they were read."""
        announced = self.folder.announced()
        n_known, stay = self._seen.get(epoch, (0, np.full(len(origin), -1)))
        stay = self._not_taken_again(epoch, stay, announced, n_known)
        gone = (stay >= 0) & (origin < 0)
        assert not gone.any(), f"{gone.sum()} rows of epoch {epoch} are gone"
        found = self._not_taken_again(epoch, origin, announced, n_before - 1)  # that one may be about to open the run
        self._seen[epoch] = len(announced), np.where(origin >= 0, found, stay)

    def _not_taken_again(self, epoch: int, origin: Ints, announced: list[Checkpoint], first: int) -> Ints:
        """Origins of the rows that every attempt announced from number ``first`` on keeps, or has recorded itself."""
        attempts = np.unique(origin[origin >= 0] // 2)
        for number, checkpoint in enumerate(announced[first:], first):
            earlier = np.isin(origin // 2, [attempt for attempt in attempts if self._number(attempt) < number])
            steps = visit_steps(self.plan, epoch)[origin % 2, self._ids]
            kept = self.folder.owners_from(self.plan, checkpoint, -1)[steps] == origin // 2
            origin = np.where(earlier & ~kept, -1, origin)
        return origin


def _commit(split: Split, index: int) -> tuple[int, int] | None:
    with suppress(FileNotFoundError):
        found = Path(f"{split.path}/commits/{schema.pass_name(index)}/zarr.json").stat()
        return found.st_ino, found.st_mtime_ns
    return None


def main(path: str, plan_json: str) -> None:
    """Read until told to stop; leaves what was read, or what was wrong, in the folder."""
    folder, plan = Folder(Path(path)), Plan(**json.loads(plan_json))
    while not (folder.run / "train" / "zarr.json").exists() and not (folder.path / "stop").exists():
        time.sleep(0.01)
    onlooker, failure = Onlooker(folder, plan), None
    try:
        while not (folder.path / "stop").exists():
            onlooker.look()
    except Exception:  # noqa: BLE001  told to the parent, whatever it is
        failure = traceback.format_exc()
    folder.write("reader", {"failure": failure, "counts": onlooker.counts})


if __name__ == "__main__":
    main(*sys.argv[1:])
