"""Step traces: what was written is read, and whatever is not a trace is refused by line."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from echo_sglang.domain.step_record import COLUMNS, MAX_REQUEST_PAIRS, ExtendSums, StepMode
from echo_sglang.errors import TraceError
from echo_sglang.estimate.step_trace import read_step_trace
from tests.unit.trace_kit import IDENTITY, lines, load, record


def with_value(name: str, value: object) -> list[str]:
    """A trace of three iterations whose second has one value replaced."""
    text = lines([record(1, ((5, 0),)), record(2, ((8, 5),), rows=2), record(3, rows=1)])
    row = json.loads(text[2])
    row[COLUMNS.index(name)] = value
    text[2] = json.dumps(row) + "\n"
    return text


def test_a_trace_is_read_as_it_was_written() -> None:
    records = load(200)
    trace = read_step_trace([("t.jsonl", lines(records))])
    assert [r.shape for r in trace.records] == [r.shape for r in records]
    assert [r.extends for r in trace.records] == [r.extends for r in records]
    assert trace.records[17].step_s == pytest.approx(records[17].step_s, abs=1e-6)
    assert trace.header.identity == IDENTITY
    assert trace.torn == ()


def test_of_many_prefilling_requests_the_sums_are_kept() -> None:
    many = tuple((i + 1, 10 * i) for i in range(MAX_REQUEST_PAIRS + 1))
    whole = record(1, many)
    row = json.loads(lines([whole])[1])
    row[COLUMNS.index("extends")] = None
    sums = ExtendSums.of(many)
    row[COLUMNS.index("extend_sums")] = [
        *(sums.rows, sums.tokens, sums.prefix_tokens, sums.pairs, sums.square)
    ]
    trace = read_step_trace([("t", [lines([])[0], json.dumps(row) + "\n"])])
    assert trace.records[0].extends is None
    # Which of them was the longest is lost: the mean stands for it.
    mean = sums.prefix_tokens // len(many)
    assert trace.records[0].shape == whole.shape._replace(longest_prefix=mean)


def test_the_offline_share_is_what_the_online_one_leaves() -> None:
    one = record(1, ((30, 0), (12, 5)), rows=7, online_rows=3, online_tokens=30)
    assert (one.offline_rows, one.offline_tokens, one.mode) == (4, 12, StepMode.MIXED)


def test_rotated_files_are_one_trace() -> None:
    records = load(30)
    trace = read_step_trace([("t.1", lines(records[:10])), ("t", lines(records[10:]))])
    assert [r.iteration for r in trace.records] == list(range(1, 31))


def test_a_torn_last_line_is_left_out_and_named() -> None:
    text = lines(load(5))
    text[-1] = text[-1][:20]
    trace = read_step_trace([("t", text)])
    assert len(trace.records) == 4
    assert "t line 6" in trace.torn[0]


def test_a_torn_line_of_a_server_that_was_killed_before_the_newest_began_is_tolerated() -> None:
    old = lines(load(5), started_unix_s=500.0)
    old[-1] = old[-1][:20]
    trace = read_step_trace([("t.1", old), ("t", lines(load(3)))])
    assert len(trace.records) == 4 + 3
    assert "t.1 line 6" in trace.torn[0]


def test_a_torn_line_in_the_middle_of_one_servers_trace_is_corruption() -> None:
    old = lines(load(5))
    old[-1] = old[-1][:20]
    with pytest.raises(TraceError, match=r"t.1 line 6.*went on in t"):
        read_step_trace([("t.1", old), ("t", lines(load(3)))])


def test_a_torn_line_that_others_follow_is_corruption() -> None:
    text = lines(load(5))
    text[3] = text[3][:20]
    with pytest.raises(TraceError, match="t line 4"):
        read_step_trace([("t", text)])


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("step_s", float("nan"), "NaN"),
        ("step_s", float("inf"), "Infinity"),
        ("step_s", -0.1, "step_s -0.1"),
        ("step_s", "fast", "step_s 'fast'"),
        ("device_s", True, "device_s True"),
        ("iteration", 1, "iteration 1 after 1"),
        ("iteration", 2.5, "iteration 2.5"),
        ("mode", "warp", "mode 'warp'"),
        ("mode", "decode", "mode decode with 8 prompt tokens"),
        ("extends", [[8]], "pairs of chunk and prefix"),
        ("extends", [[8, -5]], "extends -5"),
        ("extends", None, "five sums"),
        ("decode_rows", 0, "mode mixed"),
        ("online_rows", 3, "more online work than work"),
        ("padded_rows", "8", "padded_rows '8'"),
        ("evicted_tokens", None, "evicted_tokens None"),
    ],
)
def test_a_wrong_value_is_refused_with_its_line(name: str, value: object, said: str) -> None:
    with pytest.raises(TraceError) as refusal:
        read_step_trace([("t.jsonl", with_value(name, value))])
    assert "t.jsonl line 3" in str(refusal.value)
    assert said in str(refusal.value)


def changed_header(**changes: object) -> Callable[[], list[str]]:
    def make() -> list[str]:
        text = lines(load(2))
        text[0] = json.dumps({**json.loads(text[0]), **changes}) + "\n"
        return text

    return make


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: [], "t is empty"),
        (lambda: ["\n"], "t line 1"),
        (lambda: ['{"schema'], "no whole line"),
        (lambda: lines([]), "no iteration"),
        (lambda: lines(load(2))[1:], "a header of schema"),
        (lambda: [*lines(load(2)), "{}\n"], "line 4.*an array of 16 values"),
        (lambda: [*lines(load(2)), "[1,2]\n"], "line 4.*an array of 16 values"),
        (lambda: [*lines(load(2)), "\x00\ufffd\n"], "line 4.*not JSON"),
        (lambda: [*lines(load(2)), "[" * 100_000 + "\n"], "line 4"),
        (lambda: [*lines(load(2)), "1" * 10_000 + "\n"], "line 4"),
        (changed_header(schema="other"), "a header of schema"),
        (changed_header(version=2), "version 2; expected version 1"),
        (changed_header(columns=["iteration"]), "columns"),
        (changed_header(identity=None), "no identity"),
        (changed_header(limits={"rows": -1}), "rows -1"),
        (changed_header(started_unix_s=None), "started_unix_s None"),
    ],
)
def test_what_is_no_trace_is_refused(make: Callable[[], list[str]], said: str) -> None:
    with pytest.raises(TraceError, match=said):
        read_step_trace([("t", make())])


def test_no_file_at_all_says_how_to_get_one() -> None:
    with pytest.raises(TraceError, match="--echo-trace"):
        read_step_trace([])


def test_files_of_unlike_servers_are_refused_by_what_differs() -> None:
    other = {**IDENTITY, "model": "large"}
    with pytest.raises(TraceError, match="model is 'large' and 'tiny'"):
        read_step_trace([("t.1", lines(load(2), identity=other)), ("t", lines(load(2)))])
