"""Limits the time of the broker's loop that viewers use: builds come first."""

from __future__ import annotations

from fabric import bounds

#: Nanoseconds that a viewer may use for each one that has passed.
_SHARE = bounds.VIEWING / 1000
#: Nanoseconds that a silent viewer saves up.
_SAVED = bounds.VIEWING_SAVED * 1_000_000


class Viewing:
    """The time that each viewer may use, by the name of its key.  Times in nanoseconds."""

    def __init__(self) -> None:
        self._left: dict[str, tuple[float, int]] = {}  # name -> (what is left, at that time)

    def __contains__(self, name: str) -> bool:
        """Whether a viewer of this name was heard."""
        return name in self._left

    def may(self, name: str, now: int) -> bool:
        """Whether a viewer has time left for one more message, however long that takes."""
        left, since = self._left.get(name, (_SAVED, now))
        left = min(_SAVED, left + _SHARE * (now - since))
        self._left[name] = left, now
        return left > 0

    def spend(self, name: str, took: int) -> None:
        """Count the time that a message of a viewer took."""
        left, since = self._left[name]
        self._left[name] = left - took, since
