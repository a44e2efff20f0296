"""The runner on virtual time, with real store and files and a scripted engine."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import orjson
import pytest

from echo_sglang.service.errors import StoreIOError
from echo_sglang.service.feeder import FeedSettings
from echo_sglang.service.files import Files
from echo_sglang.service.model import Batch, BatchState, NewBatch, ResultKind
from echo_sglang.service.retry import retry_failed
from echo_sglang.service.runner import Runner, RunnerSettings
from echo_sglang.service.store import Store
from tests.unit.service.simulation import (
    ENDPOINT,
    FakeEngine,
    Fate,
    Faults,
    FaultyContents,
    FaultyDatabase,
    Gate,
    VirtualLoop,
)


def body(prompt: str, **values: object) -> dict[str, object]:
    return {"model": "m", "prompt": prompt, **values}


@dataclass
class Place:
    """A store in a folder and one runner after another over it."""

    folder: Path
    fates: dict[str, Fate] = field(default_factory=dict)
    capacity: int = 4
    faults: Faults = field(default_factory=lambda: Faults(Random(0)))
    feed: FeedSettings = field(default_factory=lambda: FeedSettings(cautious_in_flight=2))
    start_s: float = 0.0
    engine: FakeEngine | None = None

    def live(self, scene: Callable[[Stage], Awaitable[None]]) -> Stage:
        """Open everything, run the runner beside the scene, stop it in good order."""
        loop = VirtualLoop(self.start_s)
        try:
            return loop.run_until_complete(self._live(scene))
        finally:
            self.start_s = loop.time()
            loop.close()

    async def _live(self, scene: Callable[[Stage], Awaitable[None]]) -> Stage:
        FaultyDatabase.faults = self.faults
        count = iter(range(10**6))
        database = FaultyDatabase.open(
            self.folder,
            None,
            upgrade=False,
            events=True,
            new_hex=lambda: f"{int(self.start_s * 1000):016x}{next(count):016x}",
        )
        store = Store(database)
        contents = FaultyContents(self.folder / "files", self.faults)
        files = Files(store, self.folder, clock=clock, contents=contents)
        engine = FakeEngine(self.fates, self.faults, self.capacity, in_process=False)
        self.engine = engine
        settings = RunnerSettings(name="one", feed=self.feed)
        runner = Runner(store, files, engine, settings, clock=clock, offload=Gate().offload)
        stage = Stage(store, files, runner, engine)
        running = asyncio.create_task(runner.run())
        try:
            await scene(stage)
        finally:
            if not running.done():
                await runner.stop()
            stage.ended_with = (await asyncio.gather(running, return_exceptions=True))[0]
            database.close()
        return stage


def clock() -> float:
    return 1e9 + asyncio.get_running_loop().time()


@dataclass
class Stage:
    store: Store
    files: Files
    runner: Runner
    engine: FakeEngine
    ended_with: object = None

    def submit(
        self, bodies: Mapping[str, Mapping[str, object]], *, window_s: float = 86_400.0
    ) -> Batch:
        """A batch with these bodies, by custom_id."""
        upload = self.files.begin("", "in.jsonl", "batch")
        for custom_id, each in bodies.items():
            line = {"custom_id": custom_id, "method": "POST", "url": ENDPOINT, "body": each}
            upload.write(orjson.dumps(line) + b"\n")
        new = NewBatch(
            owner="",
            endpoint=ENDPOINT,
            input_file_id=upload.finish().id,
            completion_window="24h",
            window_s=window_s,
        )
        batch = self.store.batches.create(new, clock())[0]
        self.runner.wake()
        return batch

    async def until(self, batch: Batch, within_s: float = 500.0) -> Batch:
        """The batch once it has ended."""
        deadline = clock() + within_s
        while clock() < deadline:
            found = self.store.batches.get("", batch.id)
            if found.state.is_final:
                return found
            await asyncio.sleep(0.5)
        raise AssertionError(f"not ended: {found}")

    def entries(self, file_id: str | None) -> dict[str, dict[str, Any]]:
        """The lines of a result file, by custom_id."""
        if file_id is None:
            return {}
        data = b"".join(self.files.read(self.files.get("", file_id)))
        entries = [orjson.loads(raw) for raw in data.splitlines()]
        assert len({entry["custom_id"] for entry in entries}) == len(entries)
        return {entry["custom_id"]: entry for entry in entries}

    def error_codes(self, batch: Batch) -> dict[str, str]:
        entries = self.entries(batch.error_file_id)
        return {custom_id: entry["error"]["code"] for custom_id, entry in entries.items()}


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path / "data")


def lines(place: Place, count: int, **fates: Fate) -> dict[str, dict[str, object]]:
    """Bodies for c0, c1, ...; fates by custom_id, all others are answered in a second."""
    names = [f"c{number}" for number in range(count)]
    place.fates.update({name: fates.get(name, Fate()) for name in names})
    return {name: body(name) for name in names}


def test_a_batch_runs_to_its_two_files(place: Place) -> None:
    async def scene(stage: Stage) -> None:
        batch = await stage.until(stage.submit(lines(place, 9, c4=Fate(status=400))))
        assert batch.state is BatchState.COMPLETED and batch.model == "m"
        assert (batch.counts.total, batch.counts.completed, batch.counts.failed) == (9, 8, 1)
        output = stage.entries(batch.output_file_id)
        assert output["c0"]["response"]["body"]["answer"] == "c0" and output["c0"]["error"] is None
        assert output["c0"]["id"].startswith("batch_req_")
        errors = stage.entries(batch.error_file_id)
        assert errors["c4"]["response"]["status_code"] == 400 and errors["c4"]["error"] is None
        assert batch.usage.output_tokens == 16
        assert stage.engine.most_in_flight == 4
        assert [event.kind for event in stage.store.outbox.claim(clock(), 1.0)] == [
            "batch.completed"
        ]

    place.live(scene)


def test_a_batch_whose_lines_all_failed_is_completed_without_an_output_file(place: Place) -> None:
    async def scene(stage: Stage) -> None:
        bad = {f"c{n}": Fate(status=422) for n in range(3)}
        batch = await stage.until(stage.submit(lines(place, 3, **bad)))
        assert batch.state is BatchState.COMPLETED
        assert batch.output_file_id is None and len(stage.entries(batch.error_file_id)) == 3

    place.live(scene)


@pytest.mark.parametrize(
    ("values", "param"),
    [
        ({"n": 5_000_000}, "n"),
        ({"best_of": 129}, "best_of"),
        ({"max_tokens": 1e12}, "max_tokens"),
        ({"max_tokens": 10**12}, "max_tokens"),
        ({"max_tokens": True}, "max_tokens"),
        ({"max_completion_tokens": 0}, "max_completion_tokens"),
        ({"stream": True}, "stream"),
    ],
)
def test_a_body_that_no_engine_should_see_is_a_400_of_its_line(
    place: Place, values: dict[str, object], param: str
) -> None:
    async def scene(stage: Stage) -> None:
        bodies = lines(place, 2)
        bodies["c0"] |= values
        batch = await stage.until(stage.submit(bodies))
        [(name, entry)] = stage.entries(batch.error_file_id).items()
        assert name == "c0" and entry["response"]["status_code"] == 400
        assert entry["response"]["body"]["error"]["param"] == param
        assert "c0" not in stage.engine.tries and list(stage.entries(batch.output_file_id)) == [
            "c1"
        ]

    place.live(scene)


def test_overload_is_waited_out_and_in_the_end_reported(place: Place) -> None:
    async def scene(stage: Stage) -> None:
        batch = stage.submit(lines(place, 4, c1=Fate(transient=3), c2=Fate(transient=99)))
        batch = await stage.until(batch)
        assert sorted(stage.entries(batch.output_file_id)) == ["c0", "c1", "c3"]
        assert stage.entries(batch.error_file_id)["c2"]["response"]["status_code"] == 503
        assert stage.engine.tries == {"c0": 1, "c1": 4, "c2": 10, "c3": 1}

    place.live(scene)


def test_a_line_at_fault_is_never_tried_again(place: Place) -> None:
    async def scene(stage: Stage) -> None:
        await stage.until(stage.submit(lines(place, 2, c0=Fate(status=400), c1=Fate(status=500))))
        assert stage.engine.tries == {"c0": 1, "c1": 1}

    place.live(scene)


def test_poison_runs_alone_after_two_crashes_and_is_then_quarantined(place: Place) -> None:
    async def scene(stage: Stage) -> None:
        batch = await stage.until(stage.submit(lines(place, 12, c5=Fate(poison=True))))
        assert stage.error_codes(batch) == {"c5": "line_crashes_engine"}
        assert batch.counts.completed == 11
        crowds = [len(names) for names in stage.engine.met_poison]
        assert len(crowds) == 3 and crowds[0] <= 4 and crowds[1] <= 2 and crowds[2] == 1

    place.live(scene)


def test_many_poisonous_lines_do_not_take_their_neighbours_with_them(place: Place) -> None:
    poison = {f"c{n}": Fate(poison=True, latency_s=0.5 + n / 10) for n in range(0, 20, 4)}

    async def scene(stage: Stage) -> None:
        batch = await stage.until(stage.submit(lines(place, 20, **poison)))
        assert set(stage.error_codes(batch)) == set(poison)
        assert batch.counts.completed == 15

    place.live(scene)


def test_a_cancel_keeps_what_finished(place: Place) -> None:
    async def scene(stage: Stage) -> None:
        batch = stage.submit(lines(place, 20))
        await asyncio.sleep(4.0)
        stage.store.batches.cancel("", batch.id, clock())
        stage.runner.wake()
        batch = await stage.until(batch, within_s=3.0)
        assert batch.state is BatchState.CANCELLED
        assert 0 < batch.counts.completed < 20
        codes = stage.error_codes(batch)
        assert set(codes.values()) == {"batch_cancelled"}
        assert len(codes) + len(stage.entries(batch.output_file_id)) == 20
        assert not stage.engine.running

    place.live(scene)


def test_the_window_ends_a_batch_with_what_it_has(place: Place) -> None:
    async def scene(stage: Stage) -> None:
        batch = stage.submit(lines(place, 40), window_s=5.0)
        batch = await stage.until(batch, within_s=8.0)
        assert batch.state is BatchState.EXPIRED
        assert set(stage.error_codes(batch).values()) == {"batch_expired"}
        assert batch.counts.completed >= 4 and batch.counts.open == 0

    place.live(scene)


def test_the_window_ends_a_batch_even_while_the_engine_is_down(place: Place) -> None:
    async def scene(stage: Stage) -> None:
        stage.engine.down_until_s = 1e9
        batch = await stage.until(stage.submit(lines(place, 3), window_s=5.0), within_s=8.0)
        assert batch.state is BatchState.EXPIRED and batch.counts.failed == 3

    place.live(scene)


def test_a_paused_batch_starts_nothing_and_goes_on_when_resumed(place: Place) -> None:
    async def scene(stage: Stage) -> None:
        batch = stage.submit(lines(place, 30))
        await asyncio.sleep(2.5)
        stage.store.batches.pause("", batch.id)
        stage.runner.wake()
        await asyncio.sleep(3.0)
        done = stage.store.batches.get("", batch.id).counts.completed
        await asyncio.sleep(30.0)
        assert stage.store.batches.get("", batch.id).counts.completed == done < 30
        stage.store.batches.resume("", batch.id)
        stage.runner.wake()
        assert (await stage.until(batch)).counts.completed == 30

    place.live(scene)


def test_nothing_is_fed_to_an_engine_that_wants_nothing(place: Place) -> None:
    async def scene(stage: Stage) -> None:
        stage.engine.capacity_lines = 0
        batch = stage.submit(lines(place, 3))
        await asyncio.sleep(20.0)
        assert stage.engine.most_in_flight == 0
        stage.engine.capacity_lines = 2
        assert (await stage.until(batch)).counts.completed == 3

    place.live(scene)


def test_an_orderly_stop_gives_everything_back_and_the_next_server_goes_on(place: Place) -> None:
    made: list[Batch] = []

    async def begin(stage: Stage) -> None:
        made.append(stage.submit(lines(place, 12)))
        await asyncio.sleep(1.3)

    async def go_on(stage: Stage) -> None:
        assert stage.store.work.suspects(made[0].id, 1, 20) == []
        batch = await stage.until(made[0])
        assert batch.counts.completed == 12
        assert sum(stage.engine.tries.values()) < 12

    place.live(begin)
    place.live(go_on)


def test_results_are_readable_while_the_batch_runs(place: Place) -> None:
    async def scene(stage: Stage) -> None:
        batch = stage.submit(lines(place, 12))
        await asyncio.sleep(2.3)
        live = list(stage.store.batches.result_lines(batch.id, ResultKind.OUTPUT, 0, 99))
        assert 0 < len(live) < 12
        batch = await stage.until(batch)
        assert batch.output_file_id is not None
        data = b"".join(stage.files.read(stage.files.get("", batch.output_file_id)))
        assert data.splitlines()[: len(live)] == live

    place.live(scene)


def test_a_full_disk_stops_feeding_until_there_is_room(place: Place) -> None:
    async def scene(stage: Stage) -> None:
        batch = stage.submit(lines(place, 30))
        await asyncio.sleep(3.2)
        place.faults.full_rate = 1.0
        await asyncio.sleep(60.0)
        assert sum(stage.engine.tries.values()) < 30
        assert not stage.engine.running
        place.faults.full_rate = 0.0
        batch = await stage.until(batch)
        assert batch.counts.completed == 30
        assert sum(stage.engine.tries.values()) == 30  # nothing was run twice

    place.live(scene)


def test_a_failing_disk_ends_the_runner_and_the_next_one_completes_the_batch(place: Place) -> None:
    made: list[Batch] = []

    async def fail(stage: Stage) -> None:
        made.append(stage.submit(lines(place, 12)))
        await asyncio.sleep(1.2)
        place.faults.io_rate = 2.0
        await asyncio.sleep(5.0)
        place.faults.io_rate = 0.0

    async def go_on(stage: Stage) -> None:
        assert (await stage.until(made[0])).counts.completed == 12

    assert isinstance(place.live(fail).ended_with, StoreIOError)
    place.live(go_on)


def test_a_bad_file_fails_its_batch_with_every_error(place: Place) -> None:
    async def scene(stage: Stage) -> None:
        bodies = lines(place, 2)
        bodies["c1"]["model"] = "other"
        batch = await stage.until(stage.submit(bodies))
        assert batch.state is BatchState.FAILED
        assert [(error.code, error.line) for error in batch.errors] == [("model_mismatch", 2)]
        assert batch.counts.total == 0 and batch.output_file_id is None

    place.live(scene)


def test_an_input_file_whose_bytes_are_gone_fails_its_batch(place: Place) -> None:
    async def scene(stage: Stage) -> None:
        stage.engine.down_until_s = 1e9
        batch = stage.submit(lines(place, 2))
        stage.files.local_path(batch.input_file_id).unlink()
        batch = await stage.until(batch)
        assert batch.state is BatchState.FAILED and batch.errors[0].code == "input_unreadable"

    place.live(scene)


def test_bytes_that_changed_since_validation_are_not_run(place: Place) -> None:
    async def scene(stage: Stage) -> None:
        stage.engine.capacity_lines = 0
        batch = stage.submit(lines(place, 3))
        await asyncio.sleep(5.0)
        path = stage.files.local_path(batch.input_file_id)
        path.write_bytes(path.read_bytes().replace(b'"c1"', b'"xx"'))
        stage.engine.capacity_lines = 4
        batch = await stage.until(batch)
        assert stage.error_codes(batch) == {"c1": "input_unreadable"}
        assert batch.counts.completed == 2

    place.live(scene)


def test_failed_lines_are_run_again_as_a_new_batch(place: Place) -> None:
    async def scene(stage: Stage) -> None:
        batch = stage.submit(lines(place, 6, c1=Fate(status=500), c4=Fate(status=500)))
        batch = await stage.until(batch)
        for name in ("c1", "c4"):
            place.fates[name] = Fate()
        again = retry_failed(stage.store, stage.files, "", batch.id, clock())
        assert again.metadata == {"retry_of": batch.id}
        stage.runner.wake()
        again = await stage.until(again)
        assert sorted(stage.entries(again.output_file_id)) == ["c1", "c4"]
        assert again.counts.failed == 0

    place.live(scene)


def test_what_the_engine_breaks_with_is_an_error_of_the_line_alone(place: Place) -> None:
    async def scene(stage: Stage) -> None:
        bodies = lines(place, 3)
        del place.fates["c1"]  # the engine raises a KeyError, which it should not
        batch = await stage.until(stage.submit(bodies))
        assert stage.error_codes(batch) == {"c1": "internal_error"}

    place.live(scene)
