"""The tag survives its way to the scheduler, whatever a client may say."""

from __future__ import annotations

import json

from hypothesis import given, settings
from hypothesis import strategies as st

from echo_sglang.domain.tag import (
    CUSTOM_PARAMS_KEY,
    RequestTag,
    ServiceClass,
    parse_tag,
    resolve_tag,
)
from echo_sglang.errors import RequestError

NOW_S = 1_000.0

milliseconds = st.none() | st.floats(min_value=1e-3, max_value=1e9)
jobs = st.text(min_size=1, max_size=128).filter(lambda t: t.isprintable() and t.strip() == t)
tags = st.builds(
    RequestTag,
    service_class=st.sampled_from(ServiceClass),
    ttft_ms=milliseconds,
    tpot_ms=milliseconds,
    deadline_unix_s=st.none() | st.floats(min_value=NOW_S + 1, max_value=1e12),
    job=jobs,
    weight=st.none() | st.floats(min_value=0.01, max_value=100.0),
)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=8,
)
extras = json_values | st.fixed_dictionaries(
    {}, optional={name: json_values for name in ("ttft_ms", "tpot_ms", "deadline", "job", "weight")}
)


@settings(deadline=None)
@given(tag=tags)
def test_a_tag_comes_back_from_custom_params_after_json(tag: RequestTag) -> None:
    wire = json.loads(json.dumps({CUSTOM_PARAMS_KEY: tag.to_custom_params()}))
    assert RequestTag.from_custom_params(wire) == tag
    assert resolve_tag(None, None, wire, now_unix_s=NOW_S) == tag


@settings(deadline=None)
@given(tag=tags)
def test_the_wire_form_has_one_level_and_no_nulls(tag: RequestTag) -> None:
    assert all(isinstance(value, (str, float)) for value in tag.to_custom_params().values())


@settings(deadline=None)
@given(tier=json_values, given_extras=extras)
def test_any_json_is_a_valid_tag_or_a_named_refusal(tier: object, given_extras: object) -> None:
    try:
        tag = parse_tag(tier, given_extras, now_unix_s=NOW_S)
    except RequestError as error:
        assert error.field.split(".")[0] in ("service_tier", "echo")
        return
    assert tag.service_tier == ("flex" if tier == "flex" else "default")
    assert tag.ttft_ms is None or tag.ttft_ms > 0
    assert tag.tpot_ms is None or tag.tpot_ms > 0
    assert tag.deadline_unix_s is None or tag.deadline_unix_s > NOW_S


@settings(deadline=None)
@given(stored=extras)
def test_any_ready_made_json_is_a_valid_tag_or_a_named_refusal(stored: object) -> None:
    try:
        resolve_tag(None, None, {CUSTOM_PARAMS_KEY: stored}, now_unix_s=NOW_S)
    except RequestError as error:
        assert error.field.startswith("custom_params.echo")
