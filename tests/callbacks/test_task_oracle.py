"""The oracle for every task: each recorded value equals that of a fresh forward pass on its example alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageClassification,
    AutoModelForMaskedLM,
    AutoModelForMultipleChoice,
    AutoModelForQuestionAnswering,
    AutoModelForSeq2SeqLM,
    AutoModelForTokenClassification,
)

from t3vis import RecorderCallback, Run
from t3vis.store.reader import Split
from tests.callbacks.tiny import (
    LEARNING,
    N_CLASSES,
    OwnModel,
    Rows,
    as_dataset,
    pad,
    recorded,
    refusal,
    tiny_model,
    tiny_rows,
    tiny_trainer,
)

N_EXAMPLES = 13
CLOSE: dict[str, Any] = {"rtol": 2e-4, "atol": 2e-5}


def plain(rows: Rows) -> Rows:
    return [{name: row[name] for name in ("input_ids", "attention_mask")} for row in rows]


def pad_with_labels(rows: Rows) -> dict[str, Tensor]:
    """Collate examples whose labels are lists."""
    labels = [torch.tensor(row["labels"]) for row in rows]
    padded = torch.nn.utils.rnn.pad_sequence(labels, batch_first=True, padding_value=-100)
    return {**pad(plain(rows)), "labels": padded}


def run_of(tmp_path: Path, model: Any, rows: Rows, collate: Callable[[Rows], Any], **settings: Any) -> Run:
    """Two epochs, and an evaluation after each."""
    options = {"data_collator": collate}
    data = {"train": as_dataset(rows), "eval_dataset": as_dataset(rows), "eval_strategy": "epoch"}
    return recorded(tmp_path, model=model, options=options, **data, **settings)


def splits(run: Run) -> list[Split]:
    return [run.train, run.evals["eval"]]


@torch.no_grad()
def outputs_of(model: nn.Module, batch: dict[str, Tensor]) -> Any:
    model.eval()
    return model(**batch, output_hidden_states=True)


def check_states(split: Split, i: int, states: Any, name: str = "hidden_states") -> None:
    own = torch.stack(tuple(states))[:, 0].mean(1)
    assert split.array(name).shape[1] == len(own)
    for index in range(2):
        np.testing.assert_allclose(split.array(name)[index, :, i], own, rtol=2e-3, atol=2e-3)


# Tasks of tokens


def labelled(rows: Rows, seed: int, n_classes: int) -> Rows:
    """A random class for each token but the first, and but for about a third of the others; one example has none."""
    rng = np.random.default_rng(seed)
    for row in rows:
        labels = rng.integers(0, n_classes, len(row["input_ids"]))
        labels[rng.random(len(labels)) < 0.3] = -100
        row["labels"] = [-100, *labels[1:].tolist()]
    rows[3]["labels"] = [-100] * len(rows[3]["labels"])
    return rows


def with_source(row: dict[str, Any]) -> dict[str, Any]:
    return {**row, "labels": row["labels"][::-1][:5]}


TOKENS: dict[str, tuple[str, str, Any, str]] = {
    "token classification": ("token_classification", "bert", AutoModelForTokenClassification, "encoder"),
    "masked language model": ("masked_lm", "bert", AutoModelForMaskedLM, "encoder"),
    "causal language model": ("causal_lm", "llama", AutoModelForCausalLM, "decoder"),
    "causal language model, GPT-2": ("causal_lm", "gpt2", AutoModelForCausalLM, "decoder"),
    "sequence to sequence": ("seq2seq_lm", "bart", AutoModelForSeq2SeqLM, "both"),
}


def expected_tokens(logits: Tensor, labels: list[int], *, shifted: bool) -> dict[str, NDArray[Any]]:
    """What is to be recorded of the tokens of one example, from its logits (n_tokens, n_classes)."""
    at = [t for t, label in enumerate(labels) if label >= 0 and not (shifted and t == 0)]
    gold = torch.tensor([labels[t] for t in at], dtype=torch.int64)
    scores = logits.double()[[t - 1 for t in at] if shifted else at]
    log_probs = scores.log_softmax(1)
    return {
        "position": np.array(at),
        "label": gold.numpy(),
        "prediction": scores.argmax(1).numpy(),
        "logprob": log_probs.gather(1, gold[:, None])[:, 0].numpy(),
        "entropy": torch.special.entr(log_probs.exp()).sum(1).numpy(),
        "rank": (log_probs > log_probs.gather(1, gold[:, None])).sum(1).numpy(),
    }


@pytest.mark.parametrize("name", TOKENS)
def test_tasks_of_tokens(name: str, tmp_path: Path) -> None:
    task, kind, auto, stack = TOKENS[name]
    model = tiny_model(kind, auto=auto)
    rows = labelled(tiny_rows(N_EXAMPLES), 5, N_CLASSES if task == "token_classification" else 60)
    if stack == "both":
        rows = [with_source(row) for row in rows]
    run = run_of(tmp_path, model, rows, pad_with_labels)
    parts = ["position", "label", "prediction", "logprob"]
    parts += [] if task == "token_classification" else ["entropy", "rank"]
    for split in splits(run):
        assert split.attributes["task"] == task
        assert "logits" not in split.arrays
        assert split.ragged_arrays == [f"token_{part}" for part in parts]
        for i, row in enumerate(rows):
            outputs = outputs_of(model, pad_with_labels([row]))
            expected = expected_tokens(outputs.logits[0], row["labels"], shifted=task == "causal_lm")
            for part in parts:
                for index in range(2):
                    found = split.ragged(f"token_{part}")[index, i]
                    np.testing.assert_allclose(found, expected[part], err_msg=f"{part} of {i}", **CLOSE)
            np.testing.assert_allclose(split.loss[:, i], [outputs.loss] * 2, **CLOSE)
            right = expected["prediction"] == expected["label"]
            fraction = right.mean() if len(right) else np.nan
            np.testing.assert_allclose(split.array("token_accuracy")[:, i], [fraction] * 2, rtol=1e-6)
            assert split.array("n_tokens")[:, i].tolist() == [len(right)] * 2
            check_states(split, i, outputs.get("hidden_states") or outputs.encoder_hidden_states)


def test_encoder_and_decoder_states_stand_apart(tmp_path: Path) -> None:
    """The decoder has fewer layers than the encoder; of its tokens those count that predict a label."""
    model = tiny_model("bart", auto=AutoModelForSeq2SeqLM)
    rows = [{**row, "labels": row["input_ids"][::-1][:6]} for row in tiny_rows(N_EXAMPLES)]
    run = run_of(tmp_path, model, rows, pad_with_labels)
    for split in splits(run):
        assert split.layers == [0, 1, 2]
        assert split.array("decoder_hidden_states").attributes["layers"] == [0, 1]
        for i, row in enumerate(rows):
            outputs = outputs_of(model, pad_with_labels([row]))
            check_states(split, i, outputs.encoder_hidden_states)
            check_states(split, i, outputs.decoder_hidden_states, "decoder_hidden_states")


@pytest.mark.parametrize(("chosen", "layers"), [("last", [1]), ([0, 2], [0]), ([2], None)])
def test_layers_that_the_decoder_has(chosen: Any, layers: list[int] | None, tmp_path: Path) -> None:
    rows = [{**row, "labels": row["input_ids"]} for row in tiny_rows(5)]
    model = tiny_model("bart", auto=AutoModelForSeq2SeqLM)
    run = run_of(tmp_path, model, rows, pad_with_labels, recorder={"hidden_states": chosen})
    assert run.train.attributes["arrays"].get("decoder_hidden_states", {}).get("layers") == layers


# Choices and answers


def test_multiple_choice(tmp_path: Path) -> None:
    model = tiny_model(auto=AutoModelForMultipleChoice)
    answers, n_choices = tiny_rows(3 * N_EXAMPLES), 3
    rows = [
        {
            "input_ids": [row["input_ids"] for row in answers[i : i + n_choices]],
            "attention_mask": [row["attention_mask"] for row in answers[i : i + n_choices]],
            "labels": i // 2 % n_choices,
        }
        for i in range(0, len(answers), n_choices)
    ]

    def collate(rows: Rows) -> dict[str, Tensor]:
        flat = [
            {"input_ids": ids, "attention_mask": mask}
            for row in rows
            for ids, mask in zip(row["input_ids"], row["attention_mask"], strict=True)
        ]
        batch = {name: values.unflatten(0, (len(rows), n_choices)) for name, values in pad(flat).items()}
        return {**batch, "labels": torch.tensor([row["labels"] for row in rows])}

    run = run_of(tmp_path, model, rows, collate)
    for split in splits(run):
        assert split.attributes["task"] == "multiple_choice"
        assert split.labels.tolist() == [row["labels"] for row in rows]
        for i, row in enumerate(rows):
            outputs = outputs_of(model, collate([row]))
            np.testing.assert_allclose(split.logits[:, i], outputs.logits.expand(2, -1), **CLOSE)
            np.testing.assert_allclose(split.loss[:, i], [outputs.loss] * 2, **CLOSE)
            assert split.length[i] == sum(map(sum, row["attention_mask"]))
            mask = torch.nn.utils.rnn.pad_sequence([torch.tensor(m) for m in row["attention_mask"]], batch_first=True)
            means = [(state * mask[..., None]).sum(1) / mask.sum(1, keepdim=True) for state in outputs.hidden_states]
            own = torch.stack(means).mean(1)
            np.testing.assert_allclose(split.hidden_states[1, :, i], own, rtol=2e-3, atol=2e-3)


def test_question_answering(tmp_path: Path) -> None:
    model = tiny_model(auto=AutoModelForQuestionAnswering, num_labels=2)
    rng = np.random.default_rng(2)
    rows = plain(tiny_rows(N_EXAMPLES))
    for row in rows:
        span = sorted(rng.integers(0, len(row["input_ids"]), 2).tolist())
        row["start_positions"], row["end_positions"] = span
    rows[4]["start_positions"] = rows[4]["end_positions"] = 99  # cut off: no answer is left

    def collate(rows: Rows) -> dict[str, Tensor]:
        spans = {name: torch.tensor([row[name] for row in rows]) for name in ("start_positions", "end_positions")}
        return {**pad(plain(rows)), **spans}

    run = run_of(tmp_path, model, rows, collate)
    for split in splits(run):
        assert split.attributes["task"] == "question_answering"
        assert (split.labels == -1).all()
        for i, row in enumerate(rows):
            outputs = outputs_of(model, collate([row]))
            gold = [row["start_positions"], row["end_positions"]]
            start, end = outputs.start_logits[0], outputs.end_logits[0]
            n_tokens = len(start)
            sums = {(s, e): float(start[s] + end[e]) for s in range(n_tokens) for e in range(s, n_tokens)}
            assert tuple(split.array("span_prediction")[1, i]) == max(sums, key=lambda span: sums[span])
            if i == 4:
                assert np.isnan(split.loss[1, i])
                assert split.array("span_label")[1, i].tolist() == [-1, -1]
                continue
            assert split.array("span_label")[1, i].tolist() == gold
            own = [start.log_softmax(0)[gold[0]], end.log_softmax(0)[gold[1]]]
            np.testing.assert_allclose(split.array("span_logprob")[:, i], [own] * 2, **CLOSE)
            np.testing.assert_allclose(split.loss[:, i], [outputs.loss] * 2, **CLOSE)
            check_states(split, i, outputs.hidden_states)


# Images


def test_image_classification(tmp_path: Path) -> None:
    """Patches in place of tokens, and no mask: all of them are pooled."""
    model = tiny_image_model()
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randn(N_EXAMPLES, 3, 8, 8, generator=generator)
    rows = [{"pixel_values": image.tolist(), "labels": i % N_CLASSES} for i, image in enumerate(pixels)]

    def collate(rows: Rows) -> dict[str, Tensor]:
        images = torch.tensor([row["pixel_values"] for row in rows])
        return {"pixel_values": images, "labels": torch.tensor([row["labels"] for row in rows])}

    run = run_of(tmp_path, model, rows, collate)
    for split in splits(run):
        assert split.attributes["task"] == "single_label"
        for i, row in enumerate(rows):
            outputs = outputs_of(model, collate([row]))
            np.testing.assert_allclose(split.logits[:, i], outputs.logits.expand(2, -1), **CLOSE)
            np.testing.assert_allclose(split.loss[:, i], [outputs.loss] * 2, **CLOSE)
            check_states(split, i, outputs.hidden_states)


def tiny_image_model() -> Any:
    return tiny_model("vit", auto=AutoModelForImageClassification, image_size=8, patch_size=4)


# Named by the user


class Tagger(nn.Module):
    """A module of ones own that scores each token, among as many words as it knows."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.head = nn.Embedding(60, 8), nn.Linear(8, 60)

    def forward(self, input_ids: Tensor, attention_mask: Tensor, labels: Tensor) -> dict[str, Tensor]:
        logits = self.head(self.embed(input_ids))
        loss = nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten())
        return {"loss": loss, "logits": logits}


