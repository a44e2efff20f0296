"""autobatcher: collects calls into batches and reads results while they run."""

from __future__ import annotations

import asyncio

from autobatcher import BatchOpenAI
from client_kit import MODEL, base_url


async def main() -> None:
    client = BatchOpenAI(
        api_key="none",
        base_url=base_url(),
        completion_window="24h",
        batch_size=10,
        batch_window_seconds=0.2,
        poll_interval_seconds=0.2,
    )
    calls = [
        client.chat.completions.create(
            model=MODEL, max_tokens=4, messages=[{"role": "user", "content": f"Say {number}"}]
        )
        for number in range(25)
    ]
    answers = await asyncio.wait_for(asyncio.gather(*calls), 60)
    assert all(answer.choices[0].message.role == "assistant" for answer in answers)
    await client.close()


asyncio.run(main())
