"""The way out of an emulated scheduler: what each client receives, and when."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sglang.srt.managers.io_struct import AbortReq
from sglang.srt.managers.schedule_batch import Req
from sglang.srt.managers.scheduler_components.output_sender import SenderWrapper
from sglang.srt.managers.scheduler_components.output_streamer import SchedulerOutputStreamer

if TYPE_CHECKING:
    from echo_sglang.sim.scheduler import Emulator


class EmulatedSender(SenderWrapper):
    """In place of SGLang's sockets: requests that SGLang gave up before they ran."""

    def __init__(self, emulator: Emulator) -> None:
        super().__init__(None)
        self._emulator = emulator

    def send_output(self, output: Any, recv_obj: Any = None) -> None:
        """Take one output of the scheduler; there is nobody else to send it to."""
        if isinstance(output, AbortReq):
            self._emulator.finished(output.rid, "abort")


class EmulatedStreamer(SchedulerOutputStreamer):
    """Tells the emulator how many tokens each client has, without making messages of them.

    As SGLang's own with a stream interval of 1: who streams gets every token at once, who
    does not gets all of them in the end.
    """

    emulator: Emulator

    def stream_output(
        self, reqs: list[Req], return_logprob: bool, skip_req: Req | None = None
    ) -> None:
        """Deliver what the requests of a batch have by now; `skip_req` is half done."""
        for req in reqs:
            if req is skip_req:
                continue
            if req.finished_reason is None:
                if req.stream:
                    self.emulator.received(req.rid, len(req.output_ids))
            elif not req.finished_output:
                self._finish(req)

    def _finish(self, req: Req) -> None:
        req.finished_output = True
        if req.finished_len is None:
            req.finished_len = len(req.output_ids)
        record = self.emulator.received(req.rid, len(req.output_ids_through_stop))
        record.cached_tokens = req.cached_tokens
        record.preemptions = req.retraction_count
        self.emulator.finished(req.rid, req.finished_reason.to_json()["type"])
