"""Generators that run inside the scheduler process, one `next` per iteration.

Sizes they count on are the flags of test_scripted_coscheduling.py: 4 request slots, chunks of
64 tokens, 900 KV tokens, SLOs that no slow machine can miss.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.e2e.script_kit import OFFLINE, ONLINE, Driver, Steps, prompt

if TYPE_CHECKING:
    from sglang.test.scripted_runtime.context import ScriptedContext

SLOTS = 4
CHUNK_TOKENS = 64
KV_TOKENS = 900

DOCUMENTS = {f"doc-{i}": (prompt(i, 40 + 15 * i), 24) for i in range(1, 5)}
LONG_DOCUMENT = (prompt(9, 300), 12)
"""Five chunks."""


def _undisturbed(driver: Driver, work: dict[str, tuple[list[int], int]]) -> Steps:
    """Run each request alone, offline; its outputs are then those of "alone-" + its id."""
    for rid, (tokens, num_new) in work.items():
        driver.send(f"alone-{rid}", tokens, num_new, **OFFLINE)
        yield from driver.until_finished(f"alone-{rid}")
        assert driver.num_outputs(f"alone-{rid}") == num_new
    yield from driver.flush()


def released_rows_resume_exactly(ctx: ScriptedContext, mixed: bool) -> Steps:
    """Offline rows fill all slots; an online burst takes three; all outputs stay the same."""
    driver = Driver(ctx, mixed=mixed)
    yield from _undisturbed(driver, DOCUMENTS)
    released_before = driver.counter("rows_released")
    for rid, (tokens, num_new) in DOCUMENTS.items():
        driver.send(rid, tokens, num_new, **OFFLINE)
    yield from driver.until(
        lambda: all(driver.num_outputs(rid) >= 3 for rid in DOCUMENTS), "four offline rows decode"
    )
    burst = [f"chat-{i}" for i in range(3)]
    for i, rid in enumerate(burst):
        driver.send(rid, prompt(20 + i, 50), 6, **ONLINE)
    iterations = 0
    while not all(driver.num_outputs(rid) for rid in burst):
        yield from driver.step()
        iterations += 1
        # 150 prompt tokens in chunks of 64 are 3 iterations; overlap shows results one late.
        assert iterations <= 8, driver.state()
    yield from driver.until_finished(*burst, *DOCUMENTS)
    yield from driver.until_idle()
    assert driver.counter("rows_released") - released_before >= 3, driver.state()
    preempted = [rid for rid in DOCUMENTS if driver.reqs[rid].retraction_count]
    assert len(preempted) >= 3
    for rid in DOCUMENTS:
        assert driver.outputs(rid) == driver.outputs(f"alone-{rid}"), rid
    for rid in preempted:
        assert driver.finished_order.index(rid) > max(map(driver.finished_order.index, burst))
    driver.assert_nothing_locked()


def a_chunk_is_released_for_a_prompt_that_does_not_fit(ctx: ScriptedContext, mixed: bool) -> Steps:
    """The half-done prefill goes back to the pool and later resumes from its cached part."""
    driver = Driver(ctx, mixed=mixed)
    yield from _undisturbed(driver, {"long": LONG_DOCUMENT})
    released_before = driver.counter("chunks_released")
    driver.send("long", *LONG_DOCUMENT, **OFFLINE)
    yield from driver.until(lambda: driver.is_chunking("long", CHUNK_TOKENS), "half-done prefill")
    driver.send("chat", prompt(30, 2 * CHUNK_TOKENS), 4, **ONLINE)
    yield from driver.until(lambda: driver.is_pooled("long"), "back in the pool", limit=4)
    assert driver.counter("chunks_released") == released_before + 1
    yield from driver.until(lambda: driver.is_chunking("long"), "prefill again")
    assert driver.num_outputs("chat") >= 1
    assert driver.is_chunking("long", CHUNK_TOKENS), "its first chunk is not computed again"
    yield from driver.until_finished("chat", "long")
    yield from driver.until_idle()
    assert driver.outputs("long") == driver.outputs("alone-long")
    driver.assert_nothing_locked()


def a_chunk_is_parked_for_a_prompt_that_fits(ctx: ScriptedContext, mixed: bool) -> Steps:
    """The half-done prefill sits out, keeps what it computed, and loses no token."""
    driver = Driver(ctx, mixed=mixed)
    yield from _undisturbed(driver, {"long": LONG_DOCUMENT})
    driver.send("long", *LONG_DOCUMENT, **OFFLINE)
    for i in range(3):
        reached = 50 * (i + 1)
        yield from driver.until(
            lambda reached=reached: driver.is_chunking("long", reached),
            f"{reached} tokens prefilled",
        )
        driver.send(f"chat-{i}", prompt(40 + i, 20), 3, **ONLINE)
        yield from driver.step()
    yield from driver.until_finished("long", "chat-0", "chat-1", "chat-2")
    yield from driver.until_idle()
    assert driver.num_parks("long") >= 1
    assert driver.reqs["long"].retraction_count == 0
    assert driver.outputs("long") == driver.outputs("alone-long")
    driver.assert_nothing_locked()


def aborts_give_everything_back(ctx: ScriptedContext, mixed: bool) -> Steps:
    """Abort mid-prefill, mid-decode, pooled and unbuilt, pooled after a release."""
    driver = Driver(ctx, mixed=mixed)
    aborted, finished = (driver.counter(f"offline_{end}") for end in ("aborted", "finished"))
    driver.send("prefilling", prompt(50, 300), 8, **OFFLINE)
    yield from driver.until(lambda: driver.is_chunking("prefilling"), "mid-prefill")
    driver.abort("prefilling")
    yield from driver.until_idle()
    driver.assert_nothing_locked()

    for rid, tier in (("decoding-offline", OFFLINE), ("decoding-online", ONLINE)):
        driver.send(rid, prompt(51, 70), 200, **tier)
        yield from driver.until(lambda rid=rid: driver.num_outputs(rid) >= 3, "mid-decode")
        driver.abort(rid)
        yield from driver.until_idle()
        assert driver.num_outputs(rid) < 200
        driver.assert_nothing_locked()

    for i in range(SLOTS):
        driver.send(f"row-{i}", prompt(60 + i, 30), 60, **OFFLINE)
    yield from driver.until(
        lambda: all(driver.num_outputs(f"row-{i}") >= 2 for i in range(SLOTS)), "rows decode"
    )
    driver.send("never-ran", prompt(70, 30), 60, **OFFLINE)
    yield from driver.until(lambda: driver.is_pooled("never-ran"), "pooled", limit=3)
    driver.abort("never-ran")
    yield from driver.step()
    assert not driver.is_pooled("never-ran")
    assert "never-ran" not in driver.reqs

    driver.send("chat", prompt(71, 30), 30, **ONLINE)
    rows = [f"row-{i}" for i in range(SLOTS)]
    yield from driver.until(lambda: any(map(driver.is_pooled, rows)), "a row released", limit=4)
    released = next(filter(driver.is_pooled, rows))
    outputs_then = driver.num_outputs(released)
    driver.abort(released)
    yield from driver.step()
    assert not driver.is_pooled(released)
    yield from driver.until_finished("chat", *(rid for rid in rows if rid != released))
    yield from driver.until_idle()
    assert driver.num_outputs(released) == outputs_then
    driver.assert_nothing_locked()
    # prefilling, decoding-offline, never-ran and the released row; the other rows ended well.
    assert driver.counter("offline_aborted") == aborted + 4
    assert driver.counter("offline_finished") == finished + SLOTS - 1


def abort_all_empties_every_place(ctx: ScriptedContext, mixed: bool) -> Steps:
    """Rows, a chunk and a pool at once."""
    driver = Driver(ctx, mixed=mixed)
    driver.send("row", prompt(80, 30), 300, **OFFLINE)
    yield from driver.until(lambda: driver.num_outputs("row") >= 1, "decoding")
    driver.send("chunk", prompt(81, 300), 20, **OFFLINE)
    yield from driver.until(lambda: driver.is_chunking("chunk"), "mid-prefill")
    for i in range(5):
        driver.send(f"pooled-{i}", prompt(82 + i, 100), 300, **OFFLINE)
    yield from driver.step()
    ctx.abort_all()
    yield from driver.until(driver.scheduler.is_fully_idle, "idle", limit=8)
    assert len(driver.scheduler.offline_queue) == 0
    assert len(driver.scheduler.offline_queue.pool) == 0
    yield from driver.step()
    driver.assert_nothing_locked()


def flush_cache_waits_for_the_pool(ctx: ScriptedContext, mixed: bool) -> Steps:
    """Refused while an offline request waits or runs, complete when nothing does."""
    driver = Driver(ctx, mixed=mixed)
    driver.send("first", prompt(90, 100), 10, **OFFLINE)
    yield from driver.until(lambda: driver.num_outputs("first") >= 1, "decoding")
    ctx.flush_cache()
    yield from driver.step()
    assert driver.free_tokens() < KV_TOKENS
    yield from driver.until_finished("first")
    yield from driver.until_idle()
    assert driver.scheduler.tree_cache.evictable_size() >= 100
    yield from driver.flush()
    driver.assert_nothing_locked()


def a_pause_that_retracts_loses_nothing(ctx: ScriptedContext, mixed: bool) -> Steps:
    """SGLang's own pause with retraction puts offline rows back into the pool."""
    driver = Driver(ctx, mixed=mixed)
    work = {"doc-1": DOCUMENTS["doc-1"], "doc-2": DOCUMENTS["doc-2"]}
    yield from _undisturbed(driver, work)
    driver.send("chat", prompt(95, 40), 20, **ONLINE)
    for rid, (tokens, num_new) in work.items():
        driver.send(rid, tokens, num_new, **OFFLINE)
    yield from driver.until(
        lambda: all(driver.num_outputs(rid) >= 2 for rid in (*work, "chat")), "all decode"
    )
    ctx.pause_generation(mode="retract")
    yield from driver.step()
    assert all(driver.is_pooled(rid) for rid in work), driver.state()
    ctx.continue_generation()
    yield from driver.until_finished("chat", *work)
    yield from driver.until_idle()
    for rid in work:
        assert driver.outputs(rid) == driver.outputs(f"alone-{rid}")
    driver.assert_nothing_locked()


