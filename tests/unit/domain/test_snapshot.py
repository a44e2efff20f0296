"""Rows kept as columns are the rows they were made of."""

from __future__ import annotations

from dataclasses import replace

from echo_sglang.domain.snapshot import OfflineRow, OfflineRows

ONE = OfflineRow(rid="a", kv_tokens=9, private_tokens=4, output_tokens=2, remaining_tokens=3)
OTHER = replace(ONE, rid="b", kv_tokens=5, releasable=False, preemptions=2, urgency=3.0)


def test_rows_come_back_as_they_were() -> None:
    rows = OfflineRows.of([ONE, OTHER])
    assert list(rows) == [ONE, OTHER]
    assert (len(rows), sum(rows.kv_tokens), sum(rows.urgencies)) == (2, 14, 4.0)
    assert not OfflineRows.of([])
    assert OfflineRows.of([]) == OfflineRows()


def test_without_keeps_the_others_in_their_order() -> None:
    rows = OfflineRows.of([ONE, OTHER, replace(ONE, rid="c")])
    assert [row.rid for row in rows.without({"b"})] == ["a", "c"]
    assert rows.without({"a", "b", "c"}) == OfflineRows()
    assert rows.without(set()) == rows
