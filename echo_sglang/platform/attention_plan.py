"""Which queries meet which keys in one forward pass, worked out once for all layers.

Pure torch, no SGLang. A row is one request's share of the batch: its last `query_len` tokens
are new, and all its `kv_len` tokens already have a slot in the KV cache.

- A row with one new token (decode, or a decode row inside a mixed batch) is grouped with rows
  of similar length, padded, and answered by one call for the whole group.
- A row with several new tokens gets one call for every `QUERY_BLOCK` of them, against the keys
  up to the block's end, with a lower-right causal mask.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch.nn.functional import scaled_dot_product_attention

QUERY_BLOCK = 512
"""New tokens a masked call answers; bounds a mask to `QUERY_BLOCK` times the row's length."""

PADDING_WORTH_A_CALL = 512
"""Padded tokens that cost about as much as one more gather and SDPA call (measured: 36 us)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One request in the batch.

    Attributes:
        pool_index: line of the request in `req_to_token`.
        query_start: position of its first new token in the batch's query tensor.
        query_len: its number of new tokens; 0 means that the row asks for nothing.
        kv_len: its tokens in the KV cache, the new ones included.
    """

    pool_index: int
    query_start: int
    query_len: int
    kv_len: int

    def __post_init__(self) -> None:
        if not 0 <= self.query_len <= self.kv_len:
            raise ValueError(
                f"row {self.pool_index}: {self.query_len} new tokens of {self.kv_len}; the new "
                "tokens must be among the cached ones"
            )

    @property
    def prefix_len(self) -> int:
        """Tokens cached before this forward pass."""
        return self.kv_len - self.query_len


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenGroup:
    """Rows with one new token each, answered together.

    Attributes:
        queries: their place in the query tensor: a slice when they are neighbours, else
            [rows] positions.
        slots: [rows * padded_len], KV slots, row by row; a short row repeats its last slot.
        mask: [rows, 1, 1, padded_len], 0 or -inf, or None when no row is padded.
    """

    num_rows: int
    queries: slice | torch.Tensor
    slots: torch.Tensor
    mask: torch.Tensor | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """Consecutive new tokens of one row, and the keys they may see.

    Attributes:
        queries: their place in the query tensor.
        keys: their place among the row's gathered keys.
        mask: [queries, keys], 0 or -inf, or None when `is_causal` says it all.
    """

    queries: slice
    keys: slice
    mask: torch.Tensor | None

    @property
    def is_causal(self) -> bool:
        return self.mask is None


