"""echo-sglang batch: submit files of offline requests to a server, watch them, get results.

Exit codes: 0 done; 1 a batch that did not end well (not completed, or with failed lines), or a
file that is not valid; 2 bad input, or refused by the server; 3 the server does not answer.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, ParamSpec, TypeVar

import typer

from echo_sglang.cli.batch_client import BatchClient, UnreachableError
from echo_sglang.cli.batch_view import (
    ENDED_BADLY,
    exit_with,
    forecast_of,
    print_batch,
    print_forecast,
    print_validation,
    state_of,
    validated,
    watched,
)
from echo_sglang.cli.output import (
    JsonFlag,
    print_json,
    print_table,
    refuses_clearly,
)
from echo_sglang.errors import EchoError
from echo_sglang.service.contents import READ_BYTES
from echo_sglang.service.forecast import speed_of
from echo_sglang.service.validation import Validation
from echo_sglang.service.windows import window_s

UNREACHABLE = 3
DEFAULT_URL = "http://127.0.0.1:30000"

P = ParamSpec("P")
R = TypeVar("R")

app = typer.Typer(
    no_args_is_help=True,
    help="Files of offline requests: submit, watch, pause, retry, get results.",
    epilog="Exit codes: 0 done; 1 a batch that did not end well, or a file that is not valid; "
    "2 bad input or refused; 3 the server does not answer.",
)

UrlOption = Annotated[str, typer.Option("--url", envvar="ECHO_URL", help="The server.")]
KeyOption = Annotated[
    str | None,
    typer.Option("--api-key", envvar="ECHO_API_KEY", help="Its API key.", show_envvar=True),
]
BatchArgument = Annotated[str, typer.Argument(metavar="BATCH", help="Id of the batch.")]
PollOption = Annotated[float, typer.Option("--poll", min=0.1, help="Seconds between looks.")]


def talks_to_server(command: Callable[P, R]) -> Callable[P, R]:
    """A command that ends with exit code 3 when the server does not answer, 2 when it refuses."""
    guarded = refuses_clearly(command)

    @functools.wraps(command)
    def talking(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return guarded(*args, **kwargs)
        except typer.Exit as error:
            if isinstance(error.__cause__, UnreachableError):
                raise typer.Exit(UNREACHABLE) from error
            raise

    return talking


@contextmanager
def connected(url: str, api_key: str | None) -> Iterator[BatchClient]:
    """A client for the length of a command."""
    client = BatchClient(url, api_key)
    try:
        yield client
    finally:
        client.close()


@app.command()
@talks_to_server
def submit(
    path: Annotated[Path, typer.Argument(metavar="FILE", exists=True, dir_okay=False)],
    window: Annotated[str, typer.Option(help="Time it may take, such as 90m, 24h, 7d.")] = "24h",
    metadata: Annotated[list[str] | None, typer.Option(help="NAME=VALUE, may be repeated.")] = None,
    watch_it: Annotated[bool, typer.Option("--watch", help="Stay until it has ended.")] = False,
    poll_s: PollOption = 1.0,
    url: UrlOption = DEFAULT_URL,
    api_key: KeyOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Check a file, upload it, make a batch of it, and say whether its window will hold."""
    checked = _checked(path)
    if checked.errors:
        print_validation(path, checked, as_json)
        raise typer.Exit(ENDED_BADLY)
    assert checked.endpoint is not None
    pairs = _pairs(metadata or [])
    with connected(url, api_key) as client:
        with path.open("rb") as source:
            file = client.upload(path, source)
        batch = validated(client, client.create(file["id"], checked.endpoint, window, pairs))
        if not as_json and batch["status"] == "in_progress":
            print_forecast(batch["echo"])
        if watch_it:
            batch = watched(client, batch["id"], poll_s, quiet=as_json)
    print_batch(batch, as_json)
    exit_with(batch if watch_it else {})


@app.command("list")
@talks_to_server
def list_batches(
    limit: Annotated[int, typer.Option(min=1, help="How many at most.")] = 20,
    url: UrlOption = DEFAULT_URL,
    api_key: KeyOption = None,
    as_json: JsonFlag = False,
) -> None:
    """The newest batches."""
    with connected(url, api_key) as client:
        batches = list(client.batches(limit))
    if as_json:
        print_json({"data": batches})
        return
    print_table(
        "Batches",
        ("batch", "status", "done", "failed", "of", "window"),
        [
            [
                batch["id"],
                state_of(batch),
                *(str(batch["request_counts"][name]) for name in ("completed", "failed", "total")),
                batch["completion_window"],
            ]
            for batch in batches
        ],
    )