@pytest.mark.parametrize(("task", "shifted"), [(None, False), ("masked_lm", False), ("causal_lm", True)])
def test_a_module_of_ones_own_may_be_told_its_task(task: Any, shifted: bool, tmp_path: Path) -> None:
    model, rows = Tagger(), labelled(tiny_rows(N_EXAMPLES), 7, 60)
    run = run_of(tmp_path, model, rows, pad_with_labels, recorder={"task": task})
    assert run.train.attributes["task"] == (task or "token_classification")
    assert ("token_entropy" in run.train.ragged_arrays) == (task is not None)
    for i, row in enumerate(rows):
        with torch.no_grad():
            logits = model(**pad_with_labels([row]))["logits"][0]
        expected = expected_tokens(logits, row["labels"], shifted=shifted)
        np.testing.assert_allclose(run.train.ragged("token_logprob")[1, i], expected["logprob"], **CLOSE)


def test_a_task_that_the_outputs_are_not_of_is_refused(tmp_path: Path) -> None:
    recorder = RecorderCallback(tmp_path / "run.zarr", task="token_classification")
    message = refusal(tiny_trainer(tmp_path / "out", recorder, model=OwnModel(), **LEARNING))
    assert "the task is token_classification, but the model returned logits of shape (4, 3)" in message


