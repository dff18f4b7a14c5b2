"""Every test: Hypothesis plays what it has not played before, and says how to repeat a failure.

Programs are started as users start them, however pytest was.
"""

from __future__ import annotations

import os
import signal

from hypothesis import settings

settings.register_profile("fresh", derandomize=False, print_blob=True)
settings.load_profile("fresh")

os.environ.pop("PYTHONUNBUFFERED", None)
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # pytest is in the background
    signal.signal(signal.SIGINT, signal.default_int_handler)
