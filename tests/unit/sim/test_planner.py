from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from echo_sglang.errors import ConfigError, WorkloadError
from echo_sglang.sim.arrivals import PoissonTraffic
from echo_sglang.sim.documents import DocumentQuestions
from echo_sglang.sim.kept_runs import keeping
from echo_sglang.sim.metrics import Slo
from echo_sglang.sim.plan_question import Question
from echo_sglang.sim.plan_report import plot_trade_off, text_answer
from echo_sglang.sim.planner import plan
from echo_sglang.sim.recipe_names import offline_recipe, online_source
from echo_sglang.sim.spec import RunSpec

CAPACITY_PER_S = 3.0
"""Online requests per second that one fake server answers in time."""


class FakeServers:
    """Holds its SLO up to CAPACITY_PER_S, or up to `beside_per_s` with offline work beside;
    harvests what is left, in proportion to the share of the SLO that Echo may use."""

    def __init__(self, beside_per_s: float = CAPACITY_PER_S) -> None:
        self.specs: list[RunSpec] = []
        self.rounds: list[int] = []
        self._beside_per_s = beside_per_s

    def __call__(self, specs: Sequence[RunSpec]) -> Iterator[dict[str, Any]]:
        self.rounds.append(len(specs))
        for spec in specs:
            self.specs.append(spec)
            yield {"summary": self._summary(spec)}

    def _summary(self, spec: RunSpec) -> dict[str, Any]:
        online = spec.workload().online
        load = len(online) / spec.window_s
        echo = spec.setup.echo
        assert echo is not None
        rate = max(CAPACITY_PER_S - load, 0.0) * echo.slo_margin
        beside = len(spec.recipes) > 1
        late_s = 0.1 * echo.slo_margin * beside
        return {
            "attainment": 1.0
            if load <= (self._beside_per_s if beside else CAPACITY_PER_S)
            else 0.5,
            "ttft_p50_s": 0.05 * load + late_s,
            "ttft_p99_s": 0.1 * load + late_s,
            "tpot_p50_s": 0.005 * load,
            "tpot_p99_s": 0.01 * load,
            "offline_per_s": rate if beside else None,
            "offline_tokens_per_s": 100 * rate if beside else None,
            "offline_hit_rate": 0.5,
            "share_of_limit": 0.5,
            "pool_dry": False,
        }


def question(**fields: Any) -> Question:
    return Question(
        **{
            "device": "A100-80G:Llama-3.1-8B",
            "online": online_source("poisson:10"),
            "offline": DocumentQuestions(documents=2),
            "slo": Slo(ttft_s=0.5, tpot_s=0.05),
            "window_s": 200.0,
        }
        | fields
    )


def azure_file(folder: Path, rows: Sequence[tuple[float, int, int]]) -> Path:
    """A trace of (second, prompt tokens, answer tokens)."""
    path = folder / "trace.csv"
    lines = [f"2023-11-16 18:{s // 60:02.0f}:{s % 60:09.6f}0,{p},{o}" for s, p, o in rows]
    path.write_text("\n".join(["TIMESTAMP,ContextTokens,GeneratedTokens", *lines]) + "\n")
    return path


def test_the_fewest_replicas_that_hold_are_found() -> None:
    answer = plan(question(), FakeServers())
    # 10/s over 4 servers are 2.5/s each; over 3 they are 3.3/s, above 3.
    assert (answer.replicas_alone, answer.replicas, answer.holds) == (4, 4, True)


@pytest.mark.parametrize("at_once", [1, 2, 3, 8])
def test_several_fleets_are_tried_at_once_with_the_same_result(at_once: int) -> None:
    servers = FakeServers()
    asked = question(online=online_source("poisson:37"), window_s=100.0)
    answer = plan(asked, servers, at_once=at_once)
    loads = {n: len(asked.online_requests(0.0, n)) / asked.window_s for n in range(1, 20)}
    assert answer.replicas == min(n for n, load in loads.items() if load <= CAPACITY_PER_S) > 10
    assert max(servers.rounds[:-1]) <= at_once


