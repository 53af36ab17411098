"""Settings of all tests."""

import os

from hypothesis import settings

settings.register_profile("t3vis", deadline=None, derandomize=True, database=None, print_blob=False)
settings.load_profile("t3vis")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # the models are tiny, and the tests share the cores


def pytest_xdist_auto_num_workers():
    """Two more than there are cores: many tests wait for other processes, or for the disk."""
    return min((os.cpu_count() or 1) + 2, 8)
