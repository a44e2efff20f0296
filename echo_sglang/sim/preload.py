"""Imported once by the process that emulated runs are forked from: SGLang takes ten seconds."""

from __future__ import annotations

import gc

from echo_sglang.adapter.collector import collect_from_now_on
from echo_sglang.sim.environment import prepare_environment

gc.disable()
prepare_environment()

import sglang.srt.utils  # noqa: E402, F401  (must come before sglang.srt.platforms)
from sglang.srt.managers import scheduler  # noqa: E402, F401

import echo_sglang.adapter.scheduler  # noqa: E402
import echo_sglang.sim.scheduler  # noqa: E402, F401

collect_from_now_on()
