"""Every row of the tables of bad input in docs/batches.md, against the API as it is."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest

from tests.unit.service.http_kit import CHAT, World, line, lines, rows, wanted, world

DOCS = Path(__file__).parents[3] / "docs" / "batches.md"
NOBODY = "file-" + "0" * 32
MAX_BYTES = 1_000_000
BIG_BYTES = MAX_BYTES + 1
DEEP = b"[" * 100_000 + b"]" * 100_000


def table(first_column: str) -> list[list[str]]:
    """The rows of the table in the docs whose first column is called so."""
    found: list[list[str]] = []
    inside = False
    for text in DOCS.read_text().splitlines():
        cells = [cell.strip() for cell in text.strip("|").split("|")]
        if text.startswith("|") and cells[0] == first_column:
            inside = True
        elif inside and not text.startswith("|"):
            break
        elif inside and not cells[0].startswith("---"):
            found.append(cells)
    assert found, first_column
    return found


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with world(tmp_path_factory.mktemp("data"), max_upload_bytes=MAX_BYTES) as found:
        yield found


@pytest.fixture(scope="module")
def roomy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with world(tmp_path_factory.mktemp("data")) as found:
        yield found


Answer = Any
PURPOSE = {"purpose": "batch"}
FILE = {"file": ("in.jsonl", b"{}\n")}


def upload(one: World, data: Any = PURPOSE, files: Any = FILE, **options: Any) -> Answer:
    return one.client.post("/v1/files", data=data, files=files, **options)


def raw_upload(one: World, body: bytes, kind: str = "multipart/form-data; boundary=B") -> Answer:
    return one.client.post("/v1/files", content=body, headers={"Content-Type": kind})


def in_pieces(one: World) -> Answer:
    head = b'--B\r\nContent-Disposition: form-data; name="file"; filename="a.jsonl"\r\n\r\n'

    def pieces() -> Iterator[bytes]:
        yield head
        for _ in range(BIG_BYTES // 50_000 + 1):
            yield b"x" * 50_000
        yield b"\r\n--B--\r\n"

    kind = {"Content-Type": "multipart/form-data; boundary=B"}
    return one.client.post("/v1/files", content=pieces(), headers=kind)


def create(one: World, **fields: Any) -> Answer:
    body = wanted(NOBODY, **fields)
    return one.client.post("/v1/batches", json={k: v for k, v in body.items() if v is not None})


def raw_create(one: World, body: bytes) -> Answer:
    return one.client.post("/v1/batches", content=body)


def finished(one: World) -> dict[str, Any]:
    return one.until(one.submit(lines("a"))["id"], "completed")


def used_key(one: World) -> Answer:
    headers = {"Idempotency-Key": "used"}
    body = wanted(one.upload(lines("a")))
    assert one.client.post("/v1/batches", json=body, headers=headers).status_code == 200
    return one.client.post("/v1/batches", json={**body, "metadata": {"a": "b"}}, headers=headers)


REQUESTS: dict[str, Callable[[World], Answer]] = {
    "upload a name without .jsonl": lambda one: upload(one, files={"file": ("a.txt", b"x")}),
    "upload a name with NUL": lambda one: raw_upload(
        one,
        b'--B\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nbatch\r\n'
        b'--B\r\nContent-Disposition: form-data; name="file"; filename="a\x00.jsonl"\r\n\r\n'
        b"x\r\n--B--\r\n",
    ),
    "upload without a purpose": lambda one: upload(one, data={}),
    "upload with another purpose": lambda one: upload(one, data={"purpose": "fine-tune"}),
    "upload with an unknown field": lambda one: upload(one, data={**PURPOSE, "colour": "red"}),
    "upload without a file": lambda one: raw_upload(
        one, b'--B\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nbatch\r\n--B--\r\n'
    ),
    "upload two files": lambda one: upload(
        one, files=[("file", ("a.jsonl", b"x")), ("file", ("b.jsonl", b"y"))]
    ),
    "upload JSON": lambda one: one.client.post("/v1/files", json={"file": "x"}),
    "upload compressed": lambda one: upload(one, headers={"Content-Encoding": "gzip"}),
    "upload a form cut short": lambda one: raw_upload(
        one, b'--B\r\nContent-Disposition: form-data; name="file"; filename="a.jsonl"\r\n\r\nx'
    ),
    "upload a form without boundaries": lambda one: raw_upload(one, b"nothing of the kind"),
    "upload too many bytes": lambda one: upload(one, files={"file": ("a.jsonl", b"x" * BIG_BYTES)}),
    "upload too many bytes in pieces": in_pieces,
    "upload to expire too soon": lambda one: upload(
        one,
        data={**PURPOSE, "expires_after[anchor]": "created_at", "expires_after[seconds]": "60"},
    ),
    "upload to expire at a strange anchor": lambda one: upload(
        one, data={**PURPOSE, "expires_after[anchor]": "birth", "expires_after[seconds]": "4000"}
    ),
    "get a file of nobody": lambda one: one.client.get(f"/v1/files/{NOBODY}"),
    "get a file called ../": lambda one: one.client.get("/v1/files/..%2F..%2Fetc%2Fpasswd"),
    "get content with NUL in the id": lambda one: one.client.get("/v1/files/a%00b/content"),
    "get content of a file of nobody": lambda one: one.client.get(f"/v1/files/{NOBODY}/content"),
    "get content from a negative offset": lambda one: one.client.get(
        f"/v1/files/{NOBODY}/content?offset=-1"
    ),
    "delete a file of nobody": lambda one: one.client.delete(f"/v1/files/{NOBODY}"),
    "list files with limit 0": lambda one: one.client.get("/v1/files?limit=0"),
    "list files after nobody": lambda one: one.client.get(f"/v1/files?after={NOBODY}"),
    "list files in a strange order": lambda one: one.client.get("/v1/files?order=random"),
    "list batches with limit 101": lambda one: one.client.get("/v1/batches?limit=101"),
    "list batches after nobody": lambda one: one.client.get("/v1/batches?after=batch_x"),
    "get a batch of nobody": lambda one: one.client.get("/v1/batches/batch_x"),
    "get a batch called ../": lambda one: one.client.get("/v1/batches/..%2Fbatch_x"),
    "cancel a batch of nobody": lambda one: one.client.post("/v1/batches/batch_x/cancel"),
    "cancel a batch that has ended": lambda one: one.client.post(
        f"/v1/batches/{finished(one)['id']}/cancel"
    ),
    "retry a batch without failed lines": lambda one: one.client.post(
        f"/v1/batches/{finished(one)['id']}/retry"
    ),
    "create with a body that is not JSON": lambda one: raw_create(one, b"{'a': 1}"),
    "create with a body that is a list": lambda one: raw_create(one, b"[]"),
    "create with a body 100,000 levels deep": lambda one: raw_create(one, DEEP),
    "create with a body 20,000 levels deep": lambda one: raw_create(
        one, b"[" * 20_000 + b"]" * 20_000
    ),
    "create with an unknown field": lambda one: create(one, colour="red"),
    "create without an input file": lambda one: create(one, input_file_id=None),
    "create with a number for the input file": lambda one: create(one, input_file_id=7),
    "create with a file of nobody": create,
    "create with a file called ../": lambda one: create(one, input_file_id="../../etc/passwd"),
    "create with a result file": lambda one: create(
        one, input_file_id=finished(one)["output_file_id"]
    ),
    "create with an unknown endpoint": lambda one: create(one, endpoint="/v1/rerank"),
    "create with a strange window": lambda one: create(one, completion_window="soon"),
    "create with a window too long": lambda one: create(one, completion_window="31d"),
    "create with 17 pairs of metadata": lambda one: create(
        one, metadata={str(number): "x" for number in range(17)}
    ),
    "create with a long metadata value": lambda one: create(one, metadata={"a": "x" * 513}),
    "create with a number in metadata": lambda one: create(one, metadata={"a": 1}),
    "create with results that expire too soon": lambda one: create(
        one, output_expires_after={"anchor": "created_at", "seconds": 1}
    ),
    "create with an empty idempotency key": lambda one: one.client.post(
        "/v1/batches", json=wanted(NOBODY), headers={"Idempotency-Key": ""}
    ),
    "create with a used idempotency key": used_key,
}


@pytest.mark.parametrize("row", table("request"), ids=lambda row: row[0])
def test_a_bad_request_is_answered_as_the_docs_say(one: World, row: list[str]) -> None:
    case, status, code, says = row
    files = one.client.get("/v1/files").json()["data"]
    answer = REQUESTS[case](one)
    assert answer.status_code == int(status), answer.text
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["code"] == code
    assert says in error["message"]
    if case.startswith("upload"):
        assert one.client.get("/v1/files").json()["data"] == files


def test_the_docs_have_a_row_for_each_case() -> None:
    assert {row[0] for row in table("request")} == set(REQUESTS)
    assert {row[0] for row in table("file")} == set(FILES)
    assert {row[0] for row in table("body")} == set(LINES)


def test_the_test_of_each_fault_in_the_docs_exists() -> None:
    sources = [path.read_text() for path in DOCS.parents[1].joinpath("tests").rglob("test_*.py")]
    for *_, named in table("fault"):
        assert any(f"def {named.strip('`')}(" in source for source in sources), named


def entry(**changes: Any) -> bytes:
    """A line with other values; None leaves a field out."""
    fields = {**orjson.loads(line("a")), **changes}
    kept = {name: value for name, value in fields.items() if value is not None}
    return json.dumps(kept).encode() + b"\n"


FILES: dict[str, Callable[[], bytes]] = {
    "nothing in it": lambda: b"",
    "only blank lines": lambda: b"\n \r\n\n",
    "a line that is not JSON": lambda: lines("a") + b"{custom_id: 1}\n",
    "a line that is not UTF-8": lambda: lines("a") + line("b").replace(b"Hi", b"\xff\xfe"),
    "a line 100,000 levels deep": lambda: lines("a") + DEEP + b"\n",
    "a line that is a list": lambda: b"[1]\n",
    "a line without custom_id": lambda: entry(custom_id=None),
    "a custom_id that is a number": lambda: entry(custom_id=1),
    "a custom_id with NUL": lambda: entry(custom_id="a\x00b"),
    "a custom_id twice": lambda: lines("a", "a"),
    "another method": lambda: entry(method="GET"),
    "another url": lambda: entry(url="/v1/completions"),
    "two models": lambda: line("a") + line("b", model="other"),
    "no model": lambda: entry(body={"messages": []}),
    "a body that is a string": lambda: entry(body="Hi"),
    "a line too long": lambda: line("a", text="x" * (17 << 20)),
    "50,001 lines": lambda: b"".join(
        b'{"custom_id":"%d","method":"POST","url":"%s","body":{"model":"m"}}\n'
        % (number, CHAT.encode())
        for number in range(50_001)
    ),
}


LONG = ("50,001 lines", "a line too long")


@pytest.mark.parametrize(
    "row",
    [
        pytest.param(row, marks=[pytest.mark.slow] if row[0] in LONG else [], id=row[0])
        for row in table("file")
    ],
)
def test_a_bad_file_fails_its_batch_as_the_docs_say(roomy: World, row: list[str]) -> None:
    case, code, says = row
    batch = roomy.until(roomy.submit(FILES[case]())["id"], "failed")
    assert batch["output_file_id"] is None and batch["error_file_id"] is None
    [error] = batch["errors"]["data"]
    assert error["code"] == code
    assert says in error["message"]


LINES: dict[str, dict[str, Any]] = {
    "stream": {"stream": True},
    "n of five million": {"n": 5_000_000},
    "max_tokens of a trillion": {"max_tokens": 10**12},
    "max_tokens that is text": {"max_tokens": "many"},
}


@pytest.mark.parametrize("row", table("body"), ids=lambda row: row[0])
def test_a_bad_body_is_an_error_row_and_its_neighbour_finishes(one: World, row: list[str]) -> None:
    case, param = row
    batch = one.until(one.submit(line("bad", **LINES[case]) + line("good"))["id"], "completed")
    assert set(rows(one.client.get(f"/v1/files/{batch['output_file_id']}/content").text)) == {
        "good"
    }
    bad = rows(one.client.get(f"/v1/files/{batch['error_file_id']}/content").text)["bad"]
    assert bad["response"]["status_code"] == 400 and bad["error"] is None
    assert bad["response"]["body"]["error"]["param"] == param


def test_byte_order_mark_crlf_blank_lines_and_no_last_newline_are_fine(one: World) -> None:
    content = b"\xef\xbb\xbf" + lines("a").replace(b"\n", b"\r\n") + b"\r\n\n" + line("b")[:-1]
    batch = one.until(one.submit(content)["id"], "completed")
    assert batch["request_counts"] == {"total": 2, "completed": 2, "failed": 0}


def test_a_path_in_the_file_name_is_cut_and_never_followed(one: World) -> None:
    answer = upload(one, files={"file": ("../../etc/cron.d/x.jsonl", b"{}\n")})
    assert answer.json()["filename"] == "x.jsonl"


def test_bytes_that_the_client_gave_no_name_are_taken(one: World) -> None:
    answer = upload(one, files={"file": ("upload", b"{}\n")})
    assert answer.json()["filename"] == "upload.jsonl"
