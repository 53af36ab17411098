"""Settings of all tests."""

from hypothesis import settings

settings.register_profile("t3vis", deadline=None, derandomize=True, database=None, print_blob=False)
settings.load_profile("t3vis")