def a_request_that_asks_for_more_than_fits_still_runs(ctx: ScriptedContext, mixed: bool) -> Steps:
    """More output allowed than the pool has KV: SGLang cuts the allowance, Echo must too."""
    driver = Driver(ctx, mixed=mixed)
    eos = {"sampling_params": {"ignore_eos": False, "stop_token_ids": list(range(49_152))}}
    driver.send("greedy", prompt(100, 30), KV_TOKENS + 50, **OFFLINE, **eos)
    yield from driver.until(lambda: driver.is_finished("greedy"), "finished", limit=60)
    yield from driver.until_idle()
    driver.assert_nothing_locked()


def a_chunk_gives_its_memory_to_online(ctx: ScriptedContext, mixed: bool) -> Steps:
    """A half-done offline prefill holds the KV that an online request needs."""
    driver = Driver(ctx, mixed=mixed)
    driver.send("long", prompt(110, 700), 8, **OFFLINE)
    yield from driver.until(lambda: driver.is_chunking("long", 500), "mid-prefill")
    # At most 900 - 500 are left; 60 + 360 do not fit beside it, though 60 fit the chunk.
    driver.send("chat", prompt(111, 60), 360, **ONLINE)
    yield from driver.until(
        lambda: driver.num_outputs("chat") >= 1, "online admitted at all", limit=30
    )
    yield from driver.until_finished("chat", "long")
    yield from driver.until_idle()
    driver.assert_nothing_locked()


