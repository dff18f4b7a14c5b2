"""Every test: Hypothesis plays what it has not played before, and says how to repeat a failure."""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("fresh", derandomize=False, print_blob=True)
settings.load_profile("fresh")