# With head gradients


def test_heads_of_several_choices_and_of_answers(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Gradients of choices are summed over the choices; those of answers are not known, and a warning says so."""
    rows = [
        {"input_ids": [[5, 6, 7], [8, 9, i + 9]], "attention_mask": [[1, 1, 1]] * 2, "labels": i % 2} for i in range(5)
    ]

    def collate(rows: Rows) -> dict[str, Tensor]:
        return {name: torch.tensor([row[name] for row in rows]) for name in rows[0]}

    model = tiny_model(auto=AutoModelForMultipleChoice)
    run = recorded(
        tmp_path, model=model, train=as_dataset(rows), options={"data_collator": collate}, recorder={"heads": True}
    )
    assert run.train.head_gradients.shape == (2, 2, 5, 2)
    assert np.isfinite(run.train.head_gradients[:]).all()
    answers = [
        {"input_ids": [5, 6, i + 7], "attention_mask": [1] * 3, "start_positions": 1, "end_positions": 2}
        for i in range(5)
    ]
    model = tiny_model(auto=AutoModelForQuestionAnswering, num_labels=2)
    run = recorded(
        tmp_path / "answers",
        model=model,
        train=as_dataset(answers),
        options={"data_collator": collate},
        recorder={"heads": True},
    )
    assert "head_gradients" not in run.train.arrays
    assert "not recorded of train: head gradients" in caplog.text
