"""Record what a Transformer does with every example while it is fine-tuned, and read it back.

``RecorderCallback`` goes into a Trainer's callbacks, ``Recorder`` into a loop of one's own; ``open_run`` reads what was
recorded, at any time.
"""

from typing import TYPE_CHECKING, Any

from t3vis.errors import AnalysisError, ConfigurationError, RecordingError, StoreError, T3VisError
from t3vis.store.reader import Run, open_run

if TYPE_CHECKING:
    from t3vis.callbacks.plain_loop import Recorder
    from t3vis.callbacks.recorder import RecorderCallback

__version__ = "0.1.0.dev0"

__all__ = [
    "AnalysisError",
    "ConfigurationError",
    "Recorder",
    "RecorderCallback",
    "RecordingError",
    "Run",
    "StoreError",
    "T3VisError",
    "open_run",
]


def __getattr__(name: str) -> Any:
    """Import the recorder when it is first asked for: it needs torch, which readers of a run do not."""
    if name == "RecorderCallback":
        from t3vis.callbacks.recorder import RecorderCallback

        return RecorderCallback
    if name == "Recorder":
        from t3vis.callbacks.plain_loop import Recorder

        return Recorder
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
