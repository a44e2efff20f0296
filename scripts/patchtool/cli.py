"""The command line of the patch tool."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path

from . import operations
from .check import check
from .errors import PatchError, UsageError
from .inspection import inspect
from .refresh import refresh
from .rehearse import open_release, rehearse
from .series import load_pin, load_series
from .target import Target, find_target

_EPILOG = """\
exit codes: 0 done, or applied and intact
  1 check found a defect, or a rehearsal a conflict     2 usage
  3 status: not applied                                 4 status: older series
  5 dirty file                                          6 half-applied (run revert)
  7 wrong SGLang version                                8 read-only target
  9 no usable SGLang package                           10 patches/ malformed or inconsistent
 11 a hunk does not fit                                12 a write failed, all rolled back
 13 another run is at work
"""


def main(arguments: list[str] | None = None) -> int:
    """Run one command; the exit code, see --help."""
    options = _parser().parse_args(arguments)
    try:
        return int(options.run(options))
    except PatchError as error:
        if getattr(options, "json", False):
            print(json.dumps({"error": type(error).__name__, "detail": str(error)}))
        print(f"apply_patches.py {options.command}: {error}", file=sys.stderr)
        return error.exit_code
    except OSError as error:
        print(f"apply_patches.py {options.command}: {error}", file=sys.stderr)
        return PatchError.exit_code


def default_folder() -> Path:
    """patches/ of the repository this file is in, or of the installed package."""
    here = Path(__file__).resolve().parent
    repository = here.parent.parent / "patches"
    return repository if (repository / "series").is_file() else here.parent / "patches"


def _parser() -> argparse.ArgumentParser:
    common = _common_options()
    parser = argparse.ArgumentParser(
        prog="apply_patches.py",
        description="Apply, verify and maintain Echo's patches to SGLang.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True)

    def command(name: str, run: object, text: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, parents=[common], help=text, description=text)
        sub.set_defaults(run=run)
        return sub

    command("apply", _apply, "bring the target to this series; all or nothing")
    status = command("status", _status, "say what is applied; changes nothing")
    status.add_argument("--json", action="store_true", help="machine-readable")
    command("revert", _revert, "restore every released byte, also after an interrupted run")
    checking = command("check", _check, "headers, round trip, generated files")
    checking.add_argument(
        "--against",
        metavar="VERSION|PATH",
        help="rehearse another release instead: a version (downloaded with pip), wheel or folder",
    )
    refreshing = command("refresh", _refresh, "re-export patches and generated files")
    refreshing.add_argument("name", nargs="?", help="patch to take from --edited, e.g. 0003")
    refreshing.add_argument("--edited", type=Path, metavar="DIR", help="edited copy of SGLang")
    refreshing.add_argument(
        "--from-stock",
        action="store_true",
        help="the edited copy started from the release, not from the earlier patches",
    )
    refreshing.add_argument(
        "--repin", action="store_true", help="move the patches to the release of the target"
    )
    return parser


def _common_options() -> argparse.ArgumentParser:
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument(
        "--target",
        type=Path,
        metavar="DIR",
        help="site-packages/sglang, a folder with sglang/, or a checkout with python/sglang "
        "(default: the sglang of this Python)",
    )
    common.add_argument(
        "--patches", type=Path, metavar="DIR", default=default_folder(), help="folder of patches"
    )
    return common


def _apply(options: argparse.Namespace) -> int:
    series, pin = load_series(options.patches), load_pin(options.patches)
    print(operations.apply(find_target(options.target), series, pin))
    return 0


def _status(options: argparse.Namespace) -> int:
    series, pin = load_series(options.patches), load_pin(options.patches)
    target = find_target(options.target)
    found = inspect(target, series, pin)
    if options.json:
        report = {
            "status": found.status.value,
            "detail": found.detail,
            "target": str(target.root),
            "version": found.version,
            "expected_version": pin.version,
            "expected_series": series.id,
            "offending": list(found.offending),
            "applied": asdict(found.state) if found.state else None,
        }
        print(json.dumps(report, indent=2))
    else:
        print(f"{found.status.value}: {found.detail}")
    return found.status.exit_code


def _revert(options: argparse.Namespace) -> int:
    print(operations.revert(find_target(options.target)))
    return 0


def _check(options: argparse.Namespace) -> int:
    if options.against is not None:
        return _rehearse(options)
    target: Target = find_target(options.target)
    defects = check(options.patches, target)
    for defect in defects:
        print(f"check: {defect}", file=sys.stderr)
    if not defects:
        series = load_series(options.patches)
        print(f"series {series.id}: {len(series.patches)} patches, all in order")
    return 1 if defects else 0


def _rehearse(options: argparse.Namespace) -> int:
    if options.target is not None:
        raise UsageError("check takes --against or --target, not both.")
    rehearsals = rehearse(load_series(options.patches), open_release(options.against))
    for rehearsal in rehearsals:
        print(rehearsal)
    conflicts = sum(rehearsal.conflict is not None for rehearsal in rehearsals)
    print(f"{options.against}: {conflicts} of {len(rehearsals)} patches conflict")
    return 1 if conflicts else 0


def _refresh(options: argparse.Namespace) -> int:
    lines = refresh(
        options.patches,
        find_target(options.target),
        name=options.name,
        edited=options.edited,
        from_stock=options.from_stock,
        repin=options.repin,
    )
    print("\n".join(lines))
    return 0
