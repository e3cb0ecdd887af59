"""What one viewer gets: nothing before a key frame, and nothing more while it cannot keep up."""

from __future__ import annotations


class KeyGate:
    """Opens at a key frame; shuts when the viewer has no room, so that it comes back with a whole picture."""

    def __init__(self) -> None:
        self.is_open = False
        self.dropped = 0

    def shut(self) -> None:
        """The viewer missed an access unit for another reason."""
        self.is_open = False

    def video(self, is_key: bool, has_room: bool) -> bool:
        """Whether this access unit goes to the viewer."""
        if not has_room:
            self.is_open = False
            self.dropped += 1
            return False
        self.is_open = self.is_open or is_key
        return self.is_open
