"""The plan against plain attention, written as the formula says it, one query at a time."""

from __future__ import annotations

import math

import pytest
import torch

from echo_sglang.platform import attention_plan
from echo_sglang.platform.attention_plan import (
    PADDING_WORTH_A_CALL,
    QUERY_BLOCK,
    Row,
    group_by_length,
    lower_right_mask,
    make_plan,
    run_plan,
)

SCALE = 0.25


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Tiny tensors: waiting for a second thread costs more than it computes."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class World:
    """KV slots scattered over a cache, rows with (cached, new) tokens, their queries."""

    def __init__(self, lengths, *, heads=4, kv_heads=2, head_dim=8, dtype=torch.float32, page=1):
        generator = torch.Generator().manual_seed(7)
        total = sum(-(-(cached + new) // page) for cached, new in lengths)
        pages = torch.randperm(total + 4, generator=generator)
        self.req_to_token = torch.full((len(lengths) + 1, 2048), -1, dtype=torch.int32)
        self.rows, start, used = [], 0, 0
        for line, (cached, new) in enumerate(lengths, start=1):
            num_pages = -(-(cached + new) // page)
            own = pages[used : used + num_pages, None] * page + torch.arange(page)
            self.req_to_token[line, : cached + new] = own.flatten()[: cached + new]
            self.rows.append(
                Row(pool_index=line, query_start=start, query_len=new, kv_len=cached + new)
            )
            start, used = start + new, used + num_pages
        slots = (total + 4) * page

        def random(*shape):
            return torch.randn(*shape, generator=generator).to(dtype)

        self.keys = random(slots, kv_heads, head_dim)
        self.values = random(slots, kv_heads, head_dim)
        self.queries = random(start, heads, head_dim)

    def answer(self, *, window=None):
        plan = make_plan(self.rows, self.req_to_token, window=window, dtype=self.queries.dtype)
        return plan, run_plan(plan, self.queries, self.keys, self.values, scale=SCALE)

    def formula(self, *, window=None):
        """softmax(q k^T * scale) v over the tokens a query may see, in float64."""
        output = torch.full(self.queries.shape, math.nan, dtype=torch.float64)
        group = self.queries.shape[1] // self.keys.shape[1]
        for row in self.rows:
            slots = self.req_to_token[row.pool_index, : row.kv_len].long()
            for new in range(row.query_len):
                position = row.prefix_len + new
                first = 0 if window is None else max(0, position - window)
                keys = self.keys[slots[first : position + 1]].double()
                values = self.values[slots[first : position + 1]].double()
                keys = keys.repeat_interleave(group, dim=1)
                values = values.repeat_interleave(group, dim=1)
                query = self.queries[row.query_start + new].double()
                weights = (torch.einsum("hd,khd->hk", query, keys) * SCALE).softmax(-1)
                output[row.query_start + new] = torch.einsum("hk,khd->hd", weights, values)
        return output


def assert_same(answer, formula, *, atol=1e-5):
    torch.testing.assert_close(answer.double(), formula, atol=atol, rtol=0)


@pytest.mark.parametrize("page", [1, 16])
@pytest.mark.parametrize(
    "lengths",
    [
        pytest.param([(0, 1)], id="the very first token alone"),
        pytest.param([(0, 37)], id="a whole prompt"),
        pytest.param([(100, 37)], id="a chunk after a prefix"),
        pytest.param([(32, 16), (48, 5)], id="chunks that start on a page boundary"),
        pytest.param([(99, 1), (5, 1), (42, 1)], id="decode rows of unlike lengths"),
        pytest.param([(20, 9), (99, 1), (0, 12), (7, 1)], id="a mixed batch"),
        pytest.param([(20, 9), (64, 0), (7, 1)], id="a row that asks for nothing"),
    ],
)
def test_every_new_token_attends_to_its_own_past(lengths, page):
    world = World(lengths, page=page)
    _, answer = world.answer()
    assert_same(answer, world.formula())


@pytest.mark.parametrize("heads, kv_heads", [(4, 4), (9, 3), (8, 1)])
@pytest.mark.parametrize("head_dim", [8, 40, 64])
def test_any_grouping_of_heads_and_any_head_dim(heads, kv_heads, head_dim):
    world = World([(20, 9), (31, 1)], heads=heads, kv_heads=kv_heads, head_dim=head_dim)
    _, answer = world.answer()
    assert_same(answer, world.formula())


def test_bfloat16_differs_from_the_formula_by_rounding_only():
    world = World([(200, 40), (99, 1), (60, 1)], dtype=torch.bfloat16)
    _, answer = world.answer()
    assert answer.dtype == torch.bfloat16
    assert_same(answer, world.formula(), atol=0.02)


@pytest.mark.parametrize("window", [0, 1, 15, 64, 4096])
def test_a_window_hides_older_tokens(window):
    world = World([(50, 20), (0, 30), (90, 1), (3, 1)])
    _, answer = world.answer(window=window)
    assert_same(answer, world.formula(window=window))


@pytest.mark.parametrize("window", [None, 100])
def test_a_long_chunk_is_answered_block_by_block(window):
    world = World([(40, QUERY_BLOCK + 60)])
    plan, answer = world.answer(window=window)
    (chunk,) = plan.chunks
    assert [b.queries.stop - b.queries.start for b in chunk.blocks] == [QUERY_BLOCK, 60]
    assert_same(answer, world.formula(window=window))


def test_a_prompt_with_nothing_cached_needs_no_mask():
    plan, _ = World([(0, QUERY_BLOCK + 60)]).answer()
    assert [block.mask for block in plan.chunks[0].blocks] == [None]


def test_a_poisoned_slot_of_another_request_cannot_reach_an_answer():
    world = World([(20, 9), (99, 1), (0, 12), (7, 1)])
    owned = torch.cat(
        [world.req_to_token[row.pool_index, : row.kv_len].long() for row in world.rows]
    )
    others = torch.ones(world.keys.shape[0], dtype=torch.bool)
    others[owned] = False
    assert others.any()
    world.keys[others] = math.nan
    world.values[others] = math.inf
    _, answer = world.answer()
    assert_same(answer, world.formula())


def test_a_float8_cache_is_read_in_the_dtype_of_the_queries():
    world = World([(20, 9), (31, 1)])
    world.keys = world.keys.to(torch.float8_e5m2)
    world.values = world.values.to(torch.float8_e5m2)
    _, answer = world.answer()
    world.keys, world.values = world.keys.float(), world.values.float()
    assert_same(answer, world.formula())


def test_padding_behind_the_last_row_is_answered_with_zeros():
    world = World([(20, 9), (31, 1)])
    formula = world.formula()
    world.queries = torch.cat([world.queries, torch.full((3, 4, 8), math.nan)])
    _, answer = world.answer()
    assert_same(answer[:10], formula)
    assert answer[10:].tolist() == torch.zeros(3, 4, 8).tolist()


def test_groups_of_interleaved_rows_keep_every_answer_in_place():
    short, long = (10, 1), (PADDING_WORTH_A_CALL + 50, 1)
    world = World([short, long, short, long])
    plan, answer = world.answer()
    assert [group.queries.tolist() for group in plan.groups] == [[1, 3], [0, 2]]
    assert_same(answer, world.formula())


def rows_of_lengths(*kv_lens):
    return [
        Row(pool_index=i, query_start=i, query_len=1, kv_len=kv_len)
        for i, kv_len in enumerate(kv_lens)
    ]


def grouped(rows, *, window=None):
    return [[row.kv_len for row in group] for group in group_by_length(rows, window=window)]


def test_rows_share_a_call_until_padding_costs_more_than_a_call():
    far = 1000 - PADDING_WORTH_A_CALL
    assert grouped(rows_of_lengths(far, 1000, far - 1, 800)) == [[1000, 800, far], [far - 1]]


def test_under_a_window_long_rows_are_alike():
    assert grouped(rows_of_lengths(60, 5000, 900), window=63) == [[5000, 900, 60]]


def test_no_rows_make_no_group():
    assert grouped([]) == []


def test_rows_of_one_length_need_no_mask():
    plan, _ = World([(49, 1), (49, 1)]).answer()
    assert [group.mask for group in plan.groups] == [None]


def test_the_last_query_sees_the_last_key():
    hidden = lower_right_mask(2, 4, window=None, dtype=torch.float32).isinf()
    assert hidden.tolist() == [[False, False, False, True], [False, False, False, False]]


def test_a_window_cuts_the_mask_on_the_left():
    hidden = lower_right_mask(2, 4, window=1, dtype=torch.float32).isinf()
    assert hidden.tolist() == [[True, False, False, True], [True, True, False, False]]


def test_more_new_tokens_than_cached_ones_are_refused():
    with pytest.raises(ValueError, match="3 new tokens of 2"):
        Row(pool_index=1, query_start=0, query_len=3, kv_len=2)


def test_the_planner_imports_no_sglang():
    with open(attention_plan.__file__, encoding="utf-8") as source:
        assert "import sglang" not in source.read()
