"""The demo training, with a real Trainer and a real callback."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import ClassLabel, Dataset, Features, Value
from transformers import AutoModelForSequenceClassification, AutoTokenizer, TrainerCallback, TrainerState

from t3vis.demo.train import TrainedDemo, train_demo
from t3vis.errors import ConfigurationError

WORDS = ("matrix", "graph", "token")


class StepCounter(TrainerCallback):
    def __init__(self) -> None:
        self.n_steps = 0
        self.n_epochs = 0
        self.batch_columns: set[str] = set()

    def on_train_begin(self, *_: Any, train_dataloader: Any, **__: Any) -> None:
        self.batch_columns = set(next(iter(train_dataloader)))

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.n_steps += 1

    def on_epoch_end(self, _args: Any, state: TrainerState, *_: Any, **__: Any) -> None:
        self.n_epochs += 1


def small_dataset(n_examples: int = 60) -> Dataset:
    rng = np.random.default_rng(0)
    labels = [i % len(WORDS) for i in range(n_examples)]
    texts = [f"the {WORDS[label]} of {' '.join(rng.choice(WORDS, size=label + 1))}" for label in labels]
    return Dataset.from_dict(
        {"text": texts, "label": labels},
        features=Features({"text": Value("string"), "label": ClassLabel(names=list(WORDS))}),
    )


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[TrainedDemo, StepCounter, Path]:
    counter, output_dir = StepCounter(), tmp_path_factory.mktemp("demo")
    demo = train_demo(
        counter, output_dir=output_dir, dataset=small_dataset(), wrong_labels=0.1, epochs=1, batch_size=8, max_length=16
    )
    return demo, counter, output_dir


def test_the_callback_sees_every_step(trained: tuple[TrainedDemo, StepCounter, Path]) -> None:
    _, counter, _ = trained
    assert counter.n_steps == 7  # 54 training examples in batches of 8
    assert counter.n_epochs == 1
    assert counter.batch_columns == {"input_ids", "token_type_ids", "attention_mask", "labels"}


def test_only_training_labels_are_wrong(trained: tuple[TrainedDemo, StepCounter, Path]) -> None:
    demo, _, _ = trained
    clean = dict(zip(small_dataset()["text"], small_dataset()["label"], strict=True))
    differs = [clean[row["text"]] != row["label"] for row in demo.train_dataset]
    assert np.flatnonzero(differs).tolist() == demo.wrong_label_ids.tolist()
    assert len(demo.wrong_label_ids) == round(0.1 * 54)
    assert len(demo.eval_dataset) == 6
    assert all(clean[row["text"]] == row["label"] for row in demo.eval_dataset)


def test_the_reported_accuracy_is_that_of_the_saved_model(
    trained: tuple[TrainedDemo, StepCounter, Path],
) -> None:
    demo, _, output_dir = trained
    model = AutoModelForSequenceClassification.from_pretrained(output_dir).eval()
    tokenizer = AutoTokenizer.from_pretrained(output_dir)
    batch = tokenizer(demo.eval_dataset["text"][:], padding=True, return_tensors="pt")
    predicted = model(**batch).logits.argmax(-1).numpy()
    assert demo.eval_accuracy == pytest.approx((predicted == np.array(demo.eval_dataset["label"])).mean())
    assert demo.class_names == WORDS
    assert model.config.id2label == dict(enumerate(WORDS))


def test_a_saved_model_can_be_trained_on(
    trained: tuple[TrainedDemo, StepCounter, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    counter = StepCounter()
    train_demo(
        counter,
        output_dir=tmp_path,
        dataset=small_dataset(20),
        model=str(trained[2]),
        epochs=2,
        batch_size=9,
        max_length=16,
    )
    assert counter.n_steps == 4
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.count("\n") == 1  # one progress bar


def test_the_seed_decides_everything(tmp_path: Path) -> None:
    weights, wrong_label_ids = [], []
    for run in range(2):
        demo = train_demo(
            StepCounter(), output_dir=tmp_path / str(run), dataset=small_dataset(30), epochs=1, max_length=16, seed=3
        )
        model = AutoModelForSequenceClassification.from_pretrained(tmp_path / str(run))
        weights.append(np.concatenate([p.detach().numpy().ravel() for p in model.parameters()]))
        wrong_label_ids.append(demo.wrong_label_ids)
    np.testing.assert_array_equal(*weights)
    np.testing.assert_array_equal(*wrong_label_ids)


def test_a_dataset_without_its_columns_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="needs a column 'text'"):
        train_demo(StepCounter(), output_dir=tmp_path, dataset=small_dataset().rename_column("text", "sentence"))
    with pytest.raises(ConfigurationError, match="4 examples are too few"):
        train_demo(StepCounter(), output_dir=tmp_path, dataset=small_dataset(4))
