"""A run of ten examples of which one is not seen in the second of two epochs, with values of tokens."""

from pathlib import Path

from t3vis import Run, open_run
from t3vis.store.writer import RunWriter
from tests.store.recordings import two_epochs


def seen_in_part(folder: Path) -> Run:
    writer, _ = two_epochs(folder / "run.zarr", seal=True)
    described(writer)
    return open_run(folder / "run.zarr")


def described(writer: RunWriter) -> None:
    """Say what the recorder says of its first batch."""
    writer.describe("train", {"task": "single_label", "arrays": {"hidden_states": {"layers": [0, 1]}}})
    writer.close()
