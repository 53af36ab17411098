"""Fixtures of the tests of the store."""

import fsspec
import pytest


@pytest.fixture
def memory():
    """The URL of an empty place in memory."""
    fsspec.filesystem("memory").store.clear()
    yield "memory://bucket/run.zarr"
    fsspec.filesystem("memory").store.clear()
