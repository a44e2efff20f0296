"""Runner, store and files as they are, in a world where everything else is made up: time,
the engine, clients, and a process that dies whenever chance says so. One seed, one story."""

from __future__ import annotations

import asyncio
import contextlib
import os
import selectors
import shutil
import sqlite3
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import orjson
import sqlalchemy as sa

from echo_sglang.service.contents import LocalContents
from echo_sglang.service.database import SQLITE_NAME, Database
from echo_sglang.service.errors import (
    ConflictError,
    EngineGoneError,
    StoreFullError,
    StoreIOError,
)
from echo_sglang.service.feeder import FeedSettings
from echo_sglang.service.files import Files
from echo_sglang.service.forecast import Speed
from echo_sglang.service.model import (
    Batch,
    EngineAnswer,
    IdempotencyKey,
    LineTag,
    NewBatch,
    ResultKind,
)
from echo_sglang.service.runner import Runner, RunnerSettings
from echo_sglang.service.store import Store, open_store
from echo_sglang.service.validation import ValidationLimits

ENDPOINT = "/v1/completions"


class Killed(BaseException):
    """The process is gone; nothing it does afterwards has any effect."""


class VirtualLoop(asyncio.SelectorEventLoop):
    """Waiting takes no time: the clock jumps to the next timer."""

    def __init__(self, start_s: float) -> None:
        self._now_s = start_s
        super().__init__(_Jumping(self))

    def time(self) -> float:
        return self._now_s

    def jump(self, seconds: float) -> None:
        self._now_s += seconds


class _Jumping(selectors.SelectSelector):
    def __init__(self, loop: VirtualLoop) -> None:
        super().__init__()
        self._loop = loop

    def select(self, timeout: float | None = None) -> list[Any]:
        if timeout is None:
            raise AssertionError("everything waits for ever: a lost wake-up")
        self._loop.jump(max(timeout, 0.0))
        return []


@dataclass
class Faults:
    """What the disk does to the next transactions and files."""

    chance: Random
    kill_rate: float = 0.0
    full_rate: float = 0.0
    io_rate: float = 0.0
    dead: bool = False
    killed: asyncio.Event | None = None

    def kill(self) -> None:
        self.dead = True
        if self.killed is not None:
            self.killed.set()

    def strike(self, rate: float) -> bool:
        return bool(rate) and self.chance.random() < rate

    def check(self) -> None:
        if not self.dead and self.strike(self.kill_rate):
            self.kill()
        if self.dead:
            raise Killed


class FaultyDatabase(Database):
    """Dies before a transaction, before its commit, or after it before anybody knows."""

    faults: Faults
    path: str
    shared: sa.Engine | None = None
    """One engine for all lives: compiling its SQL anew would take most of each."""

    @classmethod
    def make_engine(cls, target: sa.URL) -> sa.Engine:
        assert target.database is not None
        cls.path = target.database
        if cls.shared is None:
            cls.shared = super().make_engine(target)

            @sa.event.listens_for(cls.shared, "do_connect")
            def connect(*_: object) -> sqlite3.Connection:
                return sqlite3.connect(cls.path, check_same_thread=False)

        return cls.shared

    @contextlib.contextmanager
    def writing(self) -> Iterator[Any]:
        faults = self.faults
        faults.check()
        with super().writing() as connection:
            yield connection
            faults.check()
            if faults.strike(faults.full_rate):
                raise StoreFullError("no space left in this story")
            if faults.strike(faults.io_rate / 2):
                raise self._break()
        if faults.strike(faults.io_rate / 2):
            raise self._break()  # the commit is kept, but nobody is told so
        faults.check()

    @contextlib.contextmanager
    def reading(self) -> Iterator[Any]:
        self.faults.check()
        with super().reading() as connection:
            yield connection

    def _break(self) -> StoreIOError:
        self._broken = StoreIOError("fsync fails in this story")
        return self._broken


