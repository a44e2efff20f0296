"""Ask the same questions of every text file in a folder, as offline work.

    python examples/document_qa.py examples/documents --question "What is it about?"

Every document is read once: its questions are asked in forks that share its KV.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import common
import sglang as sgl

from echo_sglang.errors import ConfigError
from echo_sglang.frontend import run_programs, shown_progress

QUESTIONS = ["What is this text about?", "Which numbers does it give?"]


@sgl.function
def ask(s: Any, document: str, questions: list[str], max_tokens: int) -> None:
    """One document, all questions at once."""
    s += sgl.system("Answer from the document, in one sentence.")
    s += sgl.user_begin() + f"Document:\n{document}\n\nQuestion: "
    s.sync()  # so that the fork sees the document, and has it computed once
    forks = s.fork(len(questions))
    for fork, question in zip(forks, questions, strict=True):
        fork += question + sgl.user_end()
        fork += sgl.assistant(sgl.gen("answer", max_tokens=max_tokens, temperature=0))
    forks.join()
    s["answers"] = [fork["answer"].strip() for fork in forks]


def main() -> None:
    """Print one JSON line a document."""
    parser = common.parser("Ask the same questions of every text file in a folder.")
    parser.add_argument("folder", type=Path, help="its *.txt and *.md files are the documents")
    parser.add_argument("--question", action="append", help="may be repeated")
    parser.add_argument(
        "--max-characters", type=int, default=4000, help="of a document that are read"
    )
    arguments = parser.parse_args()
    paths = sorted(p for p in arguments.folder.glob("*") if p.suffix in (".txt", ".md"))
    if not paths:
        raise ConfigError(f"{arguments.folder} holds no *.txt or *.md file")
    questions = arguments.question or QUESTIONS
    jobs = [
        {
            "document": path.read_text(errors="replace")[: arguments.max_characters],
            "questions": questions,
            "max_tokens": arguments.max_tokens,
        }
        for path in paths
    ]
    backend = common.connect(arguments)
    with shown_progress(len(jobs), "documents") as finished:
        outcomes = run_programs(ask, jobs, backend, finished=finished)
    for path, outcome in zip(paths, outcomes, strict=True):
        found: dict[str, Any] = {"document": path.name}
        if outcome.error is None:
            found["answers"] = dict(zip(questions, outcome["answers"], strict=True))
        else:
            found["error"] = str(outcome.error)
        print(json.dumps(found))


if __name__ == "__main__":
    common.run(main)