def test_fleets_without_the_device_time_are_not_tried() -> None:
    servers = FakeServers()
    # 200/s of about 600 + 200 tokens: 160,000 tokens/s, 2 x 7.5e9 operations each at least,
    # are more than 15 times the 156 TFLOP/s of one server.
    plan(question(online=online_source("poisson:200"), window_s=20.0), servers)
    tried = {round(200 * 20.0 / len(spec.workload().online)) for spec in servers.specs[:1]}
    assert min(tried) >= 15


def test_more_replicas_are_taken_if_the_harvest_costs_the_slo() -> None:
    answer = plan(question(), FakeServers(beside_per_s=2.2))
    # Beside offline work a server takes 2.2/s: 10/s need 5.
    assert (answer.replicas_alone, answer.replicas, answer.holds) == (4, 5, True)


def test_if_no_more_replicas_help_the_fewest_are_said_not_to_hold() -> None:
    answer = plan(question(), FakeServers(beside_per_s=0.1))
    assert (answer.replicas_alone, answer.replicas, answer.holds) == (4, 4, False)


def test_a_window_in_which_nobody_comes_is_all_harvest(tmp_path: Path) -> None:
    trace = azure_file(tmp_path, [(0.0, 500, 20), (1.0, 500, 20)])
    asked = question(
        online=online_source(f"azure:{trace}"), starts_s=(0.0, 700.0), window_s=600.0, replicas=1
    )
    servers = FakeServers()
    first, second = plan(asked, servers).windows
    assert (first.alone.attained, second.alone.attained) == (1.0, None)
    assert second.harvested_per_s == pytest.approx(CAPACITY_PER_S * second.margin)
    assert all(spec.workload().requests for spec in servers.specs)


def test_given_replicas_that_do_not_hold_are_said_not_to() -> None:
    answer = plan(question(replicas=2), FakeServers())
    assert (answer.replicas, answer.holds) == (2, False)


def test_the_harvest_is_that_of_all_replicas() -> None:
    servers = FakeServers()
    answer = plan(question(replicas=5), servers)
    (window,) = answer.windows
    load = window.online_requests / 200.0
    assert window.harvested_per_s == pytest.approx(5 * (CAPACITY_PER_S - load) * window.margin)
    assert window.harvested_tokens_per_s == pytest.approx(100 * window.harvested_per_s)


def test_the_trade_off_has_one_point_per_margin_in_order() -> None:
    answer = plan(question(replicas=5, margins=(0.9, 0.5)), FakeServers())
    assert [point.margin for point in answer.trade_off] == [0.5, 0.85, 0.9]
    rates = [point.harvested_per_s for point in answer.trade_off]
    assert rates == sorted(rates)


def test_a_batch_takes_its_lines_over_the_mean_rate() -> None:
    asked = question(replicas=5, batch_lines=1000, batch_window_s=60.0)
    answer = plan(asked, FakeServers())
    assert answer.batch_s == pytest.approx(1000 / answer.windows[0].harvested_per_s)
    assert answer.batch_fits is (answer.batch_s <= 60.0)


def test_a_batch_that_can_never_finish_is_said_so() -> None:
    asked = question(replicas=1, batch_lines=10)
    answer = plan(asked, FakeServers())
    assert answer.batch_s == float("inf") and answer.batch_fits is False
    assert "for ever" in text_answer(asked, answer)
    assert (answer.to_json()["batch_s"], answer.to_json()["batch_fits"]) == (None, False)


def test_the_busiest_window_sets_the_replicas() -> None:
    # ServeGen-like: the second window asks for most, but a Poisson source has equal ones.
    asked = question(starts_s=(0.0, 600.0))
    answer = plan(asked, FakeServers())
    assert [window.start_s for window in answer.windows] == [0.0, 600.0]


def test_an_interrupted_plan_goes_on_where_it_stopped(tmp_path: Path) -> None:
    asked = question(replicas=5)

    class Interrupted(FakeServers):
        def __call__(self, specs: Sequence[RunSpec]) -> Iterator[dict[str, Any]]:
            for number, result in enumerate(super().__call__(specs)):
                if number == 3:
                    raise KeyboardInterrupt
                yield result

    first, second = Interrupted(), FakeServers()
    with pytest.raises(KeyboardInterrupt):
        plan(asked, keeping(tmp_path, first, version="a"))
    resumed = plan(asked, keeping(tmp_path, second, version="a"))
    assert resumed == plan(asked, FakeServers())
    digests = [spec.digest for spec in second.specs]
    # Three results were kept; alone is the same run for every margin and made only once.
    assert not {spec.digest for spec in first.specs[:3]} & set(digests)
    assert len(digests) == len(set(digests)) == 6 - 3


