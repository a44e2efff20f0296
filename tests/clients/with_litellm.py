"""litellm: files and batches of an OpenAI-compatible server."""

from __future__ import annotations

import os
import time

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"

import litellm
from client_kit import CHAT, base_url, check_output, input_lines

server = {"custom_llm_provider": "openai", "api_base": base_url(), "api_key": "none"}
source = litellm.create_file(file=("in.jsonl", input_lines(10)), purpose="batch", **server)
batch = litellm.create_batch(
    completion_window="24h", endpoint=CHAT, input_file_id=source.id, **server
)
while batch.status not in ("completed", "failed", "expired", "cancelled"):
    time.sleep(0.2)
    batch = litellm.retrieve_batch(batch_id=batch.id, **server)
assert batch.status == "completed", batch
check_output(litellm.file_content(file_id=batch.output_file_id, **server).text, 10)
assert batch.id in [each.id for each in litellm.list_batches(**server).data]
