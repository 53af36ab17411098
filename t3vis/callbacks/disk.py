"""How much disk a recording will need, told before the first step; refused if there is not that much."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm
from transformers import Trainer
from transformers.trainer_utils import IntervalStrategy

from t3vis.callbacks.splits import size_of
from t3vis.errors import ConfigurationError
from t3vis.store.schema import THINNED

_N_OPEN = 2  # passes that are in segments too: the one that is recorded and the one that was sealed last


@dataclass(frozen=True)
class Need:
    """Bytes that the passes of one split need: when all are sealed, and at most on the way."""

    final: int
    peak: int

    def __add__(self, other: Need) -> Need:
        return Need(self.final + other.final, self.peak + other.peak)


def need(light: float, heavy: float, n_passes: int, keep_epochs: int | None) -> Need:
    """What passes need.

    Parameters
    ----------
    light, heavy
        Bytes of one pass: of what is kept of every pass, and of what ``keep_epochs`` restricts to the last ones.

    Examples
    --------
    >>> need(10, 100, n_passes=3, keep_epochs=None), need(10, 100, n_passes=3, keep_epochs=1)
    (Need(final=330, peak=550), Need(final=130, peak=450))
    """
    n_kept = n_passes if keep_epochs is None else min(keep_epochs, n_passes)
    n_open = min(_N_OPEN, n_passes)
    n_before_thinning = min(n_kept + 1, n_passes)
    final = n_passes * light + n_kept * heavy
    return Need(int(final), int(n_passes * light + n_before_thinning * heavy + n_open * (light + heavy)))


def check_room(
    path: Path,
    trainer: Trainer,
    rows: Mapping[str, Any],
    n_examples: int | None,
    keep_epochs: int | None,
    *,
    to_come: Sequence[tuple[int, int]] = (),
    say: bool,
) -> None:
    """Say what a training will need, judged by its first rows, and refuse where the disk has less.

    Parameters
    ----------
    rows
        Rows of one micro-batch, as they are recorded.
    n_examples
        Examples of the training set, ``None`` where their number is not known.
    to_come
        Examples and number of other passes, beside those of the training and of its evaluations.
    say
        Whether to print it, on standard error.

    Raises
    ------
    ConfigurationError
        If it does not fit.
    """
    n_rows = max(len(rows["example"]), 1)
    heavy = sum(_n_bytes(column) for name, column in rows.items() if name in THINNED) / n_rows
    light = sum(_n_bytes(column) for name, column in rows.items() if name not in THINNED) / n_rows
    args, state = trainer.args, trainer.state
    n_epochs = max(state.num_train_epochs - int(state.epoch or 0), 1)
    if n_examples is None:  # how many there are to an epoch, nobody knows; so all that will be seen count as one
        per_step = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
        n_examples, n_epochs = (state.max_steps - state.global_step) * per_step, 1
    total = need(n_examples * light, n_examples * heavy, n_epochs, keep_epochs)
    for size, n_passes in (*_evaluations(trainer, n_epochs), *to_come):
        total += need(size * light, size * heavy, n_passes, keep_epochs)
    free = shutil.disk_usage(path).free
    if say:
        epochs = f"{n_epochs} epoch{'s' if n_epochs > 1 else ''}"
        tqdm.write(
            f"t3vis: {path} will take about {_text(total.final)} ({epochs} of {n_examples:,} examples at "
            f"{_text(light + heavy)} each); {_text(free)} are free",
            file=sys.stderr,
        )
    if total.peak > free:
        raise ConfigurationError(
            f"recording will need about {_text(total.peak)} on the disk of {path}, which has {_text(free)} free; "
            "record fewer hidden_states, keep those of the last epoch only (keep_epochs=1), or choose another disk."
        )


def _evaluations(trainer: Trainer, n_epochs: int) -> list[tuple[int, int]]:
    """Examples of each evaluation set whose number is known, and how often it will be evaluated."""
    args, state = trainer.args, trainer.state
    if args.eval_strategy == IntervalStrategy.NO:
        return []
    n_passes = n_epochs
    if args.eval_strategy == IntervalStrategy.STEPS:
        n_passes = (state.max_steps - state.global_step) // max(state.eval_steps or 1, 1)
    sets = trainer.eval_dataset if isinstance(trainer.eval_dataset, dict) else {"": trainer.eval_dataset}
    return [(size_of(dataset) or 0, n_passes) for dataset in sets.values()]


def _n_bytes(column: Any) -> int:
    return int(column.values.nbytes + column.offsets.nbytes if hasattr(column, "offsets") else column.nbytes)


def _text(n_bytes: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if n_bytes < 1000:
            return f"{n_bytes:.3g} {unit}"
        n_bytes /= 1000
    return f"{n_bytes:.3g} TB"
