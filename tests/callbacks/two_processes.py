"""Run by torchrun in ``test_processes.py``: each of two processes trains the same tiny models."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path
from typing import Any

import torch
from torch.distributed import all_gather_object

from t3vis import ConfigurationError, Recorder, RecorderCallback
from tests.callbacks.tiny import (
    NumberedStream,
    PlainDataset,
    Stops,
    as_dataset,
    held_out,
    pad,
    tiny_model,
    tiny_rows,
    tiny_trainer,
)

TIMES = ("train_runtime", "train_samples_per_second", "train_steps_per_second")
ORDER = [*range(40, -1, -2), *range(1, 41, 2)]


def pad_to_14(rows: Any) -> Any:
    """Batches of one width, as they must be where one process reads for both."""
    widest = {"input_ids": [0] * 14, "attention_mask": [0] * 14, "labels": 0}
    return {key: batch[:-1] for key, batch in pad([*rows, widest]).items()}


def stream() -> NumberedStream:
    return NumberedStream(tiny_rows(), ORDER)


ONE_WIDTH = {"data_collator": pad_to_14}
SETTINGS: dict[str, dict[str, Any]] = {
    "even": {"train": as_dataset(tiny_rows(40))},
    "uneven": {},
    "drop_last": {"dataloader_drop_last": True},
    "accumulation": {"gradient_accumulation_steps": 4, "heads": True},
    "group_by_length": {"train_sampling_strategy": "group_by_length"},
    "batch_rebalance": {"train_sampling_strategy": "batch_rebalance"},
    "workers": {"dataloader_num_workers": 2, "train": PlainDataset(tiny_rows())},
    "dispatch": {"accelerator_config": {"dispatch_batches": True}, "options": ONE_WIDTH},
    "split": {"accelerator_config": {"split_batches": True}},
    "dispatch and split": {
        "accelerator_config": {"dispatch_batches": True, "split_batches": True},
        "options": ONE_WIDTH,
    },
    "stream, dispatched": {"train": stream(), "max_steps": 12, "options": ONE_WIDTH},
    "stream, sharded": {"train": stream(), "max_steps": 12, "accelerator_config": {"dispatch_batches": False}},
}


def trains(directory: Path, name: str, **settings: Any) -> Any:
    recorder: dict[str, Any] = {"id_column": "number"} if isinstance(settings.get("train"), NumberedStream) else {}
    recorder |= {option: settings.pop(option, False) for option in ("resume", "heads")}
    recorder |= {"shared": settings.pop("shared", True)}
    recorder |= {"probe": settings.pop("probe", None)}
    return tiny_trainer(
        directory / name / "out",
        RecorderCallback(directory / name / "run.zarr", **recorder),
        **{"model": tiny_model(), "ddp_backend": "gloo", **settings},
    )


def lives(directory: Path) -> None:
    """A training with evaluations, a prediction, a second training; then one that is refused."""
    trainer = trains(directory, "life", eval_dataset=held_out(), eval_strategy="epoch")
    trainer.train()
    trainer.predict(held_out())
    trainer.args.num_train_epochs = 1
    trainer.train()

    refused = trains(directory, "life")
    messages = [None, None]
    try:
        refused.train()
    except ConfigurationError as error:  # by the first process, and the second does not wait for it in vain
        all_gather_object(messages, str(error))
    if refused.args.process_index == 0:
        equal = len(set(messages)) == 1 and messages[0] is not None
        (directory / "refused").write_text(f"{len(messages) if equal else 0} processes: {messages[0]}")


def has_parts(directory: Path) -> None:
    """What ``lives`` does at first, but each process has a directory of its own."""
    own = f"part{torch.distributed.get_rank()}"
    trainer = trains(directory, own, eval_dataset=held_out(), eval_strategy="epoch", shared=False)
    trainer.train()
    trainer.predict(held_out())


def is_interrupted(directory: Path, name: str) -> Path:
    """Both processes stop in the second epoch; the checkpoint is from before."""
    trainer = trains(directory, name, callbacks=[Stops(10)], save_strategy="steps", save_steps=8)
    with contextlib.suppress(KeyboardInterrupt):
        trainer.train()
    return directory / name / "out" / "checkpoint-8"


def is_probed(directory: Path) -> None:
    """The same training with dropout, once without probes and once with."""
    for name, probe in (("plain", None), ("probed", "train")):
        torch.manual_seed(5)
        dropout = tiny_model(hidden_dropout_prob=0.3)
        settings = {"learning_rate": 1e-2, "gradient_accumulation_steps": 2, "logging_steps": 1}
        trainer = trains(directory, name, model=dropout, probe=probe, **settings)
        trainer.train()
        states = {"weights": trainer.model.state_dict(), "random": torch.get_rng_state()}
        history = [{**entry, **dict.fromkeys(TIMES, 0)} for entry in trainer.state.log_history]
        torch.save({**states, "history": history}, directory / name / f"rank{trainer.args.process_index}.pt")


def loops(directory: Path) -> None:
    """A loop without a Trainer, which is refused."""
    try:
        Recorder(directory / "loop.zarr", tiny_model(), dataset=as_dataset(tiny_rows()))
    except ConfigurationError as error:
        (directory / f"loop{torch.distributed.get_rank()}").write_text(str(error))


def main(directory: Path) -> None:
    lives(directory)
    has_parts(directory)
    loops(directory)
    is_probed(directory)
    for name, settings in SETTINGS.items():
        trains(directory, name, **settings).train()
    checkpoint = is_interrupted(directory, "resumed")
    trains(directory, "resumed", resume=True).train(resume_from_checkpoint=str(checkpoint))
    is_interrupted(directory, "for one process")
    layers = {"transformer_layer_cls_to_wrap": "BertLayer"}  # last, since accelerate keeps it in mind
    settings = {"eval_dataset": held_out(), "eval_strategy": "epoch", "heads": True, "probe": "train"}
    trains(directory, "fsdp", fsdp=True, fsdp_config=layers, **settings).train()
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
