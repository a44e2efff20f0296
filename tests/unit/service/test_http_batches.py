"""Files and batches over HTTP, from upload to result files."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from echo_sglang.service.forecast import Speed
from tests.unit.service.http_kit import POLLS, World, line, lines, rows, wanted, world


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with world(tmp_path_factory.mktemp("data")) as found:
        yield found


@pytest.fixture
def one(shared: World) -> World:
    """The module's server, its engine open and with nothing seen."""
    shared.engine.open = True
    shared.engine.tags.clear()
    return shared


def test_a_batch_ends_with_each_line_in_one_of_two_files(one: World) -> None:
    batch = one.submit(lines("a", "b") + line("c", status=400), metadata={"k": "v"})
    assert batch["status"] == "validating"
    assert batch["output_file_id"] is None and batch["error_file_id"] is None
    ended = one.until(batch["id"], "completed")
    assert ended["request_counts"] == {"total": 3, "completed": 2, "failed": 1}
    assert ended["usage"]["total_tokens"] == 2 * (3 + 2)
    assert ended["metadata"] == {"k": "v"}
    assert ended["model"] == "m"
    output = one.client.get(f"/v1/files/{ended['output_file_id']}/content")
    assert set(rows(output.text)) == {"a", "b"}
    assert output.headers["x-incomplete"] == "false"
    assert output.headers["x-last-line"] == "2"
    errors = rows(one.client.get(f"/v1/files/{ended['error_file_id']}/content").text)
    assert errors["c"]["response"]["status_code"] == 400 and errors["c"]["error"] is None


def test_results_can_be_read_line_by_line_while_the_batch_runs(one: World) -> None:
    one.engine.open = False
    batch = one.submit(lines("a", "b", "c") + line("late", held=True))
    running = one.until(batch["id"], "in_progress", completed=3)
    content = f"/v1/files/{running['output_file_id']}/content"
    first = one.client.get(content)
    assert len(rows(first.text)) == 3
    assert first.headers["x-incomplete"] == "true" and first.headers["x-last-line"] == "3"
    assert one.client.get(content, params={"offset": 3}).text == ""
    growing = one.client.get(f"/v1/files/{running['output_file_id']}").json()
    assert growing["status"] == "uploaded" and growing["purpose"] == "batch_output"
    one.engine.open = True
    one.until(batch["id"], "completed")
    rest = one.client.get(content, params={"offset": 3})
    assert set(rows(rest.text)) == {"late"}
    assert rest.headers["x-incomplete"] == "false" and rest.headers["x-last-line"] == "4"
    assert one.client.get(content).text == first.text + rest.text


def test_the_window_is_the_deadline_of_every_line(one: World) -> None:
    batch = one.submit(lines("a"), completion_window="90m")
    ended = one.until(batch["id"], "completed")
    assert ended["completion_window"] == "90m"
    assert ended["expires_at"] - ended["created_at"] == 90 * 60
    assert int(one.engine.tags[0].deadline_unix_s) == ended["expires_at"]


def forecast(one: World, batch_id: str) -> dict[str, Any]:
    """What is said of a running batch once the engine was asked anew: now and then."""
    for _ in range(POLLS):
        said: dict[str, Any] = one.until(batch_id, "in_progress")["echo"]
        if said["eta_from"] is not None:
            return said
        time.sleep(0.02)
    raise AssertionError(said)


def test_a_batch_that_will_not_make_its_window_says_so_before_its_first_line_is_done(
    one: World,
) -> None:
    one.engine.open = False
    one.engine.now_speed = Speed(measured_work_per_s=10.0)
    try:
        # Each answer may have 30,000 tokens, weighed twice: 6,000 s at that pace.
        slow = one.submit(lines("a", held=True, max_tokens=30_000), completion_window="60m")
        assert slow["echo"]["eta_s"] is None  # its lines are not read yet
        behind = one.submit(lines("b", held=True, max_tokens=30_000), completion_window="3h")
        said = forecast(one, slow["id"])
        assert said["eta_from"] == "measured_pace" and said["within_window"] is False
        assert 6_000 <= said["eta_s"] < 6_100
        assert re.search(r"its window has 3,(5\d\d|600) s", said["warning"])
        assert said["output_tokens_at_most"] == 30_000 and said["prompt_tokens_about"] > 0
        # What is due earlier goes first; both together make 3 hours.
        later = forecast(one, behind["id"])
        assert 12_000 <= later["eta_s"] < 12_200 and "batch_expired" in later["warning"]
    finally:
        one.engine.open = True
        one.engine.now_speed = Speed()
    for batch in (slow, behind):
        assert one.until(batch["id"], "completed")["echo"]["warning"] is None


