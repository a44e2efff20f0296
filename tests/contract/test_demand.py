"""The forecast of online KV demand is told the truth of SGLang's requests."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("sglang")

from sglang.srt.managers.schedule_batch import (
    FINISH_ABORT,
    FINISH_LENGTH,
    FINISH_MATCHED_TOKEN,
    BaseFinishReason,
    Req,
)
from sglang.srt.sampling.sampling_params import SamplingParams

from echo_sglang.adapter.demand import note_length, reserve_of, running_online
from echo_sglang.adapter.requests import EchoReq
from echo_sglang.config import EchoConfig
from echo_sglang.domain.tag import RequestTag, ServiceClass
from echo_sglang.estimate.adaptive_reserve import AdaptiveReserve
from echo_sglang.estimate.kv_demand import FixedReserve, OnlineRow
from echo_sglang.estimate.output_length import OutputLengths
from echo_sglang.policy.attainment import OnlineProgress


def request(prompt_tokens: int, output_tokens: int, tag: RequestTag | None = None) -> Req:
    kind: Any = Req if tag is None else EchoReq
    more = {} if tag is None else {"tag": tag}
    req: Req = kind("r", "", list(range(prompt_tokens)), SamplingParams(max_new_tokens=64), **more)
    req.output_ids.extend(range(output_tokens))
    return req


def echo_request(output_tokens: int, *, offline: bool = False, tpot_s: float = 0.0) -> EchoReq:
    service_class = ServiceClass.OFFLINE if offline else ServiceClass.ONLINE
    req = request(20, output_tokens, RequestTag(service_class=service_class))
    assert isinstance(req, EchoReq)
    if not offline:
        req.progress = OnlineProgress(arrival_s=0.0, ttft_slo_s=1.0, tpot_slo_s=0.1)
        for token in range(1, output_tokens + 1):
            req.progress.note(token, 5.0 + tpot_s * token)
    return req


def test_only_running_online_rows_are_told_with_their_mean_pace() -> None:
    finished = echo_request(9)
    finished.finished_reason = FINISH_LENGTH(length=9)
    rows = [
        echo_request(5, tpot_s=0.1),
        echo_request(3, tpot_s=0.3),
        echo_request(1),
        echo_request(7, offline=True),
        finished,
        request(30, 2),
    ]
    told = running_online(SimpleNamespace(reqs=rows))
    assert list(told.rows) == [
        OnlineRow(25, 5, 64), OnlineRow(23, 3, 64), OnlineRow(21, 1, 64), OnlineRow(32, 2, 64),
    ]  # fmt: skip
    assert told.step_s == pytest.approx(0.2)


def test_before_a_second_token_there_is_no_pace() -> None:
    assert running_online(SimpleNamespace(reqs=[echo_request(1)])).step_s == 0.0
    assert not running_online(SimpleNamespace(reqs=[])).rows


@pytest.mark.parametrize(
    ("reason", "goes_on"),
    [
        (FINISH_MATCHED_TOKEN(matched=2), False),
        (FINISH_LENGTH(length=12), True),
        (FINISH_ABORT("client left"), True),
    ],
)
def test_a_request_that_was_stopped_is_no_output_that_ended(
    reason: BaseFinishReason, goes_on: bool
) -> None:
    lengths = OutputLengths()
    for _ in range(200):
        req = echo_request(12)
        req.finished_reason = reason
        note_length(lengths, req)
    remaining = lengths.remaining(ServiceClass.ONLINE, 0, 4_096, 0.9)
    assert remaining > 12 if goes_on else remaining == 12
    assert lengths.table(ServiceClass.OFFLINE).num_observed == 0


def test_offline_outputs_are_learned_apart() -> None:
    lengths = OutputLengths()
    req = echo_request(12, offline=True)
    req.finished_reason = FINISH_MATCHED_TOKEN(matched=2)
    note_length(lengths, req)
    assert lengths.table(ServiceClass.OFFLINE).num_observed == 1
    assert lengths.table(ServiceClass.ONLINE).num_observed == 0


@pytest.mark.parametrize("quantile", [0.5, 0.95, 0.999])
def test_every_allowed_configuration_has_its_reserve(quantile: float) -> None:
    config = EchoConfig(reserve_quantile=quantile)
    forecast = reserve_of(config, 10_000, OutputLengths())
    assert isinstance(forecast, AdaptiveReserve)
    assert forecast.reserve_tokens(0.0) == 1_000  # the ceiling, a tenth of the pool
    fixed = reserve_of(EchoConfig(reserve_tokens=70), 10_000, OutputLengths())
    assert isinstance(fixed, FixedReserve)
    longest = EchoConfig(reserve_horizon_s=600.0)
    assert reserve_of(longest, 10_000, OutputLengths()).reserve_tokens(0.0) == 1_000
