"""inspect-ai with batching on: an evaluation whose model calls go through the batch API."""

from __future__ import annotations

import os
import tempfile

os.environ["INSPECT_LOG_DIR"] = tempfile.mkdtemp()

from client_kit import MODEL, base_url
from inspect_ai import Task, eval
from inspect_ai.dataset import Sample
from inspect_ai.model import BatchConfig, GenerateConfig, get_model
from inspect_ai.scorer import includes
from inspect_ai.solver import generate

model = get_model(
    f"openai/{MODEL}",
    base_url=base_url(),
    api_key="none",
    responses_api=False,
    config=GenerateConfig(max_tokens=4, batch=BatchConfig(size=10, send_delay=0.5, tick=0.5)),
)
samples = [Sample(input=f"Say {number}", target=str(number)) for number in range(10)]
[log] = eval(
    Task(dataset=samples, solver=generate(), scorer=includes()), model=model, display="none"
)
assert log.status == "success", log.error
assert log.samples is not None and len(log.samples) == 10
assert all(sample.error is None for sample in log.samples)
