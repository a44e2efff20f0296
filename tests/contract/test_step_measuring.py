"""How iterations are measured and noted, with SGLang's own types where it has some."""

from __future__ import annotations

from collections import OrderedDict
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("sglang")

import torch
from sglang.srt.mem_cache.base_prefix_cache import BasePrefixCache, EvictParams, EvictResult
from sglang.srt.model_executor.forward_batch_info import ForwardMode

from echo_sglang.adapter.eviction_meter import EvictionMeter
from echo_sglang.adapter.learning import StepLearning
from echo_sglang.adapter.step_facts import step_facts
from echo_sglang.adapter.step_timer import LaunchedStep, StepTimer, batch_shape
from echo_sglang.adapter.step_trace import StepTraceWriter
from echo_sglang.adapter.step_tracer import StepTracer
from echo_sglang.domain.batch import BatchShape
from echo_sglang.domain.step_record import MAX_REQUEST_PAIRS, StepMode, StepRecord

SHAPE = BatchShape(decode_rows=2, decode_kv_tokens=70)


def launched(decided_s: float, launched_s: float) -> LaunchedStep:
    return LaunchedStep(SHAPE, decided_s, launched_s, "idle")


def req(offline: bool) -> Any:
    return SimpleNamespace(is_offline=offline)


def batch(
    extends: list[tuple[int, int]], rows: list[int], offline: list[bool], iteration: int = 7
) -> Any:
    """A batch as `run_batch` gets it: (chunk, prefix) prompts first, then rows of given KV."""
    reqs = [req(flag) for flag in offline]
    if not extends and not rows:
        mode = ForwardMode.IDLE
    elif not extends:
        mode = ForwardMode.DECODE
    else:
        mode = ForwardMode.MIXED if rows else ForwardMode.EXTEND
    return SimpleNamespace(
        forward_mode=mode,
        forward_iter=iteration,
        reqs=reqs,
        seq_lens_cpu=torch.tensor(rows) if mode is ForwardMode.DECODE else None,
        decoding_reqs=reqs[len(extends) :] if mode is ForwardMode.MIXED else None,
        extend_lens=[chunk for chunk, _ in extends] + [1] * len(rows),
        # SGLang's prefix of a decode row in a mixed batch: all but the token it computes.
        prefix_lens=[prefix for _, prefix in extends] + [kv - 1 for kv in rows],
    )


def facts_of(one: Any, **fields: Any) -> Any:
    values = {"padded_rows": None, "evicted_tokens": 0, "released_rows": 0, **fields}
    return step_facts(one, batch_shape(one), **values)


# ------------------------------------------------------------------------------------ timing


def test_a_step_that_waited_for_nothing_is_timed_from_its_decision() -> None:
    timer = StepTimer()
    timer.launched(launched(1.0, 1.25))
    measured = timer.ended(3.0)
    assert measured is not None
    assert (measured.step_s, measured.device_s) == (2.0, 1.75)


def test_a_step_launched_ahead_is_timed_from_the_end_of_the_one_before() -> None:
    timer = StepTimer()
    timer.launched(launched(1.0, 1.25))
    timer.launched(launched(2.0, 2.25))
    timer.ended(3.0)
    measured = timer.ended(3.5)
    assert measured is not None
    # It was decided and launched while the first still ran, which ended at 3.0.
    assert (measured.step_s, measured.device_s) == (0.5, 0.5)
    assert timer.ended(4.0) is None


def test_a_synchronous_device_is_done_before_its_iteration_is() -> None:
    timer = StepTimer()
    timer.launched(launched(1.0, 1.25))
    measured = timer.ended(3.0, device_end_s=2.75)
    assert measured is not None
    assert (measured.step_s, measured.device_s) == (2.0, 1.5)
    timer.launched(launched(3.25, 3.5))
    measured = timer.ended(4.0)
    assert measured is not None
    assert (measured.step_s, measured.device_s) == (0.75, 0.5)


class BrokenFitter:
    """A model whose fit raises, as one of a numerical library may."""

    def observe(self, shape: BatchShape, seconds: float) -> None:
        raise RuntimeError("did not converge")


def test_a_model_that_fails_is_replaced_and_the_scheduler_goes_on(
    caplog: pytest.LogCaptureFixture,
) -> None:
    counted: list[tuple[str, int]] = []
    scheduler: Any = SimpleNamespace(
        fitter=BrokenFitter(),
        echo_coverage=0.9,
        _count=lambda name, amount: counted.append((name, amount)),
    )
    StepLearning._observe(scheduler, SHAPE, 0.1)
    assert counted == [("step_time_model_failures", 1)]
    assert "did not converge" in caplog.text
    assert not scheduler.fitter.model.trained
    for _ in range(80):
        StepLearning._observe(scheduler, SHAPE, 0.1)
    assert scheduler.fitter.model.predict(SHAPE) == pytest.approx(0.1, rel=0.05)
    assert len(counted) == 1


# ------------------------------------------------------------------------------------- facts


def test_decode_rows_have_the_same_kv_alone_and_beside_prompts() -> None:
    alone = batch_shape(batch([], [40, 30], [False, False]))
    beside = batch_shape(batch([(16, 8)], [40, 30], [False] * 3))
    assert (alone.decode_rows, alone.decode_kv_tokens) == (2, 70)
    assert (beside.decode_rows, beside.decode_kv_tokens) == (2, 70)
    assert (beside.extend_tokens, beside.extend_pairs, beside.extend_square) == (16, 128, 256)


