from tests.viewer.conftest import asked

__all__ = ["asked"]  # a fixture
