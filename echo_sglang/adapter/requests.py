"""SGLang's request with Echo's tag made typed."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

from sglang.srt.managers.io_struct import TokenizedGenerateReqInput
from sglang.srt.managers.schedule_batch import Req

from echo_sglang.domain.tag import RequestTag, ServiceClass
from echo_sglang.policy.attainment import OnlineProgress
from echo_sglang.policy.offline_pool import OfflineEntry


class EchoReq(Req):
    """A request that knows its class: `is_offline` for service tier "flex".

    `progress` is set for online ones only. `admitted_as` is how an offline one waited before it
    was admitted last, None before. `end_noted`: its end was counted. `row_facts`: see `facts_of`.

    Source of the base: sglang/srt/managers/schedule_batch.py::Req, built through the
    extension point `Scheduler._create_generation_req`.
    """

    def __init__(self, *args: Any, tag: RequestTag, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.tag = tag
        # Plain attributes, since every iteration asks every row.
        self.is_offline = tag.service_class is ServiceClass.OFFLINE
        self.progress: OnlineProgress | None = None
        self.cached_tokens_at_arrival = 0
        self.admitted_as: OfflineEntry | None = None
        self.end_noted = False
        self.row_facts: RowFacts | None = None


def is_offline(req: Req) -> bool:
    """True for an offline request; requests that Echo did not create are online."""
    return getattr(req, "is_offline", False)


def num_offline(reqs: Iterable[Req]) -> int:
    """How many of them are offline requests; quick, for whole batches."""
    return [getattr(req, "is_offline", False) for req in reqs].count(True)


def tag_of(recv_req: TokenizedGenerateReqInput) -> RequestTag:
    """The tag that a tokenized request carries. Raises RequestError if it is malformed."""
    params = recv_req.sampling_params
    return RequestTag.from_custom_params(None if params is None else params.custom_params)


def namespace_of(source: Req | TokenizedGenerateReqInput) -> tuple[str | None, str | None]:
    """(extra_key, cache_salt) of a request, built or not: only requests with equal ones share KV.

    SGLang puts the LoRA adapter into the key of a request when it builds it
    (sglang/srt/managers/schedule_batch.py::Req.__init__).
    """
    key = source.extra_key
    if not isinstance(source, Req) and source.lora_id is not None:
        key = (key or "") + source.lora_id
    return key, source.cache_salt


def can_wait_as_tokens(recv_req: TokenizedGenerateReqInput) -> bool:
    """True if the request may wait unbuilt: nothing must be prepared before it runs.

    Grammars are compiled, sessions opened and media processed at arrival, so such
    requests become SGLang requests at once.
    """
    params = recv_req.sampling_params
    has_grammar = any(
        getattr(params, name, None) for name in ("json_schema", "regex", "ebnf", "structural_tag")
    )
    return not (
        has_grammar
        or recv_req.input_embeds is not None
        or recv_req.mm_inputs is not None
        or recv_req.session_params is not None
        or recv_req.session_id is not None
        or recv_req.positional_embed_overrides is not None
        or recv_req.require_reasoning
    )


def can_release(req: Req) -> bool:
    """True if the KV of a running request can be taken away now and the request resumed."""
    return req.finished_reason is None and req.to_finish is None and can_resume(req)


def can_resume(req: Req) -> bool:
    """True if SGLang can resume a request exactly whose KV was taken away.

    Retracting input embeddings drops outputs, beam groups cannot be retracted, session
    KV belongs to the session, and returned prompt logprobs or hidden states of the part
    already computed would be lost.
    """
    return (
        req.input_embeds is None
        and req.multimodal_inputs is None
        and req.beam_group is None
        and req.session is None
        and req.grammar is None
        and not req.return_logprob
        and not req.return_hidden_states
    )


class RowFacts(NamedTuple):
    """What stays the same of a request while it decodes."""

    rid: str
    prompt_tokens: int
    max_new_tokens: int
    ignores_eos: bool
    is_offline: bool
    can_resume: bool
    has_deadline: bool


def facts_of(req: Req) -> RowFacts:
    """The facts of a request that decodes, found out once: every iteration asks every row."""
    facts: RowFacts | None = getattr(req, "row_facts", None)
    if facts is None:
        params = req.sampling_params
        facts = RowFacts(
            rid=req.rid,
            prompt_tokens=len(req.origin_input_ids),
            max_new_tokens=params.max_new_tokens,
            ignores_eos=params.ignore_eos,
            is_offline=is_offline(req),
            can_resume=can_resume(req),
            has_deadline=isinstance(req, EchoReq) and req.tag.deadline_unix_s is not None,
        )
        if isinstance(req, EchoReq):
            req.row_facts = facts
    return facts
