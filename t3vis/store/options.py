"""How a run is stored: chosen when it is begun, kept in its root, the same for every attempt."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path

from t3vis.errors import ConfigurationError
from t3vis.store import schema
from t3vis.store.codecs import COMPRESSIONS, Compression
from t3vis.store.durable import Durability


@dataclass(frozen=True)
class StorageOptions:
    """Compression of the sealed arrays, what a flushed row survives, and of how many passes hidden states are kept.

    ``keep_epochs`` counts the last epochs of training, and the last evaluations of each evaluation set; ``None`` keeps
    them all.

    Raises
    ------
    ConfigurationError
        If one of them is not known.
    """

    compression: Compression = None
    durability: Durability = "process"
    keep_epochs: int | None = None

    def __post_init__(self) -> None:
        if self.compression not in COMPRESSIONS:
            raise ConfigurationError(f"compression={self.compression!r}: expected None, 'lz4' or 'bitround'.")
        if self.durability not in ("process", "fsync"):
            raise ConfigurationError(f"durability={self.durability!r}: expected 'process' or 'fsync'.")
        keep = self.keep_epochs
        if keep is not None and (not isinstance(keep, int) or isinstance(keep, bool) or keep < 1):
            raise ConfigurationError(f"keep_epochs={keep!r}: expected a number of epochs, at least 1, or None.")

    @classmethod
    def of(cls, run: Path) -> StorageOptions:
        """The options of the run at ``run``."""
        said = schema.run_attributes(run).get("storage", {})
        return cls(**{field.name: said[field.name] for field in fields(cls) if field.name in said})
