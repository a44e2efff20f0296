"""Keeps the engine supplied with lines, as many as it wants and no more."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from echo_sglang.service.answers import ResultMaker, fault_of_body
from echo_sglang.service.dispatch import draw, in_turn
from echo_sglang.service.engine import Engine
from echo_sglang.service.errors import EngineGoneError, NotFoundError, StoreIOError
from echo_sglang.service.files import Files
from echo_sglang.service.held import Held, body_of, read_lines
from echo_sglang.service.model import EngineAnswer, Line, LineResult, LineTag
from echo_sglang.service.recorder import Offload, Recorder
from echo_sglang.service.work_table import WorkTable

logger = logging.getLogger(__name__)

_DRAWN_LINES = 256
_MAX_SUSPECTS = 1_024
_REFILL_SHARE = 8
"""Room is filled when an eighth of the engine's wish is free: fewer transactions."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FeedSettings:
    """When lines are tried again; seconds and lines.

    max_in_flight: lines in flight at most, whatever the engine's capacity says.
    max_attempts: tries of a line that meets transient answers (503, ...), then an error row.
    backoff_s, max_backoff_s: pause after a transient answer, doubled up to the second as long
        as nothing else comes.
    cautious_in_flight: lines in flight at most while some run that met one engine crash.
    alone_crashes: a line that was in flight at so many crashes runs alone.
    quarantine_crashes: one that was in flight at so many is not run again: an error row.
    """

    max_in_flight: int = 1024
    max_attempts: int = 10
    backoff_s: float = 0.5
    max_backoff_s: float = 60.0
    cautious_in_flight: int = 32
    alone_crashes: int = 2
    quarantine_crashes: int = 3


