"""Whatever dies, every custom_id ends exactly once. A failing seed runs alone with
`World(seed, ...)`; nothing of a story depends on real time."""

from __future__ import annotations

import logging
import shutil
import tempfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import pytest

from tests.unit.service.simulation import World, make_template, scratch

QUICK_SEEDS = 12
ALL_SEEDS = 2_000
_SEEDS_A_TASK = 100


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    root = Path(tempfile.mkdtemp(prefix="echo-sim-", dir=scratch()))
    make_template(root / "template")
    yield root
    shutil.rmtree(root)


def live(root: Path, seeds: range) -> list[tuple[int, str]]:
    """The seeds whose story ends badly, and how."""
    logging.disable(logging.CRITICAL)
    failures = []
    try:
        for seed in seeds:
            world = World(seed, root / f"seed-{seed}", root / "template")
            try:
                world.run()
                world.check()
            except Exception as error:
                failures.append((seed, repr(error)[:300]))
            shutil.rmtree(world.folder, ignore_errors=True)
    finally:
        logging.disable(logging.NOTSET)
    return failures


def test_a_few_stories_end_well(folder: Path) -> None:
    assert live(folder, range(QUICK_SEEDS)) == []


@pytest.mark.slow
def test_two_thousand_stories_end_well(folder: Path) -> None:
    starts = range(QUICK_SEEDS, QUICK_SEEDS + ALL_SEEDS, _SEEDS_A_TASK)
    tasks = [range(start, start + _SEEDS_A_TASK) for start in starts]
    with ProcessPoolExecutor(mp_context=get_context("spawn")) as pool:
        failures = [each for part in pool.map(live, [folder] * len(tasks), tasks) for each in part]
    assert failures == []