class FaultyContents(LocalContents):
    """Files on the same disk."""

    def __init__(self, folder: Path, faults: Faults) -> None:
        self.faults = faults
        super().__init__(folder, fsync=self._sync)

    def _sync(self, descriptor: int) -> None:
        self.faults.check()
        if self.faults.strike(self.faults.full_rate):
            raise OSError(28, "no space left in this story")
        if self.faults.strike(self.faults.io_rate):
            raise OSError(5, "fsync fails in this story")


@dataclass
class Fate:
    """What the engine does with one line."""

    status: int = 200
    transient: int = 0
    poison: bool = False
    latency_s: float = 1.0


@dataclass
class FakeEngine:
    """Answers by each line's fate; dies of poison, alone (`gone`) or with the process."""

    fates: Mapping[str, Fate]
    faults: Faults
    capacity_lines: int
    in_process: bool
    running: dict[str, asyncio.Event] = field(default_factory=dict)
    tries: dict[str, int] = field(default_factory=dict)
    met_poison: list[set[str]] = field(default_factory=list)
    most_in_flight: int = 0
    down_until_s: float = 0.0
    died: bool = False

    @property
    def ready(self) -> bool:
        return asyncio.get_running_loop().time() >= self.down_until_s

    @property
    def capacity(self) -> int:
        return self.capacity_lines

    async def speed(self) -> Speed:
        return Speed()

    async def submit(self, endpoint: str, body: Mapping[str, Any], tag: LineTag) -> EngineAnswer:
        name = f"{body['prompt']}"
        assert endpoint == ENDPOINT and name.endswith(tag.custom_id)
        fate = self.fates[name]
        gone = asyncio.Event()
        self.running[name] = gone
        self.most_in_flight = max(self.most_in_flight, len(self.running))
        try:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(gone.wait(), fate.latency_s)
            if gone.is_set():
                raise EngineGoneError("the engine died in this story")
            if fate.poison:
                self.die()
                raise EngineGoneError("the engine died of this line")
        finally:
            self.running.pop(name, None)
        tries = self.tries[name] = self.tries.get(name, 0) + 1
        status = 503 if tries <= fate.transient else fate.status
        answer = {"answer": name, "usage": {"prompt_tokens": 3, "completion_tokens": 2}}
        return EngineAnswer(status=status, body=answer, request_id="req_1")

    def die(self) -> None:
        self.met_poison.append(set(self.running))
        if self.in_process:
            self.died = True
            self.faults.kill()
            return
        self.down_until_s = asyncio.get_running_loop().time() + 2.0
        for gone in self.running.values():
            gone.set()