class Feeder:
    """Starts lines and hands their results to the recorder.

    wake: called when there is room again.
    """

    def __init__(
        self,
        work: WorkTable,
        files: Files,
        engine: Engine,
        recorder: Recorder,
        maker: ResultMaker,
        settings: FeedSettings,
        *,
        offload: Offload,
        clock: Callable[[], float],
        wake: Callable[[], None],
    ) -> None:
        self._work = work
        self._files = files
        self._engine = engine
        self._recorder = recorder
        self._maker = maker
        self._settings = settings
        self._offload = offload
        self._clock = clock
        self._wake = wake
        self._drawn: deque[Line] = deque()
        self._suspects: list[Line] = []
        self._look_for_suspects = True
        self._attempts: dict[tuple[str, int], int] = {}
        self._crashed: dict[str, list[int]] = {}
        self._returned: dict[str, list[int]] = {}
        self._backoff_s = 0.0
        self._resume_at = 0.0

    def batches_changed(self) -> None:
        """Batches came, went, or may run again: what was drawn may be out of turn."""
        self._drawn.clear()
        self._look_for_suspects = True

    async def feed(self, held: Mapping[str, Held]) -> None:
        """Start what there is room for. Raises StoreError, LeaseLostError."""
        await self._put_back(held)
        now = self._clock()
        able = {each.batch.id: each for each in held.values() if each.feeds(now)}
        if not able or not self._engine.ready or self._recorder.stalled:
            return
        if asyncio.get_running_loop().time() < self._resume_at:
            return
        await self._find_suspects(able)
        while lines := await self._next_lines(able, held):
            if not await self._start(able, lines):
                return

    def forget(self, batch_id: str) -> None:
        """This batch is no longer held."""
        for waiting in (self._crashed, self._returned):
            waiting.pop(batch_id, None)
        self._attempts = {key: n for key, n in self._attempts.items() if key[0] != batch_id}
        self.batches_changed()

    # Which lines

    async def _next_lines(self, able: Mapping[str, Held], held: Mapping[str, Held]) -> list[Line]:
        in_flight = sum(each.in_flight for each in held.values())
        running_crashes = max(max(each.suspects.values(), default=0) for each in held.values())
        suspects = self._suspects
        limit = min(self._engine.capacity, self._settings.max_in_flight)
        if running_crashes >= self._settings.alone_crashes:
            return []
        if suspects and suspects[0].crashes >= self._settings.alone_crashes:
            return self._take_suspects(1) if in_flight == 0 < limit else []
        if suspects or running_crashes:
            limit = min(limit, self._settings.cautious_in_flight)
        room = limit - in_flight
        if room < max(1, limit // _REFILL_SHARE):
            return []
        if suspects:
            return self._take_suspects(room)
        if not self._drawn:
            standings = [each.standing() for each in able.values() if each.waits]
            turn = in_turn(standings, self._clock(), self._lines_per_s(able))
            self._drawn.extend(await self._offload(draw, self._work, turn, _DRAWN_LINES, 0))
        return [self._drawn.popleft() for _ in range(min(room, len(self._drawn)))]

    def _take_suspects(self, count: int) -> list[Line]:
        lines, self._suspects = self._suspects[:count], self._suspects[count:]
        self._look_for_suspects = not self._suspects
        return lines

    async def _find_suspects(self, able: Mapping[str, Held]) -> None:
        """Lines that were in flight at a crash come first, the worst one before all."""
        if not self._look_for_suspects:
            return
        self._look_for_suspects = False
        found: list[Line] = []
        for each in able.values():
            lines = await self._offload(self._work.suspects, each.batch.id, 1, _MAX_SUSPECTS)
            for line in lines:
                if line.crashes < self._settings.quarantine_crashes:
                    found.append(line)
                elif line.number not in each.unkept:
                    self._keep(each, line.number, self._quarantined(line))
        found.sort(key=lambda line: (-line.crashes, line.order_key, line.number))
        self._suspects = found

    def _quarantined(self, line: Line) -> LineResult:
        logger.error("line %d of %s is quarantined", line.number, line.batch_id)
        return self._maker.unanswered(
            line,
            "line_crashes_engine",
            f"The engine died {line.crashes} times with this line in flight, the last time with "
            "this line alone; it is not tried again.",
        )

    def _lines_per_s(self, able: Mapping[str, Held]) -> float | None:
        now = self._clock()
        paces = [each.pace.lines_per_s(now) for each in able.values()]
        return sum(pace for pace in paces if pace) or None

    # Running them

    async def _start(self, able: Mapping[str, Held], lines: list[Line]) -> int:
        """How many were started: none of a batch that was paused or cancelled meanwhile."""
        started = 0
        parts: dict[str, list[Line]] = {}
        for line in lines:
            if line.batch_id in able:
                parts.setdefault(line.batch_id, []).append(line)
        for batch_id, part in parts.items():
            each = able[batch_id]
            for line, raw in await self._offload(self._take, each, part):
                if line.crashes:
                    each.suspects[line.number] = line.crashes
                task = asyncio.get_running_loop().create_task(self._run(each, line, raw))
                each.tasks[line.number] = task
                started += 1
        return started

    def _take(self, each: Held, lines: list[Line]) -> list[tuple[Line, bytes]]:
        """Mark lines as in flight, durably, and read them. Runs in a thread."""
        marked = self._work.dispatch(each.lease, [line.number for line in lines])
        taken = [line for line in lines if line.number in marked]
        try:
            return read_lines(self._files, each.batch.input_file_id, taken)
        except (NotFoundError, StoreIOError) as error:
            logger.error("%s", error)
            return [(line, b"") for line in taken]

    async def _run(self, each: Held, line: Line, raw: bytes) -> None:
        try:
            result = await self._result(each, line, raw)
            if result is not None:
                self._keep(each, line.number, result)
        finally:
            each.tasks.pop(line.number, None)
            each.suspects.pop(line.number, None)
            self._wake()

    async def _result(self, each: Held, line: Line, raw: bytes) -> LineResult | None:
        """None if the line waits again."""
        body = body_of(line, raw)
        if body is None:
            message = "This line of the input file can no longer be read."
            return self._maker.unanswered(line, "input_unreadable", message)
        fault = fault_of_body(body)
        if fault is not None:
            return self._maker.refused(line, *fault)
        key = (line.batch_id, line.number)
        tag = LineTag(
            batch_id=line.batch_id,
            custom_id=line.custom_id,
            deadline_unix_s=each.batch.expires_at,
            attempt=self._attempts.get(key, 0),
        )
        try:
            answer = await self._engine.submit(each.batch.endpoint, body, tag)
            return self._judged(line, answer)
        except EngineGoneError as error:
            logger.warning("line %d of %s: %s", line.number, line.batch_id, error)
            self._crashed.setdefault(line.batch_id, []).append(line.number)
            return None
        except Exception:
            logger.exception("line %d of %s", line.number, line.batch_id)
            message = "The server failed on this line; its log says more."
            return self._maker.unanswered(line, "internal_error", message)

    def _judged(self, line: Line, answer: EngineAnswer) -> LineResult | None:
        key = (line.batch_id, line.number)
        if answer.is_transient:
            attempts = self._attempts.get(key, 0) + 1
            self._hold_back()
            if attempts < self._settings.max_attempts:
                self._attempts[key] = attempts
                self._returned.setdefault(line.batch_id, []).append(line.number)
                return None
        else:
            self._backoff_s = 0.0
        self._attempts.pop(key, None)
        return self._maker.answered(line, answer)

    def _hold_back(self) -> None:
        """Start nothing for a while; many answers of one moment count once."""
        now = asyncio.get_running_loop().time()
        if now < self._resume_at:
            return
        settings = self._settings
        doubled = max(2 * self._backoff_s, settings.backoff_s)
        self._backoff_s = min(doubled, settings.max_backoff_s)
        self._resume_at = now + self._backoff_s

    def _keep(self, each: Held, number: int, result: LineResult) -> None:
        each.unkept.add(number)
        self._recorder.add(each.lease, result)

    async def _put_back(self, held: Mapping[str, Held]) -> None:
        for crashed, waiting in ((True, self._crashed), (False, self._returned)):
            for batch_id in list(waiting):
                each = held.get(batch_id)
                if each is None:
                    del waiting[batch_id]
                    continue
                numbers = waiting.pop(batch_id)
                try:
                    await self._offload(self._work.put_back, each.lease, numbers, crashed=crashed)
                except BaseException:
                    waiting.setdefault(batch_id, []).extend(numbers)
                    raise
                self.batches_changed()
