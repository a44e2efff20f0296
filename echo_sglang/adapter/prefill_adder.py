"""SGLang's prefill adder, bounded by the plan of this iteration.

Base: sglang/srt/managers/schedule_policy.py::PrefillAdder, chosen through the override
point `Scheduler.get_prefill_adder_class`.
"""

from __future__ import annotations

from typing import Any

from sglang.srt.managers.schedule_batch import Req
from sglang.srt.managers.schedule_policy import AddReqResult, PrefillAdder

from echo_sglang.adapter.requests import is_offline
from echo_sglang.domain.plan import ChunkAction, StepPlan


class EchoPrefillAdder(PrefillAdder):
    """Admits what the plan allows: its chunk, its offline share of it, its KV reserve.

    online_denied_tokens: KV that an online request lacked in this pass, 0 if none did.
    """

    def __init__(self, *args: Any, plan: StepPlan, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._plan = plan
        self._offline_left = plan.offline_tokens
        self.rem_chunk_tokens = min(self.rem_chunk_tokens, plan.chunk_tokens)
        self.online_denied_tokens = 0

    def add_chunked_req(self, req: Req) -> Req | None:
        """Go on with the half-done prefill, or leave it parked as it is."""
        if self._plan.chunk_action is not ChunkAction.CONTINUE:
            return req
        if not is_offline(req):
            return super().add_chunked_req(req)
        before = self.rem_chunk_tokens
        self.rem_chunk_tokens = min(before, self._offline_left)
        result = super().add_chunked_req(req)
        self._charge_offline(before)
        return result

    def add_one_req(
        self, req: Req, has_chunked_req: bool, truncation_align_size: int | None
    ) -> AddReqResult:
        """Try one candidate. A parked chunk keeps SGLang's only chunk slot, so nobody else
        may be cut while there is one."""
        if has_chunked_req and self._extend_tokens(req) > self.rem_chunk_tokens:
            return AddReqResult.OTHER
        if is_offline(req):
            return self._add_offline(req, has_chunked_req, truncation_align_size)
        result = super().add_one_req(req, has_chunked_req, truncation_align_size)
        if result is AddReqResult.NO_TOKEN and req not in self.can_run_list:
            self.online_denied_tokens = len(req.full_untruncated_fill_ids)
        return result

    def _add_offline(
        self, req: Req, has_chunked_req: bool, truncation_align_size: int | None
    ) -> AddReqResult:
        if self._offline_left <= 0:
            return AddReqResult.OTHER
        before = self.rem_chunk_tokens
        self.rem_chunk_tokens = min(before, self._offline_left)
        self.memory_budget.total_offset += self._plan.reserve_tokens
        self.memory_budget.current_offset += self._plan.reserve_tokens
        try:
            result = super().add_one_req(req, has_chunked_req, truncation_align_size)
        finally:
            self.memory_budget.total_offset -= self._plan.reserve_tokens
            self.memory_budget.current_offset -= self._plan.reserve_tokens
            self._charge_offline(before)
        if result is AddReqResult.NO_TOKEN:
            # SGLang would mark the running batch full; only offline work has to wait.
            return AddReqResult.OTHER
        return result

    def _charge_offline(self, before: int) -> None:
        used = min(before, self._offline_left) - self.rem_chunk_tokens
        self._offline_left -= used
        self.rem_chunk_tokens = before - used

    def _extend_tokens(self, req: Req) -> int:
        return len(req.full_untruncated_fill_ids) - req.prefix_len - req.host_hit_length
