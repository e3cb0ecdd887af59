"""Pace and patience: when a frame is due, how long a source or the network is waited for."""

from __future__ import annotations


class Backoff:
    """Waiting times that double from `first_s` to `most_s`, until success starts them again."""

    def __init__(self, first_s: float = 0.25, most_s: float = 4.0) -> None:
        self._first_s = first_s
        self._most_s = most_s
        self._next_s = first_s

    def next_s(self) -> float:
        """How long to wait now, in seconds."""
        wait_s = self._next_s
        self._next_s = min(self._next_s * 2, self._most_s)
        return wait_s

    def reset(self) -> None:
        """It worked: the next trouble begins with the short wait."""
        self._next_s = self._first_s


class RateLimit:
    """Lets at most `fps` frames per second through, evenly, judged by their capture times."""

    def __init__(self, fps: float) -> None:
        self._period_ns = round(1e9 / fps)
        self._due_ns: int | None = None

    def admits(self, clock_ns: int) -> bool:
        """Whether the frame of that capture time (ns) goes on."""
        if self._due_ns is None:
            self._due_ns = clock_ns
        # A source that was opened again may go back in time.
        self._due_ns = min(self._due_ns, clock_ns + self._period_ns)
        if clock_ns < self._due_ns:
            return False
        # A late frame may be made good by one period: a camera's jitter must not halve a rate at the limit.
        self._due_ns = max(self._due_ns, clock_ns - self._period_ns) + self._period_ns
        return True


class Lag:
    """Whether the frames of a live source come ever later, told by their ages."""

    def __init__(self, most_s: float = 2.0) -> None:
        self._most_ns = round(most_s * 1e9)
        self._least_ns: int | None = None  # what a start, a decoder or a camera's buffers always take
        self._since: tuple[int, int] | None = None  # when it was late first or began to catch up, and its age

    def grows(self, age_ns: int, now_ns: int) -> bool:
        """Whether it is `most_s` later than at best, and was `most_s` ago, and does not catch up."""
        self._least_ns = age_ns if self._least_ns is None else min(age_ns, self._least_ns)
        if age_ns - self._least_ns <= self._most_ns:
            self._since = None
        elif self._since is None or age_ns < self._since[1]:
            self._since = now_ns, age_ns
        return self._since is not None and now_ns - self._since[0] > self._most_ns


class Answers:
    """How long the network may take for a picture: ten times what it took at most. Times are seconds.

    One thread asks it, another looks.
    """

    def __init__(self, first_s: float = 120.0, least_s: float = 30.0) -> None:
        # For the first picture, and for others at least: a cascade may find nobody in one and 16 in the next.
        self._first_s, self._least_s = first_s, least_s
        self._asked_s: float | None = None
        self._most_s: float | None = None

    def begin(self, now_s: float) -> None:
        """It is shown a picture."""
        self._asked_s = now_s

    def end(self, now_s: float) -> None:
        """It has answered."""
        assert self._asked_s is not None, "nobody asked"
        self._most_s = max(self._most_s or 0.0, now_s - self._asked_s)
        self._asked_s = None

    def overdue_s(self, now_s: float) -> float | None:
        """How long it has not answered, when that is too long."""
        asked_s, most_s = self._asked_s, self._most_s
        if asked_s is None:
            return None
        limit_s = self._first_s if most_s is None else max(self._least_s, 10 * most_s)
        return now_s - asked_s if now_s - asked_s > limit_s else None


class Metronome:
    """Real time for a source that could go faster: frame i is due at start + i / fps."""

    def __init__(self, fps: float, start_ns: int) -> None:
        self._period_ns = 1e9 / fps
        self._start_ns = start_ns

    def due_ns(self, index: int) -> int:
        """When frame `index` is due."""
        return self._start_ns + round(index * self._period_ns)

    def next_index(self, previous: int, now_ns: int) -> int:
        """The frame after `previous`; those whose successor is due already are left out, as a camera does."""
        overdue = int((now_ns - self._start_ns) / self._period_ns)
        return max(previous + 1, overdue)
