"""Virtual time: one clock for the scheduler's thread, one for the device.

With SGLang's overlap schedule the host prepares iteration i + 1 while the device computes
iteration i. So a launch starts when both are ready, and the host's clock moves on only when
it waits for a result, is charged for its own work, or sleeps until somebody arrives.
"""

from __future__ import annotations

START_S = 1000.0
"""Where virtual time starts. SGLang takes a time stamp of 0.0 for "not set"."""

TICK_S = 1e-9
"""SGLang orders requests by time stamps: two readings must never be equal."""


class VirtualClock:
    """Seconds since `START_S`, moved by whoever does something that takes time."""

    __slots__ = ("_last_reading_s", "device_free_s", "now_s")

    def __init__(self) -> None:
        self.now_s = START_S
        self.device_free_s = START_S
        self._last_reading_s = START_S

    @property
    def elapsed_s(self) -> float:
        """Seconds since the start, on the host's clock."""
        return self.now_s - START_S

    def charge(self, seconds: float) -> None:
        """The host worked for `seconds`."""
        self.now_s += seconds

    def wait_until(self, then_s: float) -> None:
        """The host waits; nothing happens if `then_s` has passed."""
        self.now_s = max(self.now_s, then_s)

    def launch(self, seconds: float) -> float:
        """The device gets work of `seconds`; returns when it will be done."""
        self.device_free_s = max(self.device_free_s, self.now_s) + seconds
        return self.device_free_s

    def reading(self) -> float:
        """The host's clock, a tick later than the last reading at least."""
        self._last_reading_s = max(self.now_s, self._last_reading_s + TICK_S)
        return self._last_reading_s


class TimeModule:
    """Stands in for the module `time` where SGLang stamps requests."""

    def __init__(self, clock: VirtualClock) -> None:
        self.perf_counter = clock.reading
        """Virtual seconds, every reading later than the last."""
        self.time = clock.reading
        """The same: virtual time has no other epoch."""
        self.monotonic = clock.reading
        """The same."""
