"""The tag of a request: what clients may say, and what the scheduler reads."""

from __future__ import annotations

import math
from typing import Any

import pytest

from echo_sglang.domain.tag import RequestTag, ServiceClass, parse_tag, resolve_tag
from echo_sglang.errors import RequestError

NOW_S = 1_000.0


@pytest.mark.parametrize("tier", [None, "auto", "default", "priority", "scale", "fast"])
def test_every_tier_but_flex_is_online(tier: str | None) -> None:
    tag = parse_tag(tier, None, now_unix_s=NOW_S)
    assert tag.service_class is ServiceClass.ONLINE
    assert tag.service_tier == "default"


def test_flex_is_offline_and_answered_as_flex() -> None:
    tag = parse_tag("flex", None, now_unix_s=NOW_S)
    assert tag.service_class is ServiceClass.OFFLINE
    assert tag.service_tier == "flex"


@pytest.mark.parametrize("tier", ["", "Flex", "batch", 5, True, ["flex"], {"a": 1}])
def test_an_unknown_tier_is_refused_and_the_known_ones_are_listed(tier: object) -> None:
    with pytest.raises(RequestError, match="flex, priority") as caught:
        parse_tag(tier, None, now_unix_s=NOW_S)
    assert caught.value.field == "service_tier"


@pytest.mark.parametrize("field", ["ttft_ms", "tpot_ms"])
@pytest.mark.parametrize("value", [0, -1, -0.5, math.nan, math.inf, "250", True, [250], 10**400])
def test_an_slo_that_is_no_time_is_refused(field: str, value: object) -> None:
    with pytest.raises(RequestError) as caught:
        parse_tag(None, {field: value}, now_unix_s=NOW_S)
    assert caught.value.field == f"echo.{field}"


@pytest.mark.parametrize("deadline", [NOW_S, NOW_S - 1, -5, math.nan, "tomorrow"])
def test_a_deadline_that_is_not_ahead_is_refused(deadline: object) -> None:
    with pytest.raises(RequestError) as caught:
        parse_tag("flex", {"deadline": deadline}, now_unix_s=NOW_S)
    assert caught.value.field == "echo.deadline"


def test_a_deadline_one_second_ahead_is_taken() -> None:
    tag = parse_tag("flex", {"deadline": NOW_S + 1}, now_unix_s=NOW_S)
    assert tag.deadline_unix_s == NOW_S + 1


def test_an_unknown_extra_is_named() -> None:
    with pytest.raises(RequestError, match="ttft_ms, tpot_ms, deadline, job, weight") as caught:
        parse_tag(None, {"ttft_ms": 5, "ttft": 5}, now_unix_s=NOW_S)
    assert caught.value.field == "echo.ttft"


@pytest.mark.parametrize("extras", ["soon", 5, ["ttft_ms"]])
def test_extras_must_be_an_object(extras: object) -> None:
    with pytest.raises(RequestError, match="expected an object"):
        parse_tag(None, extras, now_unix_s=NOW_S)


def test_a_huge_value_is_not_repeated_in_the_message() -> None:
    with pytest.raises(RequestError) as caught:
        parse_tag("x" * 10_000, None, now_unix_s=NOW_S)
    assert len(str(caught.value)) < 200


def test_a_ready_made_tag_is_taken_as_it_is() -> None:
    stored = {"class": "offline", "ttft_ms": 250, "deadline": NOW_S + 9}
    tag = resolve_tag(None, None, {"echo": stored, "mine": 1}, now_unix_s=NOW_S)
    assert tag == RequestTag(
        service_class=ServiceClass.OFFLINE, ttft_ms=250.0, deadline_unix_s=NOW_S + 9
    )


@pytest.mark.parametrize(("tier", "extras"), [("flex", None), (None, {"ttft_ms": 5})])
def test_a_tag_said_twice_is_refused_even_if_both_agree(
    tier: str | None, extras: dict[str, Any] | None
) -> None:
    stored = {"class": "offline", "ttft_ms": 5}
    with pytest.raises(RequestError) as caught:
        resolve_tag(tier, extras, {"echo": stored}, now_unix_s=NOW_S)
    assert caught.value.field == "custom_params.echo"


@pytest.mark.parametrize(
    ("stored", "field"),
    [
        ("offline", "custom_params.echo"),
        ({"class": "batch"}, "custom_params.echo.class"),
        ({"class": ["offline"]}, "custom_params.echo.class"),
        ({"class": "online", "tier": 1}, "custom_params.echo.tier"),
        ({"tpot_ms": -1}, "custom_params.echo.tpot_ms"),
        ({"deadline": NOW_S}, "custom_params.echo.deadline"),
    ],
)
def test_a_bad_ready_made_tag_is_refused_and_named(stored: object, field: str) -> None:
    with pytest.raises(RequestError) as caught:
        resolve_tag(None, None, {"echo": stored}, now_unix_s=NOW_S)
    assert caught.value.field == field


@pytest.mark.parametrize("custom_params", [None, {}, {"mine": 1}, {"echo": None}])
def test_a_request_without_a_tag_is_online(custom_params: dict[str, Any] | None) -> None:
    assert RequestTag.from_custom_params(custom_params) == RequestTag()


def test_the_scheduler_takes_a_deadline_that_has_passed_on_the_way() -> None:
    stored = {"class": "offline", "deadline": NOW_S - 100}
    assert RequestTag.from_custom_params({"echo": stored}).deadline_unix_s == NOW_S - 100


def test_a_job_and_its_weight_come_with_the_request() -> None:
    tag = parse_tag("flex", {"job": "team-a/nightly", "weight": 2}, now_unix_s=NOW_S)
    assert (tag.job, tag.weight) == ("team-a/nightly", 2.0)
    assert RequestTag.from_custom_params({"echo": tag.to_custom_params()}) == tag


@pytest.mark.parametrize("job", ["", " a", "a ", "a\nb", "\x00", "x" * 129, 5, True, ["a"], {}])
def test_a_job_that_is_no_short_printable_name_is_refused(job: object) -> None:
    with pytest.raises(RequestError, match="1 to 128 characters") as caught:
        parse_tag("flex", {"job": job}, now_unix_s=NOW_S)
    assert caught.value.field == "echo.job"


@pytest.mark.parametrize("weight", [0, -1, 0.001, 101, math.nan, math.inf, "2", True, [1]])
def test_a_weight_out_of_range_is_refused(weight: object) -> None:
    with pytest.raises(RequestError) as caught:
        parse_tag("flex", {"job": "a", "weight": weight}, now_unix_s=NOW_S)
    assert caught.value.field == "echo.weight"


def test_a_weight_without_a_job_is_refused() -> None:
    with pytest.raises(RequestError, match="name it in echo") as caught:
        parse_tag("flex", {"weight": 2}, now_unix_s=NOW_S)
    assert caught.value.field == "echo.weight"


def test_a_ready_made_tag_is_held_to_the_same_rules() -> None:
    with pytest.raises(RequestError) as caught:
        resolve_tag(
            None, None, {"echo": {"class": "offline", "job": "a", "weight": 0}}, now_unix_s=NOW_S
        )
    assert caught.value.field == "custom_params.echo.weight"