def test_progress_is_told_of_every_run(tmp_path: Path) -> None:
    class Told:
        def __init__(self) -> None:
            self.phases: list[list[Any]] = []

        def begin(self, what: str, runs: int) -> None:
            self.phases.append([what, runs, 0])

        def advance(self) -> None:
            self.phases[-1][2] += 1

    first, again = Told(), Told()
    for told in (first, again):
        plan(question(), keeping(tmp_path, FakeServers(), version="a"), told, at_once=2)
    # Kept runs count as well.
    assert first.phases == again.phases
    assert all(runs == done > 0 for _, runs, done in first.phases)
    assert first.phases[0][:2] == ["online alone, 1, 2 replica(s)", 2]
    assert first.phases[-1][0] == "windows on 4 replica(s)"


def test_an_slo_below_a_single_step_is_refused_before_anything_runs() -> None:
    with pytest.raises(ConfigError, match="TPOT 5 ms cannot be held"):
        question(slo=Slo(ttft_s=0.5, tpot_s=0.005))
    with pytest.raises(ConfigError, match="TTFT 1 ms cannot be held"):
        question(slo=Slo(ttft_s=0.001, tpot_s=0.05))


def test_the_pool_is_what_the_weights_leave() -> None:
    # (0.9 * 80 GB - 16.06 GB) / 128 KiB.
    assert question().pool_tokens == pytest.approx(426_788, abs=2)
    assert question(kv_tokens=1000).pool_tokens == 1000


def test_the_answer_can_be_read_and_plotted(tmp_path: Path) -> None:
    asked = question(replicas=5)
    answer = plan(asked, FakeServers())
    text = text_answer(asked, answer)
    # Echo plans with 0.85 of the SLO, which here makes the first token 85 ms later.
    assert "holds" in text and "+85 ms TTFT p50" in text
    assert json.loads(json.dumps(answer.to_json()))["replicas"] == 5
    assert plot_trade_off(asked, answer, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").stat().st_size > 5000


def test_the_length_of_traffic_is_that_of_its_file(tmp_path: Path) -> None:
    trace = azure_file(tmp_path, [(3.0, 500, 20), (63.5, 500, 20)])
    assert online_source(f"azure:{trace}").length_s() == pytest.approx(60.5)
    rates = tmp_path / "rates.csv"
    rates.write_text("window_start_s,req_per_s\n0,900\n600,1000\n")
    assert online_source(f"servegen:{rates}").length_s() == 1200.0
    blocks = tmp_path / "m.jsonl"
    row = {"input_length": 5, "output_length": 5, "hash_ids": [1]}
    blocks.write_text("".join(json.dumps(row | {"timestamp": t}) + "\n" for t in (0, 4500)))
    assert online_source(f"mooncake:{blocks}").length_s() == 4.5
    assert online_source("poisson:2").length_s() is None


def test_bursts_are_thinned_like_the_rate_they_come_on_top_of() -> None:
    half = online_source("poisson:2+8/30").recipe(0.0, 60.0, 0.5)
    assert half == PoissonTraffic(rate_per_s=1.0, window_s=60.0, burst_size=4, burst_every_s=30.0)
    arrivals = Counter(request.arrival_s for request in half.requests(seed=1))
    assert [arrivals[15.0], arrivals[45.0]] == [4, 4]


@pytest.mark.parametrize(
    "text",
    [
        "poisson:0",
        "poisson:x",
        "poisson:2+8",
        "poisson:2+0/30",
        "poisson:2+8/0",
        "azure:",
        "pigeons:3",
        "",
    ],
)
def test_unknown_online_traffic_is_answered_with_the_forms(text: str) -> None:
    with pytest.raises(WorkloadError, match="azure:CSV"):
        online_source(text)


@pytest.mark.parametrize("text", ["documents:", "documents:9", "novels:3"])
def test_unknown_offline_work_is_answered_with_the_forms(text: str) -> None:
    with pytest.raises(WorkloadError, match="documents:DOCUMENTS"):
        offline_recipe(text)
