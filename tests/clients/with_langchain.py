"""langchain-openai: calls and `batch` as offline work by their service tier."""

from __future__ import annotations

from client_kit import MODEL, base_url
from langchain_openai import ChatOpenAI

chat = ChatOpenAI(
    model=MODEL, base_url=base_url(), api_key="none", max_tokens=4, service_tier="flex"
)
answers = chat.batch([f"Say {number}" for number in range(10)])
assert len(answers) == 10
assert {answer.response_metadata["service_tier"] for answer in answers} == {"flex"}
assert chat.invoke("Hi").usage_metadata["output_tokens"] > 0
