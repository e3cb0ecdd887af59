"""Which poses belong to which picture: the RTP timestamp is the exact key."""

from __future__ import annotations

from collections import OrderedDict
from typing import Generic, TypeVar

K = TypeVar("K", int, str)
V = TypeVar("V")


class Recent(Generic[K, V]):
    """The newest `capacity` entries by key; older ones are forgotten."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._entries: OrderedDict[K, V] = OrderedDict()

    def put(self, key: K, value: V) -> None:
        """Remember `value`; the last one for a key counts."""
        self._entries[key] = value
        self._entries.move_to_end(key)
        while len(self._entries) > self._capacity:
            self._entries.popitem(last=False)

    def get(self, key: K) -> V | None:
        """The value, if it is still known."""
        return self._entries.get(key)

    def pop(self, key: K) -> V | None:
        """The value, if it is still known; it is then forgotten."""
        return self._entries.pop(key, None)

    def since(self, key: K) -> list[tuple[K, V]]:
        """Entries whose key is at least `key`, in order of their keys."""
        later = ((k, v) for k, v in self._entries.items() if k >= key)
        return sorted(later, key=lambda entry: entry[0])
