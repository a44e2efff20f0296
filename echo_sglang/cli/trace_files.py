"""Step trace files, read from disk: as records, as samples, as a pandas DataFrame."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from echo_sglang.adapter.trace_file import files_of
from echo_sglang.domain.batch import StepSample
from echo_sglang.domain.step_record import StepMode
from echo_sglang.errors import TraceError
from echo_sglang.estimate.profile import ProfileIdentity
from echo_sglang.estimate.step_trace import StepTrace, read_step_trace

if TYPE_CHECKING:
    import pandas as pd


def load_trace(path: Path) -> StepTrace:
    """The trace at PATH with the files it was rotated to. Raises TraceError."""
    files = files_of(path)
    if not path.is_file():
        raise TraceError(f"{path} is not a file; expected what a server wrote with --echo-trace")
    try:
        with ExitStack() as open_files:
            return read_step_trace(
                [
                    (
                        str(file),
                        open_files.enter_context(
                            file.open(encoding="utf-8", errors="replace", newline="\n")
                        ),
                    )
                    for file in files
                ]
            )
    except OSError as error:
        raise TraceError(f"{path} cannot be read: {error}") from error


def samples_of(trace: StepTrace, *, warm_up: int) -> list[StepSample]:
    """What a step-time model learns from.

    warm_up: iterations after a server's start that are left out; they include one-time costs
    such as kernels being chosen.
    """
    return [
        StepSample(record.shape, record.step_s)
        for record in trace.records
        if record.iteration > warm_up and record.mode is not StepMode.IDLE and record.step_s > 0
    ]


def identity_of(trace: StepTrace) -> ProfileIdentity:
    """The server that wrote the trace. Raises TraceError if its header does not say."""
    values = dict(trace.header.identity)
    try:
        texts = [values[name] for name in ("hardware", "model", "sglang_version", "dtype")]
        flags = tuple(values["flags"])
        if not all(isinstance(text, str) for text in (*texts, *flags)):
            raise TypeError("its values must be texts")
        return ProfileIdentity(**{**values, "tp_size": int(values["tp_size"]), "flags": flags})
    except (KeyError, TypeError, ValueError) as error:
        raise TraceError(
            f"the trace's header does not say which server wrote it ({error!r}); record it "
            "again with this release"
        ) from error


def trace_frame(path: Path) -> pd.DataFrame:
    """One row an iteration: the columns of the trace, the pairs' sums in columns of their own.

    Needs pandas. Raises TraceError.
    """
    import pandas as pd

    rows = []
    for record in load_trace(path).records:
        sums = record.sums
        rows.append(
            {
                "iteration": record.iteration,
                "mode": record.mode.value,
                "ended_s": record.ended_s,
                "step_s": record.step_s,
                "host_s": record.host_s,
                "device_s": record.device_s,
                "extends": record.extends,
                "extend_rows": sums.rows,
                "extend_tokens": sums.tokens,
                "prefix_tokens": sums.prefix_tokens,
                "extend_pairs": sums.pairs,
                "extend_square": sums.square,
                "decode_rows": record.decode_rows,
                "decode_kv_tokens": record.decode_kv_tokens,
                "padded_rows": record.padded_rows,
                "online_rows": record.online_rows,
                "offline_rows": record.offline_rows,
                "online_tokens": record.online_tokens,
                "offline_tokens": record.offline_tokens,
                "evicted_tokens": record.evicted_tokens,
                "released_rows": record.released_rows,
                "reason": record.reason,
            }
        )
    return pd.DataFrame(rows)
