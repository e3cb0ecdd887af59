"""A mailbox of one frame: a new frame replaces an unread one, so that latency stays bounded."""

from __future__ import annotations

import threading
from typing import Generic, TypeVar

T = TypeVar("T")


class LatestOnly(Generic[T]):
    """Holds at most the newest item. `dropped` counts the items that nobody took."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._item: T | None = None
        self._closed = False
        self.dropped = 0

    def put(self, item: T) -> None:
        """Leave `item`, in place of one that is still there. After `close` it is dropped."""
        with self._changed:
            if self._item is not None or self._closed:
                self.dropped += 1
            if not self._closed:
                self._item = item
                self._changed.notify()

    def take(self, timeout_s: float) -> T | None:
        """The newest item, or None when none comes in time or the mailbox is closed and empty."""
        with self._changed:
            self._changed.wait_for(lambda: self._item is not None or self._closed, timeout_s)
            item, self._item = self._item, None
            return item

    def close(self) -> None:
        """Nothing more will come; whoever waits is woken."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    @property
    def closed(self) -> bool:
        """No item is left and none will come."""
        with self._changed:
            return self._closed and self._item is None
