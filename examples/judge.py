"""Evaluate answers with a model as the judge, as offline work.

    python examples/judge.py examples/answers.jsonl

Each line of the file: {"question": ..., "reference": ..., "answer": ...}. The judge reasons,
then chooses between `correct` and `wrong`; the choice is the likelier of the two, so it is
always one of them.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import common
import sglang as sgl

from echo_sglang.errors import ConfigError
from echo_sglang.frontend import run_programs, shown_progress

FIELDS = ("question", "reference", "answer")
VERDICTS = ["correct", "wrong"]


@sgl.function
def judge(s: Any, question: str, reference: str, answer: str, max_tokens: int) -> None:
    """One answer: a reason, a verdict, a grade."""
    s += sgl.system("You grade answers against a reference. Be brief.")
    s += sgl.user(f"Question: {question}\nReference: {reference}\nAnswer: {answer}")
    s += sgl.assistant_begin() + "Reason: "
    s += sgl.gen("reason", max_tokens=max_tokens, temperature=0, stop="\n")
    s += "\nVerdict: " + sgl.select("verdict", choices=VERDICTS)
    s += "\nGrade from 1 to 5: " + sgl.gen("grade", max_tokens=4, regex="[1-5]", temperature=0)
    s += sgl.assistant_end()


def read_cases(path: Path) -> list[dict[str, str]]:
    """The lines of a JSONL file; raises ConfigError naming the first bad one."""
    cases = []
    try:
        lines = path.read_text().splitlines()
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from error
    for number, line in enumerate(lines, start=1):
        try:
            case = json.loads(line)
            cases.append({field: str(case[field]) for field in FIELDS})
        except (ValueError, KeyError, TypeError) as error:
            raise ConfigError(
                f"{path} line {number}: expected an object with {', '.join(FIELDS)} ({error!r})"
            ) from error
    if not cases:
        raise ConfigError(f"{path} is empty")
    return cases


def main() -> None:
    """Print one JSON line a case, and the share that was correct."""
    parser = common.parser("Evaluate answers with a model as the judge.")
    parser.add_argument("cases", type=Path, help="JSONL with question, reference, answer")
    arguments = parser.parse_args()
    cases = read_cases(arguments.cases)
    jobs = [{**case, "max_tokens": arguments.max_tokens} for case in cases]
    backend = common.connect(arguments)
    with shown_progress(len(jobs), "cases") as finished:
        outcomes = run_programs(judge, jobs, backend, finished=finished)
    judged = correct = 0
    for case, outcome in zip(cases, outcomes, strict=True):
        found: dict[str, Any] = {"question": case["question"]}
        if outcome.error is not None:
            found["error"] = str(outcome.error)
        else:
            judged += 1
            correct += outcome["verdict"] == "correct"
            found |= {name: outcome[name] for name in ("verdict", "grade", "reason")}
        print(json.dumps(found))
    print(f"{correct} of {judged} judged answers are correct", file=sys.stderr)


if __name__ == "__main__":
    common.run(main)