@dataclass
class Gate:
    """Everything a paused process would do waits here."""

    open_again: asyncio.Event | None = None

    async def offload(self, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        while self.open_again is not None and not self.open_again.is_set():
            await self.open_again.wait()
        await asyncio.sleep(0)
        return call(*args, **kwargs)


class World:
    """A store in a folder, its clients, and one process after another that serves it."""

    def __init__(self, seed: int, folder: Path, template: Path) -> None:
        self.chance = Random(seed)
        self.seed = seed
        self.folder = folder
        folder.mkdir()
        shutil.copy(template / SQLITE_NAME, folder / SQLITE_NAME)
        self.faults = Faults(self.chance)
        self.now_s = 0.0
        self.skew_s = 0.0
        self.fates: dict[str, Fate] = {}
        self.batches: dict[str, list[str]] = {}
        self.seen: dict[tuple[str, str], bytes] = {}
        self.lives = 0
        self.killed_from_outside = False
        self.innocent_blamed = seed % 4 == 0  # two servers die together of one's poison
        self.poison_in_process = self.chance.random() < 0.5
        self.engines: list[FakeEngine] = []
        self._script = self._plan()

    # The story

    def _plan(self) -> list[tuple[float, str]]:
        chance = self.chance
        script = [(chance.uniform(0, 10), "submit") for _ in range(chance.randint(1, 2))]
        for verb, most in (("cancel", 1), ("pause", 1), ("jump", 2), ("kill", 3), ("freeze", 1)):
            script += [(chance.uniform(0, 30), verb) for _ in range(chance.randint(0, most))]
        self.calm_at_s = 40.0
        return sorted(script)

    def run(self) -> None:
        """Live until every batch has ended."""
        while True:
            self.lives += 1
            assert self.lives < 200, "does not come to an end"
            if self.now_s >= self.calm_at_s:
                self.faults.kill_rate = self.faults.full_rate = self.faults.io_rate = 0.0
            elif self.lives == 1:
                self._set_rates()
            loop = VirtualLoop(self.now_s)
            try:
                if loop.run_until_complete(self._life(loop)):
                    return
            finally:
                self.now_s = loop.time() + self.chance.uniform(0.5, 5.0)
                loop.close()

    def _set_rates(self) -> None:
        for name, rate in (("kill_rate", 0.02), ("full_rate", 0.05), ("io_rate", 0.02)):
            if self.chance.random() < 0.4:
                setattr(self.faults, name, rate)

    def clock(self) -> float:
        return 1e9 + asyncio.get_running_loop().time() + self.skew_s

    async def _life(self, loop: VirtualLoop) -> bool:
        """One process; True when all is done."""
        faults = self.faults
        faults.dead = False
        faults.killed = asyncio.Event()
        quiet, faults.kill_rate = faults.kill_rate, 0.0
        FaultyDatabase.faults = faults
        rates = faults.full_rate, faults.io_rate
        faults.full_rate = faults.io_rate = 0.0
        database = FaultyDatabase.open(
            self.folder, None, upgrade=False, events=False, new_hex=self._new_hex
        )
        faults.kill_rate, (faults.full_rate, faults.io_rate) = quiet, rates
        store = Store(database)
        contents = FaultyContents(self.folder / "files", faults)
        files = Files(store, self.folder, clock=self.clock, contents=contents)
        gates = [Gate() for _ in range(2 if self.seed % 4 == 0 else 1)]
        runners = [self._runner(store, files, gate, n) for n, gate in enumerate(gates)]
        tasks = [asyncio.create_task(runner.run()) for runner in runners]
        tasks.append(asyncio.create_task(self._clients(store, files, runners, gates)))
        tasks.append(asyncio.create_task(self._watch(store)))
        killed = asyncio.create_task(faults.killed.wait())
        done = asyncio.create_task(self._all_ended(store))
        tasks += [killed, done]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            while not (killed.done() or done.done() or any(_failed(task) for task in tasks)):
                pending = [task for task in tasks if not task.done()]
                await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
            finished = done.done() and not _failed(done)
            if finished and not killed.done():
                for runner in runners:
                    await runner.stop()
            else:
                if not any(engine.died for engine in self.engines[-len(runners) :]):
                    self.innocent_blamed = True
                for task in tasks:
                    if _failed(task) and not isinstance(
                        task.exception(), Killed | StoreIOError | StoreFullError
                    ):
                        task.result()
        finally:
            faults.kill()
            for task in asyncio.all_tasks() - {asyncio.current_task()}:
                task.cancel()
            await asyncio.gather(
                *(asyncio.all_tasks() - {asyncio.current_task()}), return_exceptions=True
            )
            self._lose_power(database)
        return finished

    def _runner(self, store: Store, files: Files, gate: Gate, number: int) -> Runner:
        engine = FakeEngine(
            self.fates, self.faults, self.chance.randint(1, 8), self.poison_in_process
        )
        self.engines.append(engine)
        settings = RunnerSettings(
            name=f"server-{number}",
            lease_s=15.0,
            poll_s=5.0,
            blame_crashes=not self.killed_from_outside,
            feed=FeedSettings(max_attempts=5, cautious_in_flight=4),
            limits=ValidationLimits(max_lines=50),
        )
        self.killed_from_outside = False
        return Runner(store, files, engine, settings, clock=self.clock, offload=gate.offload)

    def _lose_power(self, database: FaultyDatabase) -> None:
        """What was not synced may be there in part: a torn tail of the log, half a file."""
        left = self.folder.with_suffix(".left")
        shutil.copytree(self.folder, left)
        database.close()
        shutil.rmtree(self.folder)
        left.rename(self.folder)
        log = self.folder / f"{SQLITE_NAME}-wal"
        if log.exists() and self.chance.random() < 0.5:
            with log.open("ab") as tail:
                tail.write(self.chance.randbytes(self.chance.randint(1, 5000)))
        for part in (self.folder / "files").glob("*.part"):
            os.truncate(part, self.chance.randint(0, part.stat().st_size))

    def _new_hex(self) -> str:
        return f"{self.chance.getrandbits(128):032x}"

    # Clients

    async def _clients(
        self, store: Store, files: Files, runners: list[Runner], gates: list[Gate]
    ) -> None:
        while self._script:
            when, verb = self._script[0]
            await asyncio.sleep(max(when - asyncio.get_running_loop().time(), 0.0))
            self._script.pop(0)
            if verb == "kill":
                self.killed_from_outside = self.chance.random() < 0.5
                self.faults.kill()
            elif verb == "jump":
                self.skew_s += self.chance.choice([-3600.0, 3600.0])
            elif verb == "freeze":
                await self._freeze(self.chance.choice(gates))
            else:
                self._with_good_disk(lambda verb=verb: self._ask(store, files, verb))
                for runner in runners:
                    runner.wake()
        await asyncio.sleep(max(self.calm_at_s - asyncio.get_running_loop().time(), 0.0))
        self.faults.kill_rate = self.faults.full_rate = self.faults.io_rate = 0.0
        self._with_good_disk(lambda: self._resume_all(store))

    async def _freeze(self, gate: Gate) -> None:
        gate.open_again = asyncio.Event()
        await asyncio.sleep(self.chance.uniform(5, 25))
        gate.open_again.set()

    def _with_good_disk(self, call: Callable[[], None]) -> None:
        faults = self.faults
        saved = faults.kill_rate, faults.full_rate, faults.io_rate
        faults.kill_rate = faults.full_rate = faults.io_rate = 0.0
        try:
            call()
        except StoreIOError:
            faults.kill()  # the store broke before: this server is on its way out
            raise
        finally:
            faults.kill_rate, faults.full_rate, faults.io_rate = saved

    def _ask(self, store: Store, files: Files, verb: str) -> None:
        if verb == "submit":
            try:
                self._submit(store, files)
            except BaseException:
                self._script.insert(0, (0.0, "submit"))
                raise
            return
        if not self.batches:
            return
        batch_id = self.chance.choice(sorted(self.batches))
        with contextlib.suppress(ConflictError):
            if verb == "cancel":
                store.batches.cancel("", batch_id, self.clock())
            else:
                store.batches.pause("", batch_id)

    def _resume_all(self, store: Store) -> None:
        for batch_id in self.batches:
            with contextlib.suppress(ConflictError):
                store.batches.resume("", batch_id)

    def _submit(self, store: Store, files: Files) -> None:
        chance = self.chance
        name = self._new_hex()[:6]
        ids = [f"{name}-{n}" for n in range(chance.randint(1, 10))]
        upload = files.begin("", "in.jsonl", "batch")
        for custom_id in ids:
            prompt = "p" * 300 * chance.randint(0, 3) + custom_id
            self.fates[prompt] = self._fate()
            body = {"model": "m", "prompt": prompt}
            line = {"custom_id": custom_id, "method": "POST", "url": ENDPOINT, "body": body}
            upload.write(orjson.dumps(line) + b"\n")
        file = upload.finish()
        new = NewBatch(
            owner="",
            endpoint=ENDPOINT,
            input_file_id=file.id,
            completion_window="24h",
            window_s=chance.choice([25.0, 5000.0, 86_400.0]),
        )
        key = IdempotencyKey(key=name, body_digest=file.id)
        batch, made = store.batches.create(new, self.clock(), key)
        assert made and store.batches.create(new, self.clock(), key) == (batch, False)
        self.batches[batch.id] = ids

    def _fate(self) -> Fate:
        chance = self.chance
        kind = chance.random()
        latency_s = chance.uniform(0.1, 8.0)
        if kind < 0.04:
            return Fate(poison=True, latency_s=latency_s)
        if kind < 0.14:
            return Fate(status=400, latency_s=latency_s)
        if kind < 0.24:
            return Fate(transient=chance.randint(1, 7), latency_s=latency_s)
        return Fate(latency_s=latency_s)

    # What must hold

    async def _watch(self, store: Store) -> None:
        """A result that was seen stays as it is."""
        while True:
            await asyncio.sleep(self.chance.uniform(10, 25))
            for batch_id in self.batches:
                for kind in ResultKind:
                    for raw in store.batches.result_lines(batch_id, kind, 0, 1000):
                        key = batch_id, orjson.loads(raw)["custom_id"]
                        assert self.seen.setdefault(key, raw) == raw

    async def _all_ended(self, store: Store) -> None:
        while True:
            await asyncio.sleep(5.0)
            if self._script or asyncio.get_running_loop().time() < self.calm_at_s:
                continue
            found = [store.batches.get("", batch_id) for batch_id in self.batches]
            if all(batch.state.is_final for batch in found):
                await asyncio.sleep(5.0)
                return

    def check(self) -> None:
        """Every custom_id exactly once over both files, counts equal, nothing left over."""
        store = open_store(self.folder)
        try:
            files = Files(store, self.folder, clock=lambda: 1e9 + self.now_s + self.skew_s)
            for batch_id, ids in self.batches.items():
                self._check_batch(files, store.batches.get("", batch_id), ids)
            with store.database.reading() as connection:
                for table in ("lines", "results"):
                    left = connection.exec_driver_sql(f"SELECT count(*) FROM {table}")
                    assert left.scalar_one() == 0, f"rows left in {table}"
        finally:
            store.close()

    def _check_batch(self, files: Files, batch: Batch, ids: list[str]) -> None:
        if batch.in_progress_at is None and not batch.counts.total:
            assert batch.state.value in ("expired", "cancelled")
            return
        assert batch.counts.total == len(ids) and batch.counts.open == 0
        found: dict[str, dict[str, Any]] = {}
        for file_id, count in (
            (batch.output_file_id, batch.counts.completed),
            (batch.error_file_id, batch.counts.failed),
        ):
            data = b""
            if file_id is not None:
                file = files.get("", file_id)
                data = b"".join(files.read(file))
                assert len(data) == file.size_bytes and data.endswith(b"\n")
            lines = data.splitlines()
            assert len(lines) == count
            for raw in lines:
                entry = orjson.loads(raw)
                assert entry["custom_id"] not in found
                found[entry["custom_id"]] = entry
                assert self.seen.get((batch.id, entry["custom_id"]), raw) == raw
        assert sorted(found) == sorted(ids)
        for prompt, fate in self.fates.items():
            custom_id = prompt.lstrip("p")
            if custom_id in found:
                self._check_line(batch, found[custom_id], prompt, fate)
        usage = 3 * batch.counts.completed
        assert batch.usage.input_tokens == usage

    def _check_line(self, batch: Batch, entry: dict[str, Any], prompt: str, fate: Fate) -> None:
        error = entry["error"]
        if error is not None:
            allowed = {"batch_cancelled", "batch_expired", "line_crashes_engine"}
            assert error["code"] in allowed
            quarantined = error["code"] == "line_crashes_engine"
            assert not quarantined or fate.poison or self.innocent_blamed
            assert error["code"] != "batch_cancelled" or batch.state.value == "cancelled"
            assert error["code"] != "batch_expired" or batch.state.value == "expired"
            return
        assert not fate.poison
        assert entry["response"]["body"]["answer"] == prompt
        assert entry["response"]["status_code"] in {fate.status, 503}
        assert entry["response"]["status_code"] != 503 or fate.transient >= 5


def _failed(task: asyncio.Task[Any]) -> bool:
    return task.done() and not task.cancelled() and task.exception() is not None


def make_template(folder: Path) -> Path:
    """An empty store to copy: migrating one for every seed would take most of the time."""
    open_store(folder).close()
    return folder


def scratch() -> Path | None:
    """A folder in memory if there is one: fsync costs nothing there."""
    shared = Path("/dev/shm")
    return shared if os.access(shared, os.W_OK) else None
