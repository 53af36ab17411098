"""Where a run comes from: the model, the TrainingArguments that matter, the versions of the libraries."""

from __future__ import annotations

import importlib.metadata
import json
import platform
from typing import Any

KEPT_ARGUMENTS = (
    "output_dir",
    "num_train_epochs",
    "max_steps",
    "per_device_train_batch_size",
    "per_device_eval_batch_size",
    "gradient_accumulation_steps",
    "learning_rate",
    "lr_scheduler_type",
    "warmup_steps",
    "weight_decay",
    "max_grad_norm",
    "optim",
    "adam_beta1",
    "adam_beta2",
    "adam_epsilon",
    "label_smoothing_factor",
    "neftune_noise_alpha",
    "seed",
    "data_seed",
    "bf16",
    "fp16",
    "torch_compile",
    "train_sampling_strategy",
    "dataloader_drop_last",
    "eval_strategy",
    "save_strategy",
)
LIBRARIES = ("t3vis", "torch", "transformers", "accelerate", "datasets", "numpy")


def model_facts(model: Any) -> dict[str, Any]:
    """Class, name and config of a model, as JSON takes them."""
    config = getattr(model, "config", None)
    as_dict = {} if config is None or not hasattr(config, "to_dict") else config.to_dict()
    return {
        "class": type(model).__name__,
        "name": getattr(config, "_name_or_path", "") or None,
        "config": jsonable(as_dict),
    }


def training_arguments(args: Any) -> dict[str, Any]:
    """The arguments that decide what is trained, and how."""
    return {name: jsonable(getattr(args, name)) for name in KEPT_ARGUMENTS if hasattr(args, name)}


def library_versions() -> dict[str, str]:
    """Versions of Python and of the libraries that took part."""
    versions = {"python": platform.python_version()}
    for name in LIBRARIES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = "not installed as a package"
    return versions


def jsonable(value: Any) -> Any:
    """A value as JSON can hold it; what it cannot becomes its text."""
    return json.loads(json.dumps(value, default=str), parse_constant=str)  # NaN and infinities are not JSON
