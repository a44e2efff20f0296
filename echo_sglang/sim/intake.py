"""Workload requests as SGLang's scheduler receives them."""

from __future__ import annotations

from sglang.srt.managers.io_struct import TokenizedGenerateReqInput
from sglang.srt.sampling.sampling_params import SamplingParams

from echo_sglang.domain.tag import CUSTOM_PARAMS_KEY, RequestTag
from echo_sglang.sim.clock import START_S
from echo_sglang.sim.workload import Request, prompt_ids

ONLINE_PRIORITY = 100
OFFLINE_PRIORITY = 0
"""Further apart than SGLang's --priority-scheduling-preemption-threshold (10): only then do online
requests take the slots of running offline ones."""


def tokenized(request: Request, *, uses_priority: bool) -> TokenizedGenerateReqInput:
    """The message that SGLang's tokenizer would send: greedy, online ones streamed.

    uses_priority: say the class to a stock scheduler, larger first; Echo reads the tag.
    """
    deadline_s = None if request.deadline_s is None else request.deadline_s + START_S
    tag = RequestTag(
        service_class=request.service_class,
        deadline_unix_s=deadline_s,
        job=request.job,
        weight=request.weight,
    )
    params = SamplingParams(
        max_new_tokens=request.allowed_tokens,
        temperature=0.0,
        ignore_eos=request.ignores_eos,
        custom_params={CUSTOM_PARAMS_KEY: tag.to_custom_params()},
    )
    params.normalize(tokenizer=None)
    priority = OFFLINE_PRIORITY if request.is_offline else ONLINE_PRIORITY
    return TokenizedGenerateReqInput(
        rid=request.rid,
        input_text="",
        input_ids=prompt_ids(request.prompt),
        input_embeds=None,
        mm_inputs=None,
        token_type_ids=None,
        sampling_params=params,
        return_logprob=False,
        logprob_start_len=-1,
        top_logprobs_num=0,
        token_ids_logprob=None,
        stream=not request.is_offline,
        priority=priority if uses_priority else None,
    )
