"""For all tests. An example that takes long says that the machine is busy, and nothing about the code.

`make test` tries the same examples everywhere, so that a change is judged by its own faults; `make test-all` searches
for new ones.
"""

from hypothesis import settings

settings.register_profile("the same examples", deadline=None, derandomize=True)
settings.register_profile("searching", deadline=None)
settings.load_profile("the same examples")
