"""Stop strings, found while text arrives in pieces."""

from __future__ import annotations

from collections.abc import Sequence


class StopGate:
    """Lets text through up to the first stop string, and holds back what may yet become one.

    What comes through does not depend on how the text was cut into pieces: the stop string that is complete first ends
    it, and of several that end at the same character the longest.
    """

    def __init__(self, stops: Sequence[str]):
        self._stops = stops
        self._held = ""

    def push(self, piece: str) -> tuple[str, bool]:
        """The text that is certain now, and whether a stop string was found. Nothing may be pushed after one."""
        text = self._held + piece
        found = [(start + len(stop), start) for stop in self._stops if (start := text.find(stop)) >= 0]
        if found:
            return text[: min(found)[1]], True
        certain = len(text) - max((_overlap(text, stop) for stop in self._stops), default=0)
        self._held = text[certain:]
        return text[:certain], False

    def flush(self) -> str:
        """What was held back, when the text ends without a stop string."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that is a beginning of `stop`."""
    longest = min(len(text), len(stop) - 1)
    return next((length for length in range(longest, 0, -1) if text.endswith(stop[:length])), 0)
