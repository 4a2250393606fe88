"""When the next request to a server may go."""

import threading
import time


class Pace:
    """No more than so many requests a minute, and none before a server's Retry-After."""

    def __init__(self, per_minute: float | None, stopped: threading.Event) -> None:
        self._interval = 60.0 / per_minute if per_minute else 0.0
        self._next = self._held_until = 0.0
        self._lock, self._stopped = threading.Lock(), stopped

    def wait(self) -> None:
        """Take the next slot and wait for it; for another one, where the server has asked for a pause meanwhile."""
        slot = self._slot()
        while not self._stopped.wait(min(max(slot - time.monotonic(), 0.0), threading.TIMEOUT_MAX)):
            if slot >= self._held_until:
                return
            slot = self._slot()

    def hold(self, seconds: float) -> None:
        """Nobody asks for so long, nor who waits for a slot already."""
        with self._lock:
            self._held_until = max(self._held_until, time.monotonic() + seconds)

    def _slot(self) -> float:
        with self._lock:
            slot = max(time.monotonic(), self._next, self._held_until)
            self._next = slot + self._interval
            return slot