def test_cancel_keeps_what_finished_and_names_the_rest(one: World) -> None:
    one.engine.open = False
    batch = one.submit(lines("a") + lines("b", "c", held=True))
    one.until(batch["id"], "in_progress", completed=1)
    cancelled = one.client.post(f"/v1/batches/{batch['id']}/cancel")
    assert cancelled.json()["status"] == "cancelling"
    ended = one.until(batch["id"], "cancelled")
    assert ended["request_counts"] == {"total": 3, "completed": 1, "failed": 2}
    errors = rows(one.client.get(f"/v1/files/{ended['error_file_id']}/content").text)
    assert {row["error"]["code"] for row in errors.values()} == {"batch_cancelled"}
    again = one.client.post(f"/v1/batches/{batch['id']}/cancel")
    assert again.status_code == 409


def test_a_paused_batch_waits_until_it_is_resumed(one: World) -> None:
    one.engine.open = False
    batch = one.submit(lines(*(f"h{number}" for number in range(40)), held=True))
    one.until(batch["id"], "in_progress")
    paused = one.client.post(f"/v1/batches/{batch['id']}/pause").json()
    assert paused["echo"]["paused"]
    one.engine.open = True
    resumed = one.client.post(f"/v1/batches/{batch['id']}/resume").json()
    assert not resumed["echo"]["paused"]
    ended = one.until(batch["id"], "completed")
    assert ended["request_counts"]["completed"] == 40
    assert one.client.post(f"/v1/batches/{batch['id']}/pause").status_code == 409


def test_only_failed_lines_are_retried(one: World) -> None:
    batch = one.submit(lines("a") + line("b", status=500))
    one.until(batch["id"], "completed")
    answer = one.client.post(
        f"/v1/batches/{batch['id']}/retry", headers={"Idempotency-Key": "once"}
    )
    again = one.client.post(f"/v1/batches/{batch['id']}/retry", headers={"Idempotency-Key": "once"})
    assert answer.json()["id"] == again.json()["id"] != batch["id"]
    ended = one.until(answer.json()["id"], "completed")
    assert ended["request_counts"] == {"total": 1, "completed": 0, "failed": 1}
    assert ended["metadata"]["retry_of"] == batch["id"]
    assert ended["output_file_id"] is None


def test_an_idempotency_key_replays_the_same_body_and_refuses_another(one: World) -> None:
    body = wanted(one.upload(lines("a")))
    headers = {"Idempotency-Key": "k1"}
    first = one.client.post("/v1/batches", json=body, headers=headers).json()
    reordered = dict(reversed(body.items()))
    assert (
        one.client.post("/v1/batches", json=reordered, headers=headers).json()["id"] == first["id"]
    )
    other = one.client.post(
        "/v1/batches", json={**body, "completion_window": "1h"}, headers=headers
    )
    assert other.status_code == 409
    assert other.json()["error"]["code"] == "idempotency_key_reused"
    listed = one.client.get("/v1/batches").json()["data"]
    assert [batch["input_file_id"] for batch in listed].count(body["input_file_id"]) == 1


def test_many_requests_at_once_with_one_key_make_one_batch(one: World) -> None:
    body = wanted(one.upload(lines("a")))

    def create(_: int) -> str:
        answer = one.client.post("/v1/batches", json=body, headers={"Idempotency-Key": "race"})
        assert answer.status_code == 200, answer.text
        return str(answer.json()["id"])

    with ThreadPoolExecutor(8) as pool:
        assert len(set(pool.map(create, range(16)))) == 1


