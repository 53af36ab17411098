from pathlib import Path

import pytest

from t3vis import Run, open_run
from t3vis.analyze_projection import analyzed_projection
from tests.viewer.conftest import asked

__all__ = ["asked"]  # a fixture: a run with texts, named classes and gradients of heads


@pytest.fixture(scope="session")
def run(asked: Path) -> Run:
    """That run, with a map of it."""
    opened = open_run(asked)
    analyzed_projection(opened, opened.train, method="pca")
    return opened
