"""docs/features.md says what `compat` refuses, and every row has a test."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("sglang")

from echo_sglang.adapter import compat
from echo_sglang.adapter.features import FEATURES, Feature, Verdict, page
from echo_sglang.adapter.requests import can_release

ROOT = Path(__file__).resolve().parents[2]

REFUSED_BY_MODEL = {"Mamba and hybrid state-space models"}
"""Seen only once the model is known."""


def test_the_page_is_up_to_date() -> None:
    written = (ROOT / "docs" / "features.md").read_text(encoding="utf-8")
    assert written == page(), "run scripts/write_features.py"


@pytest.mark.parametrize("feature", FEATURES, ids=lambda feature: feature.name)
def test_the_test_behind_a_row_exists(feature: Feature) -> None:
    file, _, function = feature.test.partition("::")
    assert re.search(rf"^def {function}\(", (ROOT / file).read_text(encoding="utf-8"), re.MULTILINE)


def test_what_the_page_says_is_refused_is_what_the_launcher_refuses() -> None:
    said = {row.name for row in FEATURES if row.verdict is Verdict.REFUSED}
    assert said - REFUSED_BY_MODEL == {refusal.feature for refusal in compat.FLAG_REFUSALS}


def test_every_flag_that_is_refused_is_on_its_row() -> None:
    rows = {row.name: row.asked_by for row in FEATURES}
    for refusal in compat.FLAG_REFUSALS:
        flag = refusal.given.split()[0]
        assert flag in rows[refusal.feature], refusal.given


ORDINARY: dict[str, Any] = {
    "input_embeds": None,
    "multimodal_inputs": None,
    "beam_group": None,
    "session": None,
    "grammar": None,
    "return_logprob": False,
    "return_hidden_states": False,
    "to_finish": None,
    "finished_reason": None,
}


def running(**fields: Any) -> Any:
    return SimpleNamespace(**{**ORDINARY, **fields})


def test_an_ordinary_request_may_be_released() -> None:
    assert can_release(running())


@pytest.mark.parametrize("field", ORDINARY)
def test_what_sglang_cannot_resume_is_never_released(field: str) -> None:
    assert not can_release(running(**{field: [[0.5]]}))


def test_the_fields_that_forbid_a_release_are_sglangs() -> None:
    import inspect

    from sglang.srt.managers.schedule_batch import Req

    source = inspect.getsource(Req)
    for field in ORDINARY:
        assert f"self.{field}" in source, field
