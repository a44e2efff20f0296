"""Receives SGLang's own forward pass metrics, to check the step trace against them.

A server with `--enable-forward-pass-metrics --forward-pass-metrics-ipc-name NAME` publishes
one message an iteration at NAME.<rank>; sglang/srt/observability/forward_pass_metrics.py.
"""

from __future__ import annotations

import threading
from types import TracebackType

import zmq
from sglang.srt.observability.forward_pass_metrics import ForwardPassMetrics, decode

from echo_sglang.estimate.trace_check import ForwardPass

POLL_MS = 100


class ForwardPassRecorder:
    """Collects what one rank publishes, from `start` to `stop`, in a thread of its own.

    The publisher keeps nothing for those who come later: what it sent before the
    subscription reached it is lost.
    """

    def __init__(self, ipc_name: str, *, rank: int = 0) -> None:
        self._endpoint = f"{ipc_name}.{rank}"
        self._passes: list[ForwardPass] = []
        self._stop = threading.Event()
        self._heard = threading.Event()
        self._thread = threading.Thread(target=self._run, name="echo-fpm", daemon=True)

    def __enter__(self) -> ForwardPassRecorder:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop.set()
        self._thread.join()

    @property
    def passes(self) -> tuple[ForwardPass, ...]:
        """What was received so far, heartbeats of an idle server included."""
        return tuple(self._passes)

    def wait_for_first(self, timeout_s: float) -> bool:
        """Wait until something was received: from then on nothing is missed. An idle server
        sends a heartbeat each second. False if nothing came in time."""
        return self._heard.wait(timeout_s)

    def _run(self) -> None:
        with zmq.Context() as context, context.socket(zmq.SUB) as socket:
            socket.setsockopt(zmq.SUBSCRIBE, b"")
            socket.setsockopt(zmq.RCVHWM, 0)
            socket.setsockopt(zmq.LINGER, 0)
            socket.connect(self._endpoint)
            while not self._stop.is_set():
                if not socket.poll(POLL_MS):
                    continue
                _, _, payload = socket.recv_multipart()
                self._passes.append(forward_pass(decode(payload)))
                self._heard.set()


def forward_pass(metrics: ForwardPassMetrics) -> ForwardPass:
    """The fields of a message that the step trace can be compared with."""
    scheduled = metrics.scheduled_requests
    return ForwardPass(
        sequence=metrics.counter_id,
        seconds=metrics.wall_time,
        extend_rows=scheduled.num_prefill_requests,
        extend_tokens=scheduled.sum_prefill_tokens,
        prefix_tokens=scheduled.sum_prefill_kv_tokens,
        decode_rows=scheduled.num_decode_requests,
        decode_kv_tokens=scheduled.sum_decode_kv_tokens,
    )