def test_a_cancel_that_races_the_end_loses_no_line(one: World) -> None:
    for _ in range(10):
        batch = one.submit(lines("a", "b", "c"))
        answer = one.client.post(f"/v1/batches/{batch['id']}/cancel")
        assert answer.status_code in (200, 409)
        ended = one.until(batch["id"], "completed", "cancelled")
        counts = ended["request_counts"]
        found = [
            custom_id
            for name in ("output_file_id", "error_file_id")
            if ended[name]
            for custom_id in rows(one.client.get(f"/v1/files/{ended[name]}/content").text)
        ]
        assert len(found) == counts["total"] == counts["completed"] + counts["failed"]


def test_pages_go_through_all_batches_and_files_once(one: World) -> None:
    made = [one.submit(lines("a"))["id"] for _ in range(5)]
    seen: list[str] = []
    after: dict[str, str] = {}
    while True:
        page = one.client.get("/v1/batches", params={"limit": 2, **after}).json()
        seen += [batch["id"] for batch in page["data"]]
        assert page["first_id"] == page["data"][0]["id"]
        if not page["has_more"]:
            break
        after = {"after": page["last_id"]}
    assert seen[:5] == made[::-1] and len(set(seen)) == len(seen)
    oldest = one.client.get("/v1/files", params={"order": "asc", "limit": 1, "purpose": "batch"})
    newest = one.client.get("/v1/files", params={"limit": 1, "purpose": "batch"})
    assert oldest.json()["has_more"]
    assert oldest.json()["data"][0]["id"] != newest.json()["data"][0]["id"]


def test_an_input_file_stays_until_its_batch_has_ended(one: World) -> None:
    one.engine.open = False
    batch = one.submit(lines("a", held=True))
    file_path = f"/v1/files/{batch['input_file_id']}"
    refused = one.client.delete(file_path)
    assert refused.status_code == 409 and batch["id"] in refused.json()["error"]["message"]
    one.engine.open = True
    one.until(batch["id"], "completed")
    gone = one.client.delete(file_path).json()
    assert gone == {"id": batch["input_file_id"], "object": "file", "deleted": True}
    assert one.client.get(file_path).status_code == 404


def test_progress_says_how_far_and_how_long(one: World) -> None:
    one.engine.open = False
    batch = one.submit(lines(*"abcdef") + line("late", held=True))
    echo = one.until(batch["id"], "in_progress", completed=6)["echo"]
    assert echo["progress"] == pytest.approx(6 / 7, abs=1e-3)
    one.engine.open = True
    assert one.until(batch["id"], "completed")["echo"]["eta_s"] == 0


def test_tenants_do_not_see_each_other(tmp_path: Path) -> None:
    with world(tmp_path, tenant_header="X-Tenant") as one:
        assert one.client.get("/v1/files").status_code == 400
        mine = one.upload(lines("a"), **{"X-Tenant": "me"})
        other = {"X-Tenant": "you"}
        assert one.client.get(f"/v1/files/{mine}", headers=other).status_code == 404
        assert one.client.get(f"/v1/files/{mine}/content", headers=other).status_code == 404
        assert one.client.delete(f"/v1/files/{mine}", headers=other).status_code == 404
        stolen = one.client.post("/v1/batches", json=wanted(mine), headers=other)
        assert stolen.status_code == 404
        assert one.client.get("/v1/files", headers=other).json()["data"] == []


def test_a_restarted_server_goes_on_with_what_was_unfinished(tmp_path: Path) -> None:
    with world(tmp_path) as one:
        one.engine.open = False
        batch = one.submit(lines("a") + lines("b", held=True))
        one.until(batch["id"], "in_progress", completed=1)
    with world(tmp_path) as two:
        ended = two.until(batch["id"], "completed")
        assert ended["request_counts"] == {"total": 2, "completed": 2, "failed": 0}
        assert len(two.engine.tags) == 1
