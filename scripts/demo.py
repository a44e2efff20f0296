"""Show Echo at work: bursty chat alone, then the same beside a pool of document questions.

Starts a server on a small real model, plays both phases, prints what a user wants to know and
leaves demo.json and demo.png in results/demo/. Under five minutes on two CPU cores. The SLO is TTFT
2.0 s and TPOT 300 ms. On a machine that is much slower than usual it is as many times longer, and
messages come as many times more rarely.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from echo_sglang.errors import EchoError
from eval import contenders
from eval.harness.client import LoadClient
from eval.harness.corpus import read_documents
from eval.harness.provenance import collect_provenance
from eval.harness.records import RunRecord, Slo, summarise
from eval.harness.report import caption_of, plot_timeline, write_json
from eval.harness.server import (
    ECHO_MODULE,
    REPOSITORY,
    STOCK_MODULE,
    Server,
    ServerError,
    ServerSpec,
    default_model_path,
    exit_on_sigterm,
)
from eval.harness.workload import (
    Workload,
    WorkloadConfig,
    build_workload,
    lone_message_workload,
    warm_up_workload,
)

RESULTS = REPOSITORY / "results" / "demo"
STATUS_AT = 0.75
NUM_SAMPLES = 3
NUM_DECISIONS = 3
NUM_PROBES = 3
PROBE_SEED = 3000
PROBE_TOKENS = 24
USUAL = Slo(ttft_s=0.25, tpot_s=0.065)
"""What a lone message takes on machines like those that load and SLO were chosen on."""

MUCH_SLOWER = 1.5

SUMMARY_LINES = (
    ("chat messages answered", "online_finished", "{:.0f}"),
    ("within SLO ({slo})", "attainment", "{:.1%}"),
    ("time to first token, p50 (s)", "ttft_p50_s", "{:.2f}"),
    ("time to first token, p99 (s)", "ttft_p99_s", "{:.2f}"),
    ("time per further token, p50 (s)", "tpot_p50_s", "{:.3f}"),
    ("time per further token, p99 (s)", "tpot_p99_s", "{:.3f}"),
    ("document questions answered", "offline_done", "{:.0f}"),
    ("  per second", "offline_per_s", "{:.2f}"),
    ("  tokens per second, read and written", "offline_tokens_per_s", "{:.0f}"),
    ("  share of their prompts from KV cache", "kv_hit_rate", "{:.1%}"),
)


class Watcher:
    """Keeps a progress line on stderr and takes one look at /echo/status late in the window."""

    def __init__(self, server: Server, client: LoadClient, workload: Workload) -> None:
        self._server = server
        self._client = client
        self._workload = workload
        self.status: dict[str, Any] | None = None

    async def watch(self) -> None:
        """Run until cancelled: a line a second on a terminal, one every ten seconds elsewhere."""
        live = sys.stderr.isatty()
        period_s = 1.0 if live else 10.0
        start_s = time.monotonic()
        while True:
            await asyncio.sleep(period_s)
            elapsed_s = time.monotonic() - start_s
            line = self._line(elapsed_s)
            print(f"\r{line}" if live else line, end="" if live else "\n", file=sys.stderr,
                  flush=True)  # fmt: skip
            if elapsed_s >= STATUS_AT * self._workload.config.window_s and self.status is None:
                self.status = await asyncio.to_thread(self._server.get_json, "/echo/status") or {}

    def _line(self, elapsed_s: float) -> str:
        progress, workload = self._client.progress, self._workload
        line = (
            f"  {elapsed_s:5.0f} s of {workload.config.window_s:.0f} | "
            f"chat {progress.online_done} answered of {progress.online_sent} sent"
        )
        if workload.offline:
            line += (
                f" | documents {progress.offline_done} of {len(workload.offline)}, "
                f"{progress.offline_tokens} tokens"
            )
        return line


def build_parser() -> argparse.ArgumentParser:
    """The command line of the demo."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--alone-s", type=float, default=40.0, help="online alone (%(default)s)")
    parser.add_argument("--beside-s", type=float, default=90.0, help="beside (%(default)s)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--server", choices=("echo", "stock"), default="echo")
    parser.add_argument("--model-path", type=Path, default=default_model_path())
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the demo; the exit code is 1, with a message, if it could not be completed."""
    try:
        show(build_parser().parse_args(argv))
    except EchoError as error:
        print(f"\nerror: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nstopped", file=sys.stderr)
        return 130
    return 0


def show(arguments: argparse.Namespace) -> None:
    """Play both phases and report. Raises ServerError if the server cannot do its part."""
    model_path = arguments.model_path.expanduser()
    with contextlib.ExitStack() as servers:
        server, client, contender = _start(servers, arguments.server, contenders.SLO, model_path)
        slowness = slowness_of_machine(*_lone_message(client))
        slo, beside, alone = slo_for(slowness), *_workloads(arguments, slowness)
        if slo != contenders.SLO:
            servers.close()
            server, client, contender = _start(servers, arguments.server, slo, model_path)
        server.flush_cache()
        _say(f"Phase 1 of 2: {len(alone.online)} chat messages in {arguments.alone_s:.0f} s")
        alone_run, _ = asyncio.run(_play(server, client, alone))
        server.flush_cache()
        _say(
            f"Phase 2 of 2: {len(beside.online)} chat messages in {arguments.beside_s:.0f} s "
            f"beside {len(beside.offline)} questions about documents"
        )
        beside_run, status = asyncio.run(_play(server, client, beside))
    provenance = collect_provenance(
        model_path=model_path, pythons={arguments.server: sys.executable}
    )
    caption = caption_of(provenance, seeds=[arguments.seed], window_s=arguments.beside_s)
    _print_report(alone_run, beside_run, status, beside, slo)
    write_json(RESULTS / "demo.json", {
        "provenance": provenance,
        "seed": arguments.seed,
        "flags": contender.flags,
        "slo": asdict(slo),
        "alone": {"summary": summarise(alone_run, slo), "run": alone_run.to_json()},
        "beside": {"summary": summarise(beside_run, slo), "run": beside_run.to_json()},
        "echo_status": status,
    })  # fmt: skip
    plot_timeline(beside_run, RESULTS / "demo.png", slo=slo, caption=caption)
    _say(f"\n{caption}")
    _say(f"Left in {RESULTS.relative_to(REPOSITORY)}/: demo.json, demo.png, server.log")


def _start(
    servers: contextlib.ExitStack, name: str, slo: Slo, model_path: Path
) -> tuple[Server, LoadClient, contenders.Contender]:
    """A server that is warm. Raises ServerError if it does not come up."""
    told = ("--slo-ttft-ms", f"{slo.ttft_s * 1e3:g}", "--slo-tpot-ms", f"{slo.tpot_s * 1e3:g}")
    contender = contenders.echo(told) if name == "echo" else contenders.stock_fcfs()
    module = ECHO_MODULE if name == "echo" else STOCK_MODULE
    spec = ServerSpec(module=module, model_path=model_path, flags=contender.flags)
    _say(f"Starting {module} on {model_path.name}, about half a minute ...")
    server = servers.enter_context(Server(spec, log=RESULTS / "server.log"))
    client = LoadClient(server.base_url, dialect=contender.dialect)
    asyncio.run(client.play(warm_up_workload()))
    return server, client, contender


def slowness_of_machine(ttft_s: float, tpot_s: float) -> float:
    """How many times the usual a lone message takes; 1.0 if it is not much slower. Says so if it
    is."""
    slowness = round(max(ttft_s / USUAL.ttft_s, tpot_s / USUAL.tpot_s), 1)
    if slowness < MUCH_SLOWER:
        return 1.0
    _say(
        f"A lone message takes {ttft_s:.2f} s and {tpot_s * 1e3:.0f} ms a token on this machine, "
        f"{slowness} times the usual: the SLO is as many times longer, {_told(slo_for(slowness))}, "
        "messages come as many times more rarely, and the server is started again."
    )
    return slowness


def slo_for(slowness: float) -> Slo:
    """The SLO on a machine of this slowness."""
    usual = contenders.SLO
    return Slo(ttft_s=slowness * usual.ttft_s, tpot_s=slowness * usual.tpot_s)


def _workloads(arguments: argparse.Namespace, slowness: float) -> tuple[Workload, Workload]:
    """Chat beside questions, and chat alone."""
    usual = WorkloadConfig(seed=arguments.seed)
    config = replace(
        usual,
        window_s=arguments.beside_s,
        online_rate_per_s=usual.online_rate_per_s / slowness,
        burst_every_s=usual.burst_every_s * slowness,
        # All there are: a quick machine answers the questions about the usual 24 before the end.
        num_documents=len(read_documents(num_words=usual.document_words)),
    )
    alone = replace(config, seed=arguments.seed + 1, window_s=arguments.alone_s, num_documents=0)
    return build_workload(config), build_workload(alone)


def _told(slo: Slo) -> str:
    return f"TTFT {slo.ttft_s:.1f} s, TPOT {slo.tpot_s * 1e3:.0f} ms"


def _lone_message(client: LoadClient) -> tuple[float, float]:
    """Median TTFT and TPOT of chat messages to a server that does nothing else, seconds."""
    answers = []
    for number in range(NUM_PROBES):
        workload = lone_message_workload(PROBE_SEED + number, tokens_out=PROBE_TOKENS)
        answers += asyncio.run(client.play(workload)).online
    tpots_s = [answer.tpot_s for answer in answers if answer.tpot_s is not None]
    if not tpots_s:
        raise ServerError(f"an idle server did not answer: {answers[0].error}")
    return statistics.median(a.ttft_s for a in answers), statistics.median(tpots_s)


async def _play(
    server: Server, client: LoadClient, workload: Workload
) -> tuple[RunRecord, dict[str, Any] | None]:
    """Play with a progress line; the second value is /echo/status as seen late in the window."""
    watcher = Watcher(server, client, workload)
    task = asyncio.create_task(watcher.watch())
    try:
        run = await client.play(workload)
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        if sys.stderr.isatty():
            print(file=sys.stderr)
    server.check_alive()
    if run.refused:
        raise ServerError(f"every chat message failed, {run.refused}; {server.log_tail()}")
    return run, watcher.status


def _print_report(
    alone: RunRecord,
    beside: RunRecord,
    status: dict[str, Any] | None,
    workload: Workload,
    slo: Slo,
) -> None:
    columns = [summarise(alone, slo), summarise(beside, slo)]
    _say(f"\n{'':42}{'alone':>12}{'beside':>12}")
    for label, key, form in SUMMARY_LINES:
        values = [_cell(column, key, form) for column in columns]
        _say(f"{label.format(slo=_told(slo)):42}" + "".join(f"{value:>12}" for value in values))
    if columns[1]["pool_dry"]:
        _say("The pool of questions ran dry before the end; rates are until then.")
    _print_samples(beside, workload)
    if status:
        _print_status(status)


def _cell(summary: dict[str, Any], key: str, form: str) -> str:
    no_offline = key.startswith("offline") and not summary["offline_submitted"]
    return "-" if no_offline or summary[key] is None else form.format(summary[key])


def _print_samples(run: RunRecord, workload: Workload) -> None:
    """Three answers about three documents; they end where the token limit cut them."""
    requests = {request.index: request for request in workload.offline}
    by_document = {record.document: record for record in run.offline if record.error is None}
    _say("\nSample answers (cut after 16 tokens):")
    for record in list(by_document.values())[:NUM_SAMPLES]:
        request = requests[record.index]
        _say(f"  [{request.title}] {request.question}")
        _say(f"    {' '.join(record.text.split())} ...")


def _print_status(status: dict[str, Any]) -> None:
    """GET /echo/status, as it was late in the second phase, whatever fields it has."""
    _say("\nGET /echo/status, three quarters into phase 2:")
    for key, value in status.items():
        if isinstance(value, list):
            _say(f"  {key}: the last {min(NUM_DECISIONS, len(value))} of {len(value)}")
            for entry in value[-NUM_DECISIONS:]:
                _say(f"    {_compact(entry)}")
        else:
            _say(f"  {key}: {_compact(value)}")


def _compact(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_compact(inner)}" for key, inner in value.items())
    return f"{value:.4g}" if isinstance(value, float) else json.dumps(value, default=str)


def _say(text: str) -> None:
    print(text, flush=True)


if __name__ == "__main__":
    exit_on_sigterm()
    sys.exit(main())
