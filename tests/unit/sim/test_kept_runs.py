"""Kept runs: found again if nothing changed that determines them, made anew otherwise."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from echo_sglang.sim.arrivals import PoissonTraffic
from echo_sglang.sim.batch_jobs import BatchFile
from echo_sglang.sim.kept_runs import keeping
from echo_sglang.sim.setup import ServerSetup
from echo_sglang.sim.spec import RunSpec

SPEC = RunSpec(
    device="A100-80G:Llama-3.1-8B",
    setup=ServerSetup(),
    recipes=(PoissonTraffic(rate_per_s=1.0, window_s=10.0),),
    seed=1,
    window_s=10.0,
)


class Counting:
    """Gives every run a number."""

    def __init__(self) -> None:
        self.runs = 0

    def __call__(self, specs: Sequence[RunSpec]) -> Iterator[dict[str, Any]]:
        for spec in specs:
            self.runs += 1
            yield {"run": self.runs, "seed": spec.seed}


def test_results_come_in_the_order_asked_whatever_was_kept(tmp_path: Path) -> None:
    first, second, third = (replace(SPEC, seed=seed) for seed in (1, 2, 3))
    execute = keeping(tmp_path, Counting(), version="a")
    assert [r["seed"] for r in execute([second])] == [2]
    assert [r["seed"] for r in execute([first, second, first, third])] == [1, 2, 1, 3]


def test_a_result_is_kept_as_soon_as_it_is_there(tmp_path: Path) -> None:
    results = iter(keeping(tmp_path, Counting(), version="a")([SPEC, replace(SPEC, seed=2)]))
    next(results)
    assert len(list(tmp_path.glob("*.json"))) == 1


def test_another_version_or_seed_is_another_run(tmp_path: Path) -> None:
    counting = Counting()
    for version, seed in (("a", 1), ("b", 1), ("b", 2), ("a", 1)):
        list(keeping(tmp_path, counting, version=version)([replace(SPEC, seed=seed)]))
    assert counting.runs == 3


def test_a_changed_input_file_is_another_run(tmp_path: Path) -> None:
    path = tmp_path / "batch.jsonl"
    spec = replace(SPEC, recipes=(BatchFile(path=path),))
    counting = Counting()
    execute = keeping(tmp_path / "runs", counting, version="a")
    for text, runs in (("one", 1), ("one", 1), ("two", 2)):
        path.write_text(text)
        list(execute([spec]))
        assert counting.runs == runs


def test_a_torn_file_is_made_again(tmp_path: Path) -> None:
    counting = Counting()
    execute = keeping(tmp_path, counting, version="a")
    list(execute([SPEC]))
    (kept,) = tmp_path.glob("*.json")
    kept.write_text('{"run": ')
    assert list(execute([SPEC])) == [{"run": 2, "seed": 1}]