def test_a_mixed_batch_is_noted_by_class() -> None:
    one = batch([(16, 8), (5, 0)], [40, 30, 20], [True, False, False, True, True])
    facts = facts_of(one, evicted_tokens=12, released_rows=1)
    assert facts.mode is StepMode.MIXED
    assert facts.extends == ((16, 8), (5, 0))
    assert (facts.online_rows, facts.online_tokens) == (1, 5)
    assert (facts.sums.rows, facts.sums.tokens, facts.sums.prefix_tokens) == (2, 21, 8)
    assert (facts.iteration, facts.evicted_tokens, facts.released_rows) == (7, 12, 1)


def test_a_batch_of_other_ranks_is_idle() -> None:
    facts = facts_of(batch([], [], []))
    assert (facts.mode, facts.extends, facts.online_rows) == (StepMode.IDLE, (), 0)


def test_of_very_many_prompts_only_the_sums_are_noted() -> None:
    count = MAX_REQUEST_PAIRS + 1
    facts = facts_of(batch([(2, 3)] * count, [], [False] * count))
    assert facts.extends is None
    assert (facts.sums.rows, facts.sums.tokens, facts.sums.pairs) == (count, 2 * count, 6 * count)


# ------------------------------------------------------------------------------------ tracer


class ListWriter(StepTraceWriter):
    """Keeps records instead of writing them."""

    def __init__(self) -> None:
        self.records: list[StepRecord] = []
        self.errors: list[Exception] = []

    def append(self, record: StepRecord) -> None:
        self.records.append(record)

    def switch_off(self, error: Exception) -> None:
        self.errors.append(error)


def tracer(writer: ListWriter, captured: tuple[int, ...] = ()) -> StepTracer:
    meter: Any = SimpleNamespace(take=lambda: 0)
    return StepTracer(writer, meter, started_s=100.0, captured_rows=captured)


def trace_one(one: Any, result: Any, captured: tuple[int, ...] = (), released: int = 0) -> Any:
    writer = ListWriter()
    mine = tracer(writer, captured)
    shape = batch_shape(one)
    timer = StepTimer()
    timer.launched(
        LaunchedStep(shape, 101.0, 101.5, "no_slot", mine.facts(one, shape, result, released))
    )
    measured = timer.ended(103.0)
    assert measured is not None
    mine.record(measured)
    return writer


def test_a_record_holds_what_was_launched_and_what_was_measured() -> None:
    result = SimpleNamespace(can_run_cuda_graph=False)
    (record,) = trace_one(batch([], [40, 30], [True, False]), result, released=3).records
    assert (record.ended_s, record.step_s, record.host_s, record.device_s) == (3.0, 2.0, 0.5, 1.5)
    assert (record.decode_rows, record.decode_kv_tokens, record.online_rows) == (2, 70, 1)
    assert (record.padded_rows, record.released_rows, record.reason) == (None, 3, "no_slot")


def test_rows_are_padded_to_the_next_captured_graph() -> None:
    result = SimpleNamespace(can_run_cuda_graph=True)
    one = batch([], [40, 30, 20], [False] * 3)
    (record,) = trace_one(one, result, captured=(1, 2, 4, 8)).records
    assert record.padded_rows == 4
    (record,) = trace_one(one, result, captured=(1, 2)).records
    assert record.padded_rows is None


def test_a_batch_that_cannot_be_read_switches_the_trace_off_and_is_no_error() -> None:
    writer = trace_one(batch([], [40], [False]), result=SimpleNamespace())
    assert writer.records == []
    assert isinstance(writer.errors[0], AttributeError)


# ----------------------------------------------------------------------------------- evictions


class SmallCache(BasePrefixCache):
    """A cache that evicts what it is asked to, through SGLang's default `evict_for_alloc`."""

    def __init__(self, tokens: int) -> None:
        self.tokens = tokens

    def evict(self, params: EvictParams) -> EvictResult:
        evicted = min(params.num_tokens, self.tokens)
        self.tokens -= evicted
        return EvictResult(num_tokens_evicted=evicted)

    def reset(self) -> None: ...
    def match_prefix(self, params: Any) -> Any: ...
    def inc_lock_ref(self, node: Any) -> Any: ...
    def dec_lock_ref(self, node: Any, params: Any = None) -> Any: ...


def small_cache(tokens: int) -> SmallCache:
    """An instance, whatever further methods the installed release leaves abstract."""
    gaps = OrderedDict((name, lambda *_: None) for name in SmallCache.__abstractmethods__)
    return type("Cache", (SmallCache,), dict(gaps))(tokens)  # type: ignore[no-any-return]


def test_evicted_tokens_are_counted_once_by_either_way_and_taken_once() -> None:
    cache = small_cache(100)
    meter = EvictionMeter(cache)
    assert cache.evict(EvictParams(num_tokens=30)).num_tokens_evicted == 30
    # SGLang's default calls `evict`, which must not count a second time.
    assert cache.evict_for_alloc(EvictParams(num_tokens=50)).num_tokens_evicted == 50
    assert cache.evict(EvictParams(num_tokens=50)).num_tokens_evicted == 20
    assert meter.take() == 100
    assert meter.take() == 0


def test_an_eviction_that_fails_fails_as_before_and_counting_goes_on() -> None:
    cache = small_cache(100)
    meter = EvictionMeter(cache)
    with pytest.raises(NotImplementedError):
        cache.evict_for_alloc(EvictParams(num_tokens=1), allocation_reclaim_satisfied=lambda: True)
    cache.evict(EvictParams(num_tokens=7))
    assert meter.take() == 7