def a_chunk_gives_its_slot_to_online(ctx: ScriptedContext, mixed: bool) -> Steps:
    """A half-done offline prefill holds the last request slot."""
    driver = Driver(ctx, mixed=mixed)
    long_chats = [f"chat-{i}" for i in range(SLOTS - 1)]
    for i, rid in enumerate(long_chats):
        driver.send(rid, prompt(120 + i, 10), 80, **ONLINE)
    yield from driver.until(lambda: all(map(driver.num_outputs, long_chats)), "online rows decode")
    driver.send("long", prompt(125, 400), 8, **OFFLINE)
    yield from driver.until(lambda: driver.is_chunking("long"), "mid-prefill")
    driver.send("late", prompt(126, 20), 4, **ONLINE)
    yield from driver.until_finished("late", *long_chats, "long")
    assert driver.finished_order[0] == "late", driver.state()
    yield from driver.until_idle()
    driver.assert_nothing_locked()


def an_offline_request_that_sglang_refuses_is_answered(ctx: ScriptedContext, mixed: bool) -> Steps:
    """Found invalid only when it is built: it ends, and nothing of it stays."""
    driver = Driver(ctx, mixed=mixed)
    driver.send(
        "invalid", prompt(130, 30), 4, **OFFLINE, return_logprob=True, logprob_start_len=500
    )
    yield from driver.until_finished("invalid")
    yield from driver.until_idle()
    assert driver.num_outputs("invalid") <= 1  # SGLang aborts after one cheap forward
    assert not driver.is_pooled("invalid")
    driver.assert_nothing_locked()


def a_drain_gives_offline_back_and_finishes_online(ctx: ScriptedContext, mixed: bool) -> Steps:
    """Decoding, pooled and late offline requests go; the online one stays exact."""
    driver = Driver(ctx, mixed=mixed)
    chat = (prompt(90, 40), 40)
    yield from _undisturbed(driver, {"chat": chat})
    rows = ["row-0", "row-1"]
    for i, rid in enumerate(rows):
        driver.send(rid, prompt(91 + i, 30), 200, **OFFLINE)
    yield from driver.until(
        lambda: all(driver.num_outputs(rid) >= 2 for rid in rows), "both rows decode"
    )
    driver.send("chat", *chat, **ONLINE)
    # Ten times what the 900 KV tokens hold: most of it cannot but wait.
    for i in range(40):
        driver.send(f"never-ran-{i}", prompt(100 + i, 30), 200, **OFFLINE)
    yield from driver.step()
    assert len(driver.scheduler.offline_queue) > 30
    driver.scheduler.give_offline_back()
    assert len(driver.scheduler.offline_queue) == 0
    # The decision of the next iteration gives rows and chunk back.
    yield from driver.step()
    yield from driver.step()
    running = {req.rid for req in driver.scheduler.running_batch.reqs}
    assert running <= {driver.rid("chat")}, driver.state()
    assert driver.scheduler.chunked_req is None and len(driver.scheduler.offline_queue) == 0
    assert not driver.is_finished("chat")
    driver.send("late", prompt(95, 30), 200, **OFFLINE)
    yield from driver.until_finished("chat")
    yield from driver.until_idle()
    assert driver.outputs("chat") == driver.outputs("alone-chat")
    assert "late" not in driver.reqs and len(driver.scheduler.offline_queue) == 0
    driver.assert_nothing_locked()
    driver.scheduler.gives_back = False
