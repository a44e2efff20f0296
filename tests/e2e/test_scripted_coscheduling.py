"""Echo's scheduler in the real loop, driven iteration by iteration with SGLang's strict checks on.

The server runs with SGLANG_ENABLE_STRICT_MEM_CHECK_DURING_BUSY: SGLang itself counts every KV
token after every iteration, and a lost one ends the server and so the test.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.e2e import coscheduling_scripts as scripts
from tests.e2e.scripted_server import ScriptedServer

pytestmark = pytest.mark.server

FLAGS = (
    *("--max-running-requests", str(scripts.SLOTS)),
    *("--chunked-prefill-size", str(scripts.CHUNK_TOKENS)),
    *("--max-total-tokens", str(scripts.KV_TOKENS)),
    *("--slo-ttft-ms", "600000"),
    *("--slo-tpot-ms", "600000"),
)


@pytest.fixture(scope="module", params=["overlap", "no_overlap"])
def scripted(
    request: pytest.FixtureRequest, model_path: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ScriptedServer]:
    overlap = "--echo-cpu-overlap" if request.param == "overlap" else "--disable-overlap-schedule"
    server = ScriptedServer(
        model_path=model_path, folder=tmp_path_factory.mktemp("scripted"), flags=[*FLAGS, overlap]
    )
    try:
        server.start()
        yield server
    finally:
        server.stop()


@pytest.mark.parametrize("mixed", [True, False], ids=["mixed", "separate"])
@pytest.mark.parametrize(
    "script",
    [
        scripts.released_rows_resume_exactly,
        scripts.a_chunk_is_released_for_a_prompt_that_does_not_fit,
        scripts.a_chunk_is_parked_for_a_prompt_that_fits,
        scripts.aborts_give_everything_back,
        scripts.abort_all_empties_every_place,
        scripts.flush_cache_waits_for_the_pool,
        scripts.a_pause_that_retracts_loses_nothing,
        scripts.a_request_that_asks_for_more_than_fits_still_runs,
        scripts.a_chunk_gives_its_memory_to_online,
        scripts.a_chunk_gives_its_slot_to_online,
        scripts.an_offline_request_that_sglang_refuses_is_answered,
        scripts.a_drain_gives_offline_back_and_finishes_online,
    ],
    ids=lambda script: script.__name__,
)
def test_the_loop_keeps_its_promises(
    scripted: ScriptedServer, script: Callable[..., Any], mixed: bool
) -> None:
    scripted.run(script, mixed)
