"""What the scripts share. They run in environments of their own, each with one client, and
never import this project: `python with_X.py http://127.0.0.1:PORT`."""

from __future__ import annotations

import json
import sys

CHAT = "/v1/chat/completions"
MODEL = "m"


def base_url() -> str:
    """The server's, with /v1."""
    return f"{sys.argv[1]}/v1"


def input_lines(count: int) -> bytes:
    """A batch file of so many chats, their custom_ids "0", "1", ..."""
    entries = [
        {
            "custom_id": str(number),
            "method": "POST",
            "url": CHAT,
            "body": {
                "model": MODEL,
                "max_tokens": 4,
                "messages": [{"role": "user", "content": f"Say {number}"}],
            },
        }
        for number in range(count)
    ]
    return "".join(json.dumps(entry) + "\n" for entry in entries).encode()


def check_output(text: str, count: int) -> None:
    """Every custom_id is there once, well answered."""
    rows = [json.loads(row) for row in text.splitlines()]
    assert sorted(int(row["custom_id"]) for row in rows) == list(range(count)), rows
    assert all(row["response"]["status_code"] == 200 for row in rows), rows