@app.command()
@talks_to_server
def status(
    batch_id: BatchArgument,
    url: UrlOption = DEFAULT_URL,
    api_key: KeyOption = None,
    as_json: JsonFlag = False,
) -> None:
    """How far a batch is."""
    with connected(url, api_key) as client:
        print_batch(client.get(batch_id), as_json)


@app.command()
@talks_to_server
def watch(
    batch_id: BatchArgument,
    poll_s: PollOption = 1.0,
    url: UrlOption = DEFAULT_URL,
    api_key: KeyOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Stay with a batch until it has ended; exit code 1 if it did not end well."""
    with connected(url, api_key) as client:
        batch = watched(client, batch_id, poll_s, quiet=as_json)
    print_batch(batch, as_json)
    exit_with(batch)


@app.command()
@talks_to_server
def results(
    batch_id: BatchArgument,
    out: Annotated[Path | None, typer.Option("-o", "--out", help="File; else stdout.")] = None,
    errors: Annotated[bool, typer.Option("--errors", help="The error file instead.")] = False,
    offset: Annotated[int, typer.Option(min=0, help="Leave out so many lines.")] = 0,
    url: UrlOption = DEFAULT_URL,
    api_key: KeyOption = None,
) -> None:
    """The output file of a batch, also while it runs: what is there so far."""
    with connected(url, api_key) as client:
        batch = client.get(batch_id)
        file_id = batch["error_file_id" if errors else "output_file_id"]
        pieces = client.content(file_id, offset) if file_id else iter(())
        if out is None:
            for piece in pieces:
                sys.stdout.buffer.write(piece)
            sys.stdout.buffer.flush()
            return
        # Only a whole answer takes the place of the file.
        part = out.with_name(f"{out.name}.part")
        try:
            with part.open("wb") as target:
                target.writelines(pieces)
            part.replace(out)
        except OSError as error:
            raise EchoError(f"{out} cannot be written: {error}") from error
        finally:
            part.unlink(missing_ok=True)


def _changing(verb: str, text: str) -> None:
    """Add the command that asks the server to change a batch."""

    def change(
        batch_id: BatchArgument,
        url: UrlOption = DEFAULT_URL,
        api_key: KeyOption = None,
        as_json: JsonFlag = False,
    ) -> None:
        with connected(url, api_key) as client:
            print_batch(client.change(batch_id, verb), as_json)

    app.command(verb, help=text)(talks_to_server(change))


_changing("cancel", "Abort what runs, keep what finished; the rest become error lines.")
_changing("pause", "Start no more lines until it is resumed; its deadline stays.")
_changing("resume", "Go on with a paused batch.")
_changing("retry", "Make a new batch of the failed lines of one that has ended.")


@app.command()
@talks_to_server
def validate(
    path: Annotated[Path, typer.Argument(metavar="FILE", exists=True, dir_okay=False)],
    endpoint: Annotated[
        str | None, typer.Option(help="What all lines must ask; else that of the first line.")
    ] = None,
    window: Annotated[
        str | None,
        typer.Option(
            help="Ask the server at --url whether the file would be done in 90m, 24h, 7d."
        ),
    ] = None,
    url: UrlOption = DEFAULT_URL,
    api_key: KeyOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Check a file as the server would, without one; exit code 1 if it is not a batch."""
    checked = _checked(path, endpoint)
    forecast = None
    if window is not None:
        left_s = window_s(window)
        if not checked.errors:
            with connected(url, api_key) as client:
                forecast = forecast_of(checked.demand, speed_of(client.status()), left_s)
    print_validation(path, checked, as_json, forecast)
    if checked.errors:
        raise typer.Exit(ENDED_BADLY)


def _checked(path: Path, endpoint: str | None = None) -> Validation:
    validation = Validation(endpoint)
    try:
        with path.open("rb") as source:
            for _ in validation.lines(iter(lambda: source.read(READ_BYTES), b"")):
                pass
    except OSError as error:
        raise EchoError(f"{path} cannot be read: {error}") from error
    return validation


def _pairs(given: list[str]) -> Mapping[str, str]:
    pairs = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not (name and equals):
            raise EchoError(f"--metadata {text!r}: write NAME=VALUE")
        pairs[name] = value
    return pairs