@dataclass(frozen=True, slots=True, kw_only=True)
class Chunk:
    """A row with several new tokens: `slots` [keys] and the calls that answer it."""

    slots: torch.Tensor
    blocks: tuple[Block, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The calls of one forward pass; `num_queries` new tokens get an answer."""

    groups: tuple[TokenGroup, ...]
    chunks: tuple[Chunk, ...]
    num_queries: int


def make_plan(
    rows: Sequence[Row], req_to_token: torch.Tensor, *, window: int | None, dtype: torch.dtype
) -> Plan:
    """Plan the calls for `rows`.

    Args:
        rows: the batch, in any order.
        req_to_token: [requests, context], KV slot of every token of every request.
        window: a token sees itself and this many tokens before it; None means all of them.
        dtype: of the queries, which the masks take over.
    """
    single = [row for row in rows if row.query_len == 1]
    several = [row for row in rows if row.query_len > 1]
    return Plan(
        groups=tuple(
            _make_group(group, req_to_token, window, dtype)
            for group in group_by_length(single, window=window)
        ),
        chunks=tuple(_make_chunk(row, req_to_token, window, dtype) for row in several),
        num_queries=sum(row.query_len for row in rows),
    )


def group_by_length(rows: Sequence[Row], *, window: int | None) -> Iterator[list[Row]]:
    """Yield one-token rows, longest first, so that no row pads more than a call is worth."""
    group: list[Row] = []
    for row in sorted(rows, key=lambda row: -row.kv_len):
        if group and _visible(group[0], window) - _visible(row, window) > PADDING_WORTH_A_CALL:
            yield group
            group = []
        group.append(row)
    if group:
        yield group


def _visible(row: Row, window: int | None) -> int:
    return row.kv_len if window is None else min(row.kv_len, window + 1)


def _make_group(
    rows: Sequence[Row], req_to_token: torch.Tensor, window: int | None, dtype: torch.dtype
) -> TokenGroup:
    rows = sorted(rows, key=lambda row: row.query_start)
    visible = torch.tensor([_visible(row, window) for row in rows])
    kv_len = torch.tensor([row.kv_len for row in rows])
    pool_indices = torch.tensor([row.pool_index for row in rows])
    padded_len = int(visible.max())
    offsets = torch.arange(padded_len).expand(len(rows), padded_len)
    positions = (kv_len - visible)[:, None] + offsets
    slots = req_to_token[pool_indices[:, None], positions.clamp(max=(kv_len - 1)[:, None])]
    mask = None
    if int(visible.min()) < padded_len:
        mask = torch.zeros(len(rows), padded_len, dtype=dtype)
        mask.masked_fill_(offsets >= visible[:, None], float("-inf"))
        mask = mask[:, None, None, :]
    return TokenGroup(num_rows=len(rows), queries=_place(rows), slots=slots.reshape(-1), mask=mask)


def _place(rows: Sequence[Row]) -> slice | torch.Tensor:
    first, last = rows[0].query_start, rows[-1].query_start
    if last - first == len(rows) - 1:
        return slice(first, last + 1)
    return torch.tensor([row.query_start for row in rows])


def _make_chunk(
    row: Row, req_to_token: torch.Tensor, window: int | None, dtype: torch.dtype
) -> Chunk:
    first_key = 0 if window is None else max(0, row.prefix_len - window)
    slots = req_to_token[row.pool_index, first_key : row.kv_len].contiguous()
    whole = slice(row.query_start, row.query_start + row.query_len)
    if row.prefix_len == 0 and (window is None or row.kv_len <= window + 1):
        block = Block(queries=whole, keys=slice(0, row.kv_len), mask=None)
        return Chunk(slots=slots, blocks=(block,))
    blocks = []
    for begin in range(0, row.query_len, QUERY_BLOCK):
        end = min(begin + QUERY_BLOCK, row.query_len)
        low = first_key if window is None else max(first_key, row.prefix_len + begin - window)
        high = row.prefix_len + end
        blocks.append(
            Block(
                queries=slice(row.query_start + begin, row.query_start + end),
                keys=slice(low - first_key, high - first_key),
                mask=lower_right_mask(end - begin, high - low, window=window, dtype=dtype),
            )
        )
    return Chunk(slots=slots, blocks=tuple(blocks))


def lower_right_mask(
    num_queries: int, num_keys: int, *, window: int | None, dtype: torch.dtype
) -> torch.Tensor:
    """Return [num_queries, num_keys] of 0 and -inf; the last query sees the last key."""
    diagonal = num_keys - num_queries
    mask = torch.full((num_queries, num_keys), float("-inf"), dtype=dtype).triu_(diagonal + 1)
    if window is not None:
        too_old = torch.ones(num_queries, num_keys, dtype=torch.bool).tril_(diagonal - window - 1)
        mask.masked_fill_(too_old, float("-inf"))
    return mask


def run_plan(
    plan: Plan,
    query: torch.Tensor,
    key_cache: torch.Tensor,
    value_cache: torch.Tensor,
    *,
    scale: float,
) -> torch.Tensor:
    """Return [tokens, heads, value_dim]: the answers, and zero for a query that no row names.

    Args:
        query: [tokens, heads, head_dim].
        key_cache: [slots, kv_heads, head_dim], the new tokens' keys already written.
        value_cache: [slots, kv_heads, value_dim].
        scale: factor on the scores.
    """
    answers = list(_answers(plan, query, key_cache, value_cache, scale))
    num_tokens, num_heads = query.shape[:2]
    if len(answers) == 1 and answers[0][1].shape[0] == num_tokens:
        return answers[0][1]
    shape = (num_tokens, num_heads, value_cache.shape[-1])
    output = query.new_empty(shape) if plan.num_queries == num_tokens else query.new_zeros(shape)
    for queries, answer in answers:
        if isinstance(queries, slice):
            output[queries] = answer
        else:
            output.index_copy_(0, queries, answer)
    return output


def _answers(
    plan: Plan,
    query: torch.Tensor,
    key_cache: torch.Tensor,
    value_cache: torch.Tensor,
    scale: float,
) -> Iterator[tuple[slice | torch.Tensor, torch.Tensor]]:
    """Yield every call's place in the query tensor and its answer, [queries, heads, value_dim]."""
    gqa = query.shape[1] != key_cache.shape[1]
    for group in plan.groups:
        keys = _gather(key_cache, group.slots, query.dtype).unflatten(0, (group.num_rows, -1))
        values = _gather(value_cache, group.slots, query.dtype).unflatten(0, (group.num_rows, -1))
        in_slice = isinstance(group.queries, slice)
        own = query[group.queries] if in_slice else query.index_select(0, group.queries)
        answer = scaled_dot_product_attention(
            own.unsqueeze(2),
            keys.transpose(1, 2),
            values.transpose(1, 2),
            attn_mask=group.mask,
            scale=scale,
            enable_gqa=gqa,
        )
        yield group.queries, answer.squeeze(2)
    heads_first = query.transpose(0, 1)
    for chunk in plan.chunks:
        keys = _gather(key_cache, chunk.slots, query.dtype).transpose(0, 1)
        values = _gather(value_cache, chunk.slots, query.dtype).transpose(0, 1)
        for block in chunk.blocks:
            answer = scaled_dot_product_attention(
                heads_first[None, :, block.queries],
                keys[None, :, block.keys],
                values[None, :, block.keys],
                attn_mask=block.mask,
                is_causal=block.is_causal,
                scale=scale,
                enable_gqa=gqa,
            )
            yield block.queries, answer[0].transpose(0, 1)


def _gather(cache: torch.Tensor, slots: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    gathered = cache.index_select(0, slots)
    return gathered if gathered.dtype == dtype else gathered.to(dtype)
