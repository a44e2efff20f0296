"""What a draining scheduler does with offline requests: it gives them back unfinished."""

from __future__ import annotations

from http import HTTPStatus

from sglang.srt.managers.schedule_batch import FINISH_ABORT, Req, ScheduleBatch

from echo_sglang.adapter.paced_intake import PacedIntake
from echo_sglang.adapter.release import release_chunk, release_rows
from echo_sglang.adapter.requests import can_release, is_offline

DRAINING = (
    "The server is shutting down; the offline request was given back unfinished. Send it again."
)


class OfflineReturn(PacedIntake):
    """Answers every offline request, running, waiting or new, with 503 once `gives_back`.

    The KV of a running one is checkpointed into the cache as for a preemption, so online
    requests that share its prefix keep it.
    """

    gives_back = False

    def give_offline_back(self) -> None:
        """From now on. Running requests follow at the next iteration's decision."""
        self.gives_back = True
        for source in self.offline_lane.take_matching("", everything=True):
            self._refuse(source, DRAINING)
        for waiting in self.offline_queue.take_matching("", everything=True):
            if waiting.req is not None:
                self._release_aborted_request(waiting.req)
            self._refuse(waiting.source, DRAINING)

    def _give_running_back(self, running_batch: ScheduleBatch) -> None:
        """Call where a plan's releases are applied: nothing else changes the batch then."""
        offline = [req for req in running_batch.reqs if is_offline(req) and not req.finished()]
        rids = frozenset(req.rid for req in offline if can_release(req) and req.output_ids)
        if rids:
            for req in release_rows(running_batch, self.tree_cache, rids):
                self._release_aborted_request(req)
                self._refuse(req, DRAINING)
        for req in offline:
            if req.rid not in rids:
                req.to_finish = FINISH_ABORT(DRAINING, HTTPStatus.SERVICE_UNAVAILABLE)
        chunk = self.chunked_req
        if chunk is not None and is_offline(chunk):
            self.chunked_req = None
            release_chunk(chunk, self.tree_cache)
            self._release_aborted_request(chunk)
            self._refuse(chunk, DRAINING)

    def _refuse_now(self) -> str | None:
        return DRAINING if self.gives_back else super()._refuse_now()

    def _add_request_to_queue(self, req: Req, is_retracted: bool = False) -> None:
        if self.gives_back and is_offline(req) and self._captured is None:
            self._release_aborted_request(req)
            self._refuse(req, DRAINING)
            return
        super()._add_request_to_queue(req, is_retracted)
