"""The command that says what a run holds."""

from __future__ import annotations

import argparse

from t3vis.commands.arguments import Commands, add_command
from t3vis.store.reader import open_run


def add(commands: Commands) -> None:
    """Declare ``info``."""
    info = add_command(commands, "info", _info, "what a run holds, and what is missing", "t3vis info runs/demo.zarr")
    info.add_argument("run", metavar="RUN", help="path or URL of the run")


def _info(options: argparse.Namespace) -> None:
    run = open_run(options.run)
    attributes = run.attributes
    print(run.summary())
    arguments = attributes.get("training_arguments", {})
    shown = ("learning_rate", "per_device_train_batch_size", "gradient_accumulation_steps", "num_train_epochs", "seed")
    print("trained with " + ", ".join(f"{name}={arguments[name]}" for name in shown if name in arguments))
    print("versions: " + ", ".join(f"{name} {version}" for name, version in attributes.get("versions", {}).items()))
