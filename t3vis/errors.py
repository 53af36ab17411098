"""What t3vis raises: one base class, one child for each place where things go wrong."""


class T3VisError(Exception):
    """Base of every error that t3vis raises on purpose."""


class ConfigurationError(T3VisError, ValueError):
    """A setting, dataset or model that cannot be recorded as asked; raised before the first training step."""


class StoreError(T3VisError):
    """A run on disk that cannot be opened, is not what was expected, or is damaged."""


class RecordingError(T3VisError):
    """Rows that could not be recorded; raised in training only with ``on_error="raise"``."""


class AnalysisError(T3VisError, ValueError):
    """Arrays that an analysis cannot work on, such as shapes that disagree."""


class ProbingError(T3VisError, ValueError):
    """A model, or examples, that cannot be probed as asked."""
