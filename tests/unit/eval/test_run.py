"""The command line of the experiments says what there is, as far down as one asks."""

from __future__ import annotations

import pytest

from eval.run import build_parser


def experiments() -> list[str]:
    commands = next(a for a in build_parser()._actions if a.dest == "experiment")
    return list(commands.choices or ())


def test_the_help_names_every_experiment(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        build_parser().parse_args(["--help"])
    assert ended.value.code == 0
    shown = capsys.readouterr().out
    assert len(experiments()) > 5
    assert [name for name in experiments() if name not in shown] == []


@pytest.mark.parametrize("experiment", experiments())
def test_every_experiment_explains_itself(
    experiment: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        build_parser().parse_args([experiment, "--help"])
    assert ended.value.code == 0
    assert f"{experiment} [-h]" in capsys.readouterr().out
