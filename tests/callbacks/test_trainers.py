"""Trainers other than ``Trainer``: what they return is recorded as far as it goes, or they are refused by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    DataCollatorWithFlattening,
    PreTrainedTokenizerFast,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
)
from trl import DPOConfig, DPOTrainer, GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer, SFTConfig, SFTTrainer

from t3vis import RecorderCallback, Run, open_run
from tests.callbacks.tiny import (
    LEARNING,
    Rows,
    as_dataset,
    pad,
    recorded,
    refusal,
    tiny_arguments,
    tiny_model,
    tiny_rows,
    tiny_trainer,
)

# trl and peft still use names that transformers has renamed
pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.* is deprecated:FutureWarning")


@pytest.fixture(autouse=True)
def no_telemetry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CI", "1")  # trl counts its users, elsewhere


def language_model(seed: int = 0) -> Any:
    return tiny_model("llama", auto=AutoModelForCausalLM, seed=seed, attn_implementation="eager")


def check_language(run: Run, split: Any, model: Any, rows: Rows, *, n_passes: int = 2) -> None:
    """Every loss and every pooled state equals a fresh pass on the example alone."""
    assert [p.n_seen for p in split.passes] == [len(rows)] * n_passes
    assert run.missing_rows == 0
    model.eval()
    for i, row in enumerate(rows):
        inputs = {key: torch.tensor([row[key]]) for key in ("input_ids", "labels")}
        with torch.no_grad():
            outputs = model(**inputs, output_hidden_states=True)
        states = outputs.get("hidden_states") or outputs["encoder_hidden_states"]
        shift = 0 if model.config.is_encoder_decoder else 1
        at = [t for t, label in enumerate(row["labels"]) if label >= 0 and t >= shift]
        gold = torch.tensor([row["labels"][t] for t in at])
        log_probs = outputs.logits[0].log_softmax(-1)[[t - shift for t in at], gold]
        for index in range(n_passes):
            np.testing.assert_allclose(split.loss[index, i], outputs.loss, rtol=1e-4, atol=1e-5)
            np.testing.assert_allclose(split.ragged("token_logprob")[index, i], log_probs, rtol=1e-3, atol=1e-5)
            assert split.ragged("token_position")[index, i].tolist() == at
            assert split.ragged("token_label")[index, i].tolist() == gold.tolist()
            own = torch.stack(states)[:, 0].mean(1).detach()
            np.testing.assert_allclose(split.hidden_states[index, :, i], own, rtol=2e-3, atol=2e-3)
            assert split.length[i] == len(row["input_ids"])


def with_token_labels(rows: Rows) -> Rows:
    return [{**row, "labels": [-100, *row["input_ids"][1:]]} for row in rows]


# Sequence to sequence


def pad_targets(rows: Rows) -> dict[str, Tensor]:
    labels = [torch.tensor(row["labels"]) for row in rows]
    batch = pad([{key: row[key] for key in ("input_ids", "attention_mask")} for row in rows])
    return {**batch, "labels": torch.nn.utils.rnn.pad_sequence(labels, batch_first=True, padding_value=-100)}


def translations(n_examples: int, seed: int) -> Rows:
    return [{**row, "labels": row["input_ids"][::-1]} for row in tiny_rows(n_examples, seed=seed)]


def seq2seq(tmp_path: Path, model: Any, *, generates: bool, **settings: Any) -> Seq2SeqTrainer:
    arguments = tiny_arguments(
        tmp_path / "out", Seq2SeqTrainingArguments, predict_with_generate=generates, generation_max_length=6, **settings
    )
    return Seq2SeqTrainer(
        model=model,
        args=arguments,
        train_dataset=as_dataset(translations(21, seed=0)),
        eval_dataset=as_dataset(translations(9, seed=1)),
        data_collator=pad_targets,
        callbacks=[RecorderCallback(tmp_path / "run.zarr")],
    )


@pytest.mark.parametrize("generates", [False, True])
def test_seq2seq_trainer(generates: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = tiny_model("bart", auto=AutoModelForSeq2SeqLM)
    seq2seq(tmp_path, model, generates=generates, eval_strategy="epoch").train()
    run = open_run(tmp_path / "run.zarr")
    check_language(run, run.train, model, translations(21, seed=0))
    check_language(run, run.evals["eval"], model, translations(9, seed=1))
    assert "logits" not in run.train.arrays
    assert caplog.text.count("not recorded of train: logits of shape (4, ") == 1


def test_generation_alone_is_no_pass(tmp_path: Path) -> None:
    """Without labels there is no forward pass of the examples, only steps of a generation."""
    trainer = seq2seq(tmp_path, tiny_model("bart", auto=AutoModelForSeq2SeqLM), generates=True)
    unlabelled = as_dataset([{key: row[key] for key in ("input_ids", "attention_mask")} for row in tiny_rows(5)])
    trainer.data_collator = pad
    assert "give it labels, or predict_with_generate=False" in refusal(trainer, lambda it: it.predict(unlabelled))


# Fused heads, and batches without padding


def sft(tmp_path: Path, tokenizer: Any, model: Any, *, rows: Rows, options: Any = None, **settings: Any) -> SFTTrainer:
    kept = [{key: row[key] for key in ("input_ids", "labels")} for row in rows]
    defaults: dict[str, Any] = {"bf16": False, "gradient_checkpointing": False, "max_length": None}
    return SFTTrainer(
        model=model,
        args=tiny_arguments(tmp_path / "out", SFTConfig, **{**defaults, **settings}),
        train_dataset=as_dataset(kept),
        eval_dataset=as_dataset(kept[:9]),
        processing_class=tokenizer,
        callbacks=[RecorderCallback(tmp_path / "run.zarr")],
        **(options or {}),
    )


SFT: dict[str, dict[str, Any]] = {
    "fused head": {},
    "padding_free": {"padding_free": True},
    "label smoothing": {"label_smoothing_factor": 0.1},
    "activation checkpointing": {"gradient_checkpointing": True},
    "PEFT LoRA": {"options": {"peft_config": LoraConfig(task_type="CAUSAL_LM", r=4)}},
}


@pytest.mark.filterwarnings("ignore:`label_smoothing_factor` is deprecated:FutureWarning")
@pytest.mark.parametrize("name", SFT)
def test_sft_trainer(name: str, tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    rows, model = with_token_labels(tiny_rows(21)), language_model()
    sft(tmp_path, tokenizer, model, rows=rows, eval_strategy="epoch", **SFT[name]).train()
    run = open_run(tmp_path / "run.zarr")
    assert run.train.arrays[:2] == ["loss", "n_tokens"]
    check_language(run, run.train, model, rows)
    check_language(run, run.evals["eval"], model, rows[:9])
    assert run.train.attributes["task"] == "causal_lm"


def test_packing_is_refused_by_name(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    settings = {"packing": True, "max_length": 24, **LEARNING}
    trainer = sft(tmp_path, tokenizer, language_model(), rows=with_token_labels(tiny_rows(21)), **settings)
    message = refusal(trainer)
    assert "packing=True cannot be recorded" in message
    assert "padding_free=True" in message
    assert not (tmp_path / "run.zarr").exists()


def test_a_collator_that_flattens(tmp_path: Path) -> None:
    rows, model = with_token_labels(tiny_rows()), language_model()
    kept = as_dataset([{key: row[key] for key in ("input_ids", "labels")} for row in rows])
    run = recorded(tmp_path, model=model, train=kept, options={"data_collator": DataCollatorWithFlattening()})
    check_language(run, run.train, model, rows)


def packed(rows: Rows) -> dict[str, Tensor]:
    """Collate: two sequences out of each example, all in one row."""
    ids = [torch.tensor(row["input_ids"]) for row in rows]
    positions = [torch.arange(len(half)) for row in ids for half in row.tensor_split(2)]
    return {
        "input_ids": torch.cat(ids)[None],
        "labels": torch.cat(ids)[None],
        "position_ids": torch.cat(positions)[None],
    }


def test_packed_examples_are_refused(tmp_path: Path) -> None:
    recorder, options = RecorderCallback(tmp_path / "run.zarr"), {"data_collator": packed}
    trainer = tiny_trainer(tmp_path / "out", recorder, model=language_model(), options=options, **LEARNING)
    assert "a row without padding holds 8 sequences for 4 examples" in refusal(trainer)


# Preferences


def preferences() -> Rows:
    rng = np.random.default_rng(0)

    def words(n: int) -> str:
        return " ".join(f"w{i}" for i in rng.integers(3, 60, n))

    n_tokens = rng.integers(1, 6, (21, 3))
    return [{"prompt": words(p), "chosen": f" {words(c)}", "rejected": f" {words(r)}"} for p, c, r in n_tokens]


def test_dpo_trainer(tokenizer: PreTrainedTokenizerFast, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The log-probabilities of both completions, and the states of the chosen one."""
    model = language_model()
    settings: dict[str, Any] = {"bf16": False, "gradient_checkpointing": False, "max_length": None}
    settings["eval_strategy"] = "epoch"
    trainer = DPOTrainer(
        model=model,
        ref_model=language_model(seed=9),
        args=tiny_arguments(tmp_path / "out", DPOConfig, **settings),
        train_dataset=as_dataset(preferences()),
        eval_dataset=as_dataset(preferences()[:9]),
        processing_class=tokenizer,
        callbacks=[RecorderCallback(tmp_path / "run.zarr")],
    )
    trainer.train()
    run = open_run(tmp_path / "run.zarr")
    train, held_out = run.train, run.evals["eval"]
    np.testing.assert_allclose(held_out.logits[:], train.logits[:, :9], rtol=1e-4)
    np.testing.assert_allclose(held_out.hidden_states[:], train.hidden_states[:, :, :9], rtol=2e-3, atol=2e-3)
    assert train.arrays == ["logits", "hidden_states", "step", "visits", "length"]
    assert train.class_names == ["chosen", "rejected"]
    assert train.attributes["task"] == "preference"
    assert caplog.text.count("not recorded of train: the loss, which compares with another model.") == 1
    model.eval()
    for i, row in enumerate(trainer.train_dataset):
        for side, name in enumerate(("chosen_ids", "rejected_ids")):
            ids = torch.tensor([row["prompt_ids"] + row[name]])
            with torch.no_grad():
                outputs = model(ids, output_hidden_states=True)
            log_probs = outputs.logits[0, :-1].log_softmax(-1).gather(1, ids[0, 1:, None])[:, 0]
            own = log_probs[len(row["prompt_ids"]) - 1 :].sum()
            np.testing.assert_allclose(train.logits[:, i, side], own.expand(2), rtol=1e-4)
            if name == "chosen_ids":
                assert train.length[i] == ids.shape[1]
                states = torch.stack(outputs.hidden_states)[:, 0].mean(1)
                np.testing.assert_allclose(train.hidden_states[1, :, i], states, rtol=2e-3, atol=2e-3)
        assert train.text["prompt"][i] == preferences()[i]["prompt"]


