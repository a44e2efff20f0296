"""What of SGLang works with Echo: the table in docs/features.md, and the test behind each row.

`scripts/write_features.py` writes the page; a contract test checks that it is up to date, that
every test exists and that what is said to be refused is what `compat` refuses.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum


class Verdict(StrEnum):
    """How Echo treats a feature."""

    WORKS = "works"
    """In both tiers; an offline request that uses it may be preempted and resumes exactly."""
    NOT_PREEMPTED = "works, never preempted"
    """In both tiers; an offline request that uses it keeps its KV and slot until it is done."""
    UNTRIED = "served, never run"
    """Nothing stands against it, but no server of these tests ran it: the test backs a part."""
    LRU_ONLY = "only with `--echo-eviction lru`"
    """SGLang's cache serves it; refused at start with Echo's own."""
    REFUSED = "refused at start"
    """The launcher or the scheduler ends with a message that names it and says what to do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Feature:
    """One row. asked_by: flag, field or kind of model. test: file::function that backs it."""

    name: str
    asked_by: str
    verdict: Verdict
    note: str
    test: str


_LIVE = "tests/e2e/test_features.py::"
_RANKS = "tests/e2e/test_ranks.py::"
_SCRIPTED = "tests/e2e/test_scripted_coscheduling.py::test_the_loop_keeps_its_promises"
_FLAGS = (
    "tests/contract/test_scheduler_contract.py::"
    "test_a_flag_that_echo_cannot_serve_is_refused_by_name"
)
_MODEL = "tests/contract/test_scheduler_contract.py::test_a_model_that_echo_cannot_serve_is_refused"
_CACHE = "tests/contract/test_radix_cache.py::"
_RELEASE = "tests/contract/test_features.py::test_what_sglang_cannot_resume_is_never_released"


def _works(name: str, asked_by: str, note: str, test: str) -> Feature:
    return Feature(name=name, asked_by=asked_by, verdict=Verdict.WORKS, note=note, test=test)


def _kept(name: str, asked_by: str, note: str, test: str) -> Feature:
    return Feature(
        name=name, asked_by=asked_by, verdict=Verdict.NOT_PREEMPTED, note=note, test=test
    )


def _lru(name: str, asked_by: str, note: str, test: str) -> Feature:
    return Feature(name=name, asked_by=asked_by, verdict=Verdict.LRU_ONLY, note=note, test=test)


def _refused(name: str, asked_by: str, note: str, test: str = _FLAGS) -> Feature:
    return Feature(name=name, asked_by=asked_by, verdict=Verdict.REFUSED, note=note, test=test)


