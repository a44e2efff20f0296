"""A flood of offline requests: online ones pass it, and no iteration waits for all of it.

SGLang takes in what has arrived, in order, before every iteration. Of thousands of offline requests
sent at once, either one iteration would wait for all of them, or, with a bound on their number, an
online request that came last for as many iterations as they take. So everything is received; the
offline requests that wait as tokens go into a lane, and an iteration takes in as many of them as a
share of its time is enough for.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

from sglang.srt.managers.io_struct import AbortReq, TokenizedGenerateReqInput

from echo_sglang.adapter.intake import RequestIntake
from echo_sglang.adapter.ranks import Ranks

SHARE = 0.05
"""Of the time since the last intake that the next one may spend on the lane."""

LEAST_S = 0.005
"""It may spend as much even if iterations are short."""

MOST_S = 0.05
"""And no more than this after a long pause."""

AT_ONCE = 16
"""Requests that are taken in before the clock is looked at."""

AT_ONCE_OF_RANKS = 128
"""Requests an iteration takes in where several ranks must do alike, whatever their clocks say."""


class OfflineLane:
    """Offline requests that were received and not taken in yet, in order of arrival."""

    def __init__(self) -> None:
        self._waiting: OrderedDict[str, TokenizedGenerateReqInput] = OrderedDict()
        self._last_s: float | None = None

    def __len__(self) -> int:
        return len(self._waiting)

    def __contains__(self, rid: str) -> bool:
        return rid in self._waiting

    def join(self, recv_req: TokenizedGenerateReqInput) -> None:
        """`recv_req`, of an id that is not here, waits as the last."""
        assert recv_req.rid not in self._waiting, recv_req.rid
        self._waiting[recv_req.rid] = recv_req

    def leave(self, most: int) -> list[TokenizedGenerateReqInput]:
        """The first ones, `most` of them at most, which no longer wait here."""
        count = min(most, len(self._waiting))
        return [self._waiting.popitem(last=False)[1] for _ in range(count)]

    def take_matching(
        self, rid_prefix: str, *, everything: bool = False
    ) -> list[TokenizedGenerateReqInput]:
        """Remove and return what an abort names: ids that start with `rid_prefix`, or all. O(1)
        for a whole id that is here."""
        if not everything and rid_prefix in self._waiting:
            return [self._waiting.pop(rid_prefix)]
        named = [rid for rid in self._waiting if everything or rid.startswith(rid_prefix)]
        return [self._waiting.pop(rid) for rid in named]

    def until_s(self, now_s: float) -> float:
        """When the intake that begins now should end. Call once for each."""
        passed_s = 0.0 if self._last_s is None else now_s - self._last_s
        self._last_s = now_s
        return now_s + min(max(SHARE * passed_s, LEAST_S), MOST_S)


class PacedIntake(RequestIntake):
    """What is received at once is taken in bit by bit. EchoScheduler sets what is declared here.

    On virtual time, which stands still meanwhile, an intake takes in all there is.
    """

    offline_lane: OfflineLane
    ranks: Ranks

    def process_input_requests(self, recv_reqs: list[Any]) -> None:
        """Everything but offline requests that can wait now; of those as many as time is for."""
        lane, passing = self.offline_lane, []
        for recv_req in recv_reqs:
            if self._may_wait_in_lane(recv_req):
                lane.join(recv_req)
            else:
                passing.append(recv_req)
        super().process_input_requests(passing)
        until_s = lane.until_s(self.echo_clock())
        while lane:
            at_once = AT_ONCE if self.ranks.alone else AT_ONCE_OF_RANKS
            super().process_input_requests(lane.leave(at_once))
            if not self.ranks.alone or self.echo_clock() >= until_s:
                break

    def _may_wait_in_lane(self, recv_req: Any) -> bool:
        return (
            isinstance(recv_req, TokenizedGenerateReqInput)
            and self._waits_as_tokens(recv_req)
            and recv_req.rid not in self.offline_lane
        )

    def abort_request(self, recv_req: AbortReq) -> None:
        """Those that wait in the lane hold nothing."""
        for source in self.offline_lane.take_matching(recv_req.rid, everything=recv_req.abort_all):
            self._count("offline_aborted", 1)
            abort = AbortReq(rid=source.rid, finished_reason=recv_req.finished_reason)
            self.send_abort_output(abort, source)
        super().abort_request(recv_req)

    def is_fully_idle(self, for_health_check: bool = False, ignore_waiting: bool = False) -> bool:
        """Not idle while requests are to be taken in."""
        idle = super().is_fully_idle(for_health_check, ignore_waiting)
        return idle and (ignore_waiting or not self.offline_lane)
