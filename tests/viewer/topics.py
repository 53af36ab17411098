"""A run with probes, before the first step and after each epoch, of which it is known which labels are wrong."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from datasets import ClassLabel, Dataset, Features, Value
from numpy.typing import NDArray

from t3vis import RecorderCallback, Run
from t3vis.demo.train import train_demo

if TYPE_CHECKING:
    from tests.viewer.conftest import Served

N_SENTENCES, N_EPOCHS = 240, 3
TOPICS = {
    "weather": ["rain", "storm", "sunny", "cloud", "wind"],
    "food": ["bread", "soup", "cheese", "apple", "rice"],
    "music": ["piano", "song", "violin", "drum", "choir"],
}
COMMON = ["today", "we", "had", "the", "best", "and", "then", "some", "more", "again"]


@dataclass(frozen=True)
class Probed:
    """The run, its server, and the ids of the examples with a planted wrong label."""

    run: Run
    served: Served
    wrong: NDArray[np.int64]


def topics_run(folder: Path) -> None:
    """Train the demo's model with the recorder: ``topics.zarr``, and ``wrong.npy``, the wrong labels."""
    recorder = RecorderCallback(folder / "topics.zarr", probe="train")
    trained = train_demo(recorder, output_dir=folder / "model", dataset=sentences(N_SENTENCES), epochs=N_EPOCHS)
    np.save(folder / "wrong.npy", trained.wrong_label_ids)


def sentences(n: int) -> Dataset:
    """Sentences of which two words tell the topic."""
    rng = np.random.default_rng(0)
    names = list(TOPICS)
    labels = rng.integers(0, len(names), n)
    texts = [
        " ".join(rng.permutation([*rng.choice(TOPICS[names[label]], 2), *rng.choice(COMMON, 5)])) for label in labels
    ]
    features = Features({"text": Value("string"), "label": ClassLabel(names=names)})
    return Dataset.from_dict({"text": texts, "label": labels}, features=features)
