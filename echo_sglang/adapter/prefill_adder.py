"""SGLang's prefill adder, bounded by the plan of this iteration.

Base: sglang/srt/managers/schedule_policy.py::PrefillAdder, chosen through the override
point `Scheduler.get_prefill_adder_class`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

from sglang.srt.managers.schedule_batch import Req
from sglang.srt.managers.schedule_policy import AddReqResult, PrefillAdder

from echo_sglang.adapter.requests import is_offline
from echo_sglang.domain.plan import ChunkAction, StepPlan

Result = TypeVar("Result")


class EchoPrefillAdder(PrefillAdder):
    """Admits what the plan allows: its chunk, its offline share of it, its KV reserve.

    online_denied_tokens: KV that an online request lacked in this pass, 0 if none did.
    """

    def __init__(self, *args: Any, plan: StepPlan, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._plan = plan
        self._server_left = self.rem_chunk_tokens
        self._left = plan.chunk_tokens
        self._offline_left = plan.offline_tokens
        self._bound(self._left)
        self.online_denied_tokens = 0

    def add_chunked_req(self, req: Req) -> Req | None:
        """Go on with the half-done prefill, or leave it parked as it is."""
        if self._plan.chunk_action is not ChunkAction.CONTINUE:
            return req
        limit = self._plan.chunk_limit_tokens
        return self._within_plan(req, partial(super().add_chunked_req, req), limit)

    def add_one_req(
        self, req: Req, has_chunked_req: bool, truncation_align_size: int | None
    ) -> AddReqResult:
        """Try one candidate. A parked chunk keeps SGLang's only chunk slot, so nobody else
        may be cut while there is one."""
        if has_chunked_req and self._paged_extend_tokens(req) > self.rem_chunk_tokens:
            return AddReqResult.OTHER
        admit = partial(super().add_one_req, req, has_chunked_req, truncation_align_size)
        if is_offline(req):
            return self._add_offline(req, admit)
        result = self._within_plan(req, admit)
        if result is AddReqResult.NO_TOKEN and req not in self.can_run_list:
            self.online_denied_tokens = len(req.full_untruncated_fill_ids)
        return result

    def _add_offline(self, req: Req, admit: Callable[[], AddReqResult]) -> AddReqResult:
        if self._offline_left <= 0:
            return AddReqResult.OTHER
        self.memory_budget.total_offset += self._plan.reserve_tokens
        self.memory_budget.current_offset += self._plan.reserve_tokens
        try:
            result = self._within_plan(req, admit)
        finally:
            self.memory_budget.total_offset -= self._plan.reserve_tokens
            self.memory_budget.current_offset -= self._plan.reserve_tokens
        if result is AddReqResult.NO_TOKEN:
            # SGLang would mark the running batch full; only offline work has to wait.
            return AddReqResult.OTHER
        return result

    def _within_plan(
        self, req: Req, admit: Callable[[], Result], limit: int | None = None
    ) -> Result:
        """Let SGLang admit within what the plan leaves, `limit` at most, and take off what it
        admitted.

        SGLang charges whole pages, the plan counts tokens: the bound is rounded up to a page
        for every request, so that its last page is not denied to it.
        """
        offline = is_offline(req)
        left = min(self._left, self._offline_left) if offline else self._left
        self._bound(left if limit is None else min(left, limit))
        before, admitted = self.rem_chunk_tokens, len(self.can_run_list)
        try:
            return admit()
        finally:
            self._server_left -= before - self.rem_chunk_tokens
            if len(self.can_run_list) > admitted:
                used = req.extend_end - req.prefix_len
                self._left -= used
                self._offline_left -= used if offline else 0
            self._bound(self._left)

    def _bound(self, tokens: int) -> None:
        self.rem_chunk_tokens = min(self._server_left, self.ceil_paged_tokens(max(tokens, 0)))

    def _paged_extend_tokens(self, req: Req) -> int:
        extend = len(req.full_untruncated_fill_ids) - req.prefix_len - req.host_hit_length
        return int(self.ceil_paged_tokens(extend))
