"""The step trace against SGLang's forward pass metrics: placed side by side, then compared."""

from __future__ import annotations

from dataclasses import replace

from echo_sglang.domain.step_record import StepRecord
from echo_sglang.estimate.trace_check import ForwardPass, check_trace
from tests.unit.trace_kit import load


def passes_of(records: list[StepRecord], first_sequence: int = 0) -> list[ForwardPass]:
    """What SGLang would have told of the same iterations."""
    return [
        ForwardPass(
            sequence=first_sequence + index,
            seconds=one.device_s,
            extend_rows=one.sums.rows,
            extend_tokens=one.sums.tokens,
            prefix_tokens=one.sums.prefix_tokens,
            decode_rows=one.decode_rows,
            decode_kv_tokens=one.decode_kv_tokens + one.decode_rows,
        )
        for index, one in enumerate(records)
    ]


HEARTBEAT = ForwardPass(
    sequence=0,
    seconds=0.0,
    extend_rows=0,
    extend_tokens=0,
    prefix_tokens=0,
    decode_rows=0,
    decode_kv_tokens=0,
)


def test_a_subscriber_that_came_late_is_placed_where_it_belongs() -> None:
    records = load(300)
    found = check_trace(records, passes_of(records[120:250], first_sequence=77))
    assert found.agrees
    assert (found.compared, found.only_trace, found.only_forward_pass) == (130, 0, 0)
    assert found.device_time_ratio == 1.0


def test_heartbeats_are_no_iterations_but_count_as_messages() -> None:
    records = load(100)
    seen = passes_of(records)
    later = [replace(one, sequence=one.sequence + 1) for one in seen[40:]]
    found = check_trace(records, [*seen[:40], replace(HEARTBEAT, sequence=40), *later])
    assert found.agrees and found.compared == 100


def test_messages_that_were_lost_are_counted_and_the_rest_still_compared() -> None:
    records = load(200)
    seen = passes_of(records)
    found = check_trace(records, [*seen[:50], *seen[90:]])
    assert found.agrees
    assert (found.compared, found.only_trace) == (160, 40)


def test_records_that_the_trace_lacks_are_told() -> None:
    records = load(200)
    found = check_trace([*records[:100], *records[103:]], passes_of(records))
    assert not found.agrees
    assert (found.compared, found.only_forward_pass, found.counts) == (197, 3, {})


def test_every_value_that_differs_is_told_with_its_iteration() -> None:
    records = load(100)
    seen = passes_of(records)
    seen[10] = replace(seen[10], prefix_tokens=seen[10].prefix_tokens + 1)
    seen[20] = replace(seen[20], seconds=1.3 * seen[20].seconds + 0.01)
    rows = seen[30].decode_rows
    seen[30] = replace(seen[30], decode_kv_tokens=seen[30].decode_kv_tokens + rows + 1)
    found = check_trace(records, seen)
    assert found.counts == {"prefix_tokens": 1, "device_s": 1, "decode_kv_tokens": 1}
    assert [one.iteration for one in found.shown] == [11, 21, 31]


def test_a_run_that_fits_nowhere_is_not_compared() -> None:
    found = check_trace(load(100, seed=1), passes_of(load(50, seed=2)))
    assert not found.agrees
    assert (found.compared, found.only_forward_pass) == (0, 50)


def test_of_two_runs_the_newest_is_compared() -> None:
    old, new = load(80, seed=3), load(60, seed=4)
    assert check_trace([*old, *new], passes_of(new)).compared == 60


def test_nothing_received_is_no_agreement() -> None:
    assert not check_trace(load(10), []).agrees
    assert not check_trace([], passes_of(load(10))).agrees