# Refused by name


ONLINE = {"GRPOTrainer": (GRPOTrainer, GRPOConfig), "RLOOTrainer": (RLOOTrainer, RLOOConfig)}


@pytest.mark.parametrize("name", ONLINE)
def test_online_trainers_are_refused_by_name(name: str, tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    def reward(completions: Any, **_: Any) -> list[float]:
        raise AssertionError("a completion was generated")

    trainer_class, arguments_class = ONLINE[name]
    settings: dict[str, Any] = {"bf16": False, "gradient_checkpointing": False, "num_generations": 2, "beta": 0.0}
    trainer = trainer_class(
        model=language_model(),
        reward_funcs=reward,
        args=tiny_arguments(tmp_path / "out", arguments_class, **settings, **LEARNING),
        train_dataset=as_dataset([{"prompt": row["prompt"]} for row in preferences()]),
        processing_class=tokenizer,
        callbacks=[RecorderCallback(tmp_path / "run.zarr")],
    )
    message = refusal(trainer)
    assert f"{name} cannot be recorded: it trains on completions that it generates anew in every step" in message
    assert not (tmp_path / "run.zarr").exists()


def test_data_parallel_is_refused_by_name(tmp_path: Path) -> None:
    """Two GPUs in one process, as far as the Trainer knows: it wraps the model in ``torch.nn.DataParallel``."""
    trainer = tiny_trainer(tmp_path / "out", RecorderCallback(tmp_path / "run.zarr"), **LEARNING)
    trainer.args._n_gpu = 2
    message = refusal(trainer)
    assert isinstance(trainer.model_wrapped, torch.nn.DataParallel)
    assert "torch.nn.DataParallel over 2 GPUs cannot be recorded" in message
    assert "launch with torchrun" in message
    assert not (tmp_path / "run.zarr").exists()