FEATURES: tuple[Feature, ...] = (
    _works(
        "Tensor parallel",
        "`--tp-size`",
        "The first rank decides, the others follow its plan and its time; a rank that is out of "
        "step stops with both states. Tested over gloo on one host, not across hosts.",
        _RANKS + "test_three_ranks_run_the_same_batches_under_random_delays",
    ),
    _works(
        "Data parallel replicas",
        "`--dp-size`",
        "Each replica has its own pool, cache, model of step times and status.",
        _RANKS + "test_every_replica_has_a_pool_and_a_status_of_its_own",
    ),
    _works("Overlap schedule, on and off", "`--disable-overlap-schedule`", "", _SCRIPTED),
    _works(
        "Mixed chunks, on and off",
        "`--enable-mixed-chunk`, `--echo-no-mixed-chunk`",
        "On unless told otherwise.",
        _SCRIPTED,
    ),
    Feature(
        name="LoRA",
        asked_by="`--enable-lora`, `lora_path`",
        verdict=Verdict.UNTRIED,
        note="Requests of different adapters are not grouped together. SGLang's LoRA layers pin "
        "memory without asking whether it can be pinned, so no CPU runs them.",
        test="tests/contract/test_offline_queue.py::"
        "test_requests_of_different_adapters_share_no_prefix_before_they_are_built",
    ),
    _works(
        "Parallel samples",
        "`n`",
        "Each sample is an offline request of its own.",
        _LIVE + "test_parallel_samples_of_an_offline_request_all_come",
    ),
    _kept(
        "Grammars (JSON schema, regex, EBNF, structural tags)",
        "`response_format`, `json_schema`, ...",
        "Built on arrival, because the grammar must be compiled first.",
        _LIVE + "test_a_request_with_a_grammar_is_kept_and_its_answer_fits",
    ),
    _kept(
        "Logprobs",
        "`return_logprob`, `logprobs`",
        "Those of the prompt would be lost.",
        _LIVE + "test_logprobs_are_the_same_with_and_without_preemption_of_others",
    ),
    _kept(
        "Hidden states",
        "`--enable-return-hidden-states`",
        "Those of the part already computed would be lost.",
        _RELEASE,
    ),
    _kept(
        "Beam search",
        "`beam_width`",
        "SGLang cannot retract a beam group.",
        _LIVE + "test_a_beam_search_is_kept_and_gives_its_sequences",
    ),
    _kept(
        "Sessions",
        "`session_params`",
        "Their KV belongs to the session. Built on arrival.",
        _LIVE + "test_an_offline_turn_of_a_session_is_kept_and_finds_the_turn_before",
    ),
    _kept(
        "Images, audio, video",
        "multimodal models",
        "Media are processed on arrival. No multimodal model was run.",
        _RELEASE,
    ),
    _kept("Input embeddings", "`input_embeds`", "Resuming would drop outputs.", _RELEASE),
    _lru(
        "Hierarchical cache",
        "`--enable-hierarchical-cache`",
        "Echo's cache ranks KV on the device only.",
        _CACHE + "test_a_flag_that_chooses_another_cache_is_refused_by_name",
    ),
    _lru(
        "LMCache, FlexKV, external cache linkers",
        "`--enable-lmcache`, `--enable-flexkv`, `--enable-unified-cache-external-linker`",
        "As above.",
        _CACHE + "test_a_flag_that_chooses_another_cache_is_refused_by_name",
    ),
    _lru(
        "Session KV in the radix tree",
        "`--enable-session-radix-cache`",
        "As above.",
        _CACHE + "test_a_flag_that_chooses_another_cache_is_refused_by_name",
    ),
    _lru(
        "Sliding-window attention",
        "hybrid models",
        "A preempted request keeps its KV in SGLang's cache.",
        _CACHE + "test_a_preempted_request_of_a_sliding_window_model_keeps_its_kv_in_sglangs_cache",
    ),
    _refused("Pipeline parallel", "`--pp-size`", "Each stage has several batches in flight."),
    _refused(
        "DP attention", "`--enable-dp-attention`, `--attn-dp-size`", "Use `--dp-size` replicas."
    ),
    _refused("Context parallel", "`--attn-cp-size`, `--dcp-size`, `--enable-prefill-cp`", ""),
    _refused(
        "Prefill/decode disaggregation",
        "`--disaggregation-mode`",
        "Offline work fills the gaps between prefill and decode of one engine.",
    ),
    _refused("Encoder disaggregation", "`--encoder-only`, `--language-only`", ""),
    _refused(
        "Speculative decoding",
        "`--speculative-algorithm`, `--decoupled-spec-role`",
        "The step-time model knows rows of one token.",
    ),
    _refused("PD multiplexing", "`--enable-pdmux`", ""),
    _refused("HiSparse", "`--enable-hisparse`", ""),
    _refused(
        "Two-batch overlap",
        "`--enable-two-batch-overlap`, `--enable-single-batch-overlap`",
        "Needs a GPU to be tested.",
    ),
    _refused("Elastic expert parallel", "`--elastic-ep-backend`", ""),
    _refused("Mamba and hybrid state-space models", "model", "", _MODEL),
    _refused("Diffusion language models", "`--dllm-algorithm`, model", "", _MODEL),
    _refused("Embedding models", "`--is-embedding`, model", "They generate nothing.", _MODEL),
    _refused("Priority scheduling", "`--enable-priority-scheduling`", "The tier takes its place."),
    _refused(
        "Prefill delayers", "`--enable-prefill-delayer`, `--min-free-slots-delay`", "Echo decides."
    ),
    _refused("Unchunked prefill", "`--chunked-prefill-size -1`", "Prompts must be cut to fit."),
    _refused("Several tokenizer workers", "`--tokenizer-worker-num`", "They drop the tier."),
    _refused(
        "Rust server",
        "`SGLANG_RUST_SERVER`",
        "It drops the tier.",
        "tests/contract/test_scheduler_contract.py::"
        "test_the_rust_server_is_refused_however_it_is_turned_on",
    ),
    _refused(
        "gRPC server", "`--grpc-port`, `--smg-grpc-mode`, `--grpc-mode`", "It drops the tier."
    ),
    _refused("Ray", "`--use-ray`", ""),
    _refused(
        "Emulated accelerators of several ranks",
        "`--echo-emulate` with `--tp-size`",
        "Name hardware of as many devices.",
        "tests/contract/test_scheduler_contract.py::test_an_emulated_server_has_one_rank",
    ),
)


def page() -> str:
    """docs/features.md."""
    return "\n".join(_lines()) + "\n"


def _lines() -> Iterator[str]:
    yield "# What of SGLang works with Echo"
    yield ""
    yield (
        "Written by `scripts/write_features.py` from `echo_sglang/adapter/features.py`. What is "
        "refused can be served as stock SGLang does with `--echo-off`. Offline requests that are "
        "never preempted hold KV and a slot until they are done: online requests may have to wait "
        "for them."
    )
    yield ""
    yield "| feature | asked for by | with Echo | note | test |"
    yield "|---|---|---|---|---|"
    for row in FEATURES:
        file, _, function = row.test.partition("::")
        test = f"[{function}](../{file})"
        yield f"| {row.name} | {row.asked_by} | {row.verdict} | {row.note} | {test} |"
