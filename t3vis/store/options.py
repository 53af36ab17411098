"""How a run is stored: chosen when it is begun, kept in its root, the same for every attempt."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from t3vis.errors import ConfigurationError
from t3vis.store import schema
from t3vis.store.codecs import COMPRESSIONS, Compression
from t3vis.store.durable import Durability


@dataclass(frozen=True)
class StorageOptions:
    """Compression of the sealed arrays, and what a flushed row survives.

    Raises
    ------
    ConfigurationError
        If one of them is not known.
    """

    compression: Compression = None
    durability: Durability = "process"

    def __post_init__(self) -> None:
        if self.compression not in COMPRESSIONS:
            raise ConfigurationError(f"compression={self.compression!r}: expected None, 'lz4' or 'bitround'.")
        if self.durability not in ("process", "fsync"):
            raise ConfigurationError(f"durability={self.durability!r}: expected 'process' or 'fsync'.")

    @classmethod
    def of(cls, run: Path) -> StorageOptions:
        """The options of the run at ``run``."""
        return cls(**schema.run_attributes(run).get("storage", {}))
