"""Which files are batches, and what is said of those that are not."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator

import orjson
import pytest

from echo_sglang.service.model import BatchError, Line
from echo_sglang.service.validation import Validation, ValidationLimits

CHAT = "/v1/chat/completions"


def line(custom_id: object = "a", **values: object) -> bytes:
    body = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
    return orjson.dumps(
        {"custom_id": custom_id, "method": "POST", "url": CHAT, "body": body, **values}
    )


def read(
    data: bytes, *, piece: int = 5, endpoint: str | None = CHAT, **limits: int
) -> tuple[list[Line], list[BatchError]]:
    validation = Validation(endpoint, ValidationLimits(**limits))
    pieces = (data[start : start + piece] for start in range(0, len(data), piece))
    return list(validation.lines(pieces)), validation.errors


@pytest.mark.parametrize("piece", [1, 7, 10_000])
@pytest.mark.parametrize(
    "data",
    [
        line("a") + b"\n" + line("b") + b"\n",
        line("a") + b"\n" + line("b"),
        line("a") + b"\r\n" + line("b") + b"\r\n",
        b"\xef\xbb\xbf" + line("a") + b"\n" + line("b") + b"\n",
        b"\n  \n" + line("a") + b"\n\n\r\n" + line("b") + b"\n\n",
    ],
    ids=["plain", "no final newline", "CRLF", "BOM", "blank lines"],
)
def test_line_ends_marks_and_blanks_do_not_matter(data: bytes, piece: int) -> None:
    lines, errors = read(data, piece=piece)
    assert errors == []
    assert [each.custom_id for each in lines] == ["a", "b"]
    for each in lines:
        raw = data[each.offset : each.offset + each.size_bytes]
        assert orjson.loads(raw)["custom_id"] == each.custom_id


@pytest.mark.parametrize(
    ("data", "code", "number"),
    [
        (b"", "empty_file", None),
        (b"\n \n", "empty_file", None),
        (line() + b"\n{", "invalid_json_line", 2),
        (b"[1]", "invalid_json_line", 1),
        (b'"a"', "invalid_json_line", 1),
        (line()[:-1] + b"\xff}", "invalid_json_line", 1),
        (b"\xff\xfe" + line(), "invalid_json_line", 1),
        (line() + b"\x00", "invalid_json_line", 1),
        (b"\x00" * 100, "invalid_json_line", 1),
        (b"[" * 100_000, "invalid_json_line", 1),
        (b'{"a":' * 100_000, "invalid_json_line", 1),
        (b'{"a": NaN}', "invalid_json_line", 1),
        (line("a") + b"\n" + line("b") + b"\n" + line("a"), "duplicate_custom_id", 3),
        (line(url="/v1/embeddings"), "url_mismatch", 1),
        (line(url=7), "url_mismatch", 1),
        (line() + b"\n" + line("b", body={"model": "other"}), "model_mismatch", 2),
        (line(body={}), "missing_required_parameter", 1),
        (line(body={"model": 7}), "invalid_model", 1),
        (line(body=[1]), "invalid_body", 1),
        (line(method="GET"), "invalid_method", 1),
        (b"{}", "missing_required_parameter", 1),
        (line(""), "invalid_custom_id", 1),
        (line(7), "invalid_custom_id", 1),
        (line("a\x00"), "invalid_custom_id", 1),
        (line("x" * 513), "invalid_custom_id", 1),
        (line("x" * 300, more="y" * 2000), "line_too_large", 1),
    ],
)
def test_what_is_wrong_is_named_with_its_line(data: bytes, code: str, number: int | None) -> None:
    _, errors = read(data, piece=64, max_line_bytes=1_000_000 if b'{"a":{' in data else 2000)
    if len(data) > 50_000:
        _, errors = read(data, piece=1 << 16)
    assert [(error.code, error.line) for error in errors] == [(code, number)]
    assert len(errors[0].message) < 400


def test_one_line_too_many_is_one_error() -> None:
    data = b"\n".join(line(str(number)) for number in range(6))
    assert read(data, max_lines=6)[1] == []
    [error] = read(data, max_lines=5)[1]
    assert (error.code, error.line) == ("too_many_tasks", None)


def test_every_bad_line_is_named_up_to_a_limit() -> None:
    data = b"\n".join([b"{", line("a"), b"{", b"{", b"{"])
    lines, errors = read(data, max_errors=3)
    assert [error.line for error in errors] == [1, 3, 4]
    assert [each.custom_id for each in lines] == ["a"]


def test_without_an_endpoint_the_first_line_gives_it() -> None:
    lines, errors = read(line() + b"\n" + line("b", url="/v1/embeddings"), endpoint=None)
    assert len(lines) == 1
    assert errors[0].code == "url_mismatch" and "expected '/v1/chat/completions'" in str(errors[0])
    [error] = read(line(url="/v1/images"), endpoint=None)[1]
    assert "expected one of /v1/chat/completions, " in error.message


def test_a_huge_line_is_skipped_in_little_memory_and_the_next_one_read() -> None:
    def pieces() -> Iterator[bytes]:
        for _ in range(200):
            yield b"x" * 1_000_000
        yield b"\n" + line("after") + b"\n"

    validation = Validation(CHAT)
    tracemalloc.start()
    lines = list(validation.lines(pieces()))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert [(error.code, error.line) for error in validation.errors] == [("line_too_large", 1)]
    assert [(each.custom_id, each.number) for each in lines] == [("after", 2)]
    assert lines[0].offset == 200_000_001
    assert peak < 64 << 20


def test_fifty_thousand_lines_are_a_batch_and_one_more_is_not() -> None:
    def pieces(count: int) -> Iterator[bytes]:
        for number in range(count):
            yield b'{"custom_id":"%d","method":"POST","url":"/v1/embeddings",' % number
            yield b'"body":{"model":"m","input":"a"}}\n'

    validation = Validation("/v1/embeddings")
    assert sum(1 for _ in validation.lines(pieces(50_000))) == 50_000
    assert validation.errors == []
    validation = Validation("/v1/embeddings")
    for _ in validation.lines(pieces(50_001)):
        pass
    assert [error.code for error in validation.errors] == ["too_many_tasks"]
