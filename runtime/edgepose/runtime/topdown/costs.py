"""What a look at some crops will take, from what the newest looks took."""

from __future__ import annotations

from collections import deque

REMEMBERED = 5  # newest looks at each number of crops
# Of what a look is believed to take, when it was refused. One that is never tried again would otherwise stay
# as dear as a slow moment made it; what is truly too dear by a tenth is tried every tenth time.
EASING = 0.99


class Costs:
    """Seconds of a look by its number of crops."""

    def __init__(self) -> None:
        self._taken: dict[int, deque[float]] = {}

    def add(self, count: int, seconds: float) -> None:
        """A look at `count` crops took `seconds`."""
        self._taken.setdefault(count, deque(maxlen=REMEMBERED)).append(seconds)

    def of(self, count: int) -> float:
        """What a look at `count` crops is expected to take; nothing before the first look.

        From another number of crops it is guessed too high rather than too low: a larger look takes as much
        for each crop as a smaller one, and a smaller one as much as a larger one.
        """
        if count in self._taken:
            return _usual(self._taken[count])
        smaller = max((known for known in self._taken if known < count), default=None)
        larger = min((known for known in self._taken if known > count), default=None)
        guesses = [] if smaller is None else [_usual(self._taken[smaller]) * count / smaller]
        guesses += [] if larger is None else [_usual(self._taken[larger])]
        return min(guesses, default=0.0)

    def ease(self) -> None:
        """Nothing could be afforded: believe all of it a little cheaper."""
        for count, taken in self._taken.items():
            self._taken[count] = deque((EASING * seconds for seconds in taken), REMEMBERED)


def _usual(taken: deque[float]) -> float:
    """The second longest of three or more: one slow moment says nothing."""
    longest = sorted(taken)[-2:]
    return longest[0] if len(taken) > 2 else longest[-1]
