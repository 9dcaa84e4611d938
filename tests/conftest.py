"""For all tests. An example that takes long says that the machine is busy, and nothing about the code."""

from hypothesis import settings

settings.register_profile("no deadline", deadline=None)
settings.load_profile("no deadline")
