"""The command that repeats the paper's ablations: ablate."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

from dbray.ablate.variants import ABLATIONS
from dbray.cli.arguments import number_from
from dbray.cli.output import print_table, shell_command, writing

_EPILOG = """\
Every variant and seed is a job of its own, in OUTPUT/runs; run the same command again to continue.
What variants have in common, and ablations with the same OUTPUT, is made once. The scores are those
of the job's 'scoring' section, which must name an embedder. OUTPUT/NAME/ then holds:
  ablation.json  means with 95 % intervals over subjects, and paired differences from the first
                 variant
  ablation.csv   every score of every model
  sheet.png      a row for each variant, with the same prompts and seeds

Figures in the column 'paper' are of other subjects, bases and embedders: compare how they change.
'method' also prompts the untouched base with descriptions if every subject has one: 'description'
in the manifest, or description.txt beside its photographs.
"""


def add(command: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    lines = [
        f"  {name:<12} {one.summary}\n{'':15}({one.source})" for name, one in ABLATIONS.items()
    ]
    command.formatter_class = argparse.RawDescriptionHelpFormatter
    command.epilog = "\n".join(["what is varied:", *lines, "", _EPILOG])
    command.add_argument("name", metavar="NAME", choices=tuple(ABLATIONS),
                         help=f"what is varied: {', '.join(ABLATIONS)}")  # fmt: skip
    command.add_argument("job", help="job file (YAML)")
    command.add_argument("-o", "--output", required=True, help="folder of the results")
    command.add_argument("--subjects", type=number_from(1), metavar="N",
                         help="the first N subjects (default: all)")  # fmt: skip
    command.add_argument("--seeds", type=_seeds, default=(0,), metavar="0,1,2",
                         help="seeds of training (default: 0)")  # fmt: skip
    command.add_argument("--retry-failed", action="store_true",
                         help="also retry subjects that would fail again")  # fmt: skip
    command.add_argument("--address", help="Ray cluster (default: $RAY_ADDRESS, or a local one)")


def ablate(args: argparse.Namespace) -> int:
    """Carry out an ablation, or continue it."""
    from dbray.ablate.ablation import Request
    from dbray.ablate.ablation import ablate as carry_out
    from dbray.cli.jobs import end_as_after_ctrl_c
    from dbray.cli.noise import quiet_stderr
    from dbray.cli.watch import watch
    from dbray.planning.checks import check_file
    from dbray.run.options import RunOptions

    end_as_after_ctrl_c()
    ready = check_file(Path(args.job)).ready()
    request = Request(args.name, ready, Path(args.output), args.seeds, args.subjects)
    address = args.address or os.environ.get("RAY_ADDRESS")
    options = RunOptions(args.retry_failed, address=address, command=_command(args))
    with writing(request.folder):
        request.folder.mkdir(parents=True, exist_ok=True)
    with quiet_stderr(), watch() as progress:
        found = carry_out(request, options, progress)
    first = found.results.variants[0].name
    print(f"\n{args.name}: mean ± 95 % interval over subjects; in brackets, the difference from "
          f"'{first}', with * where its interval leaves out 0")  # fmt: skip
    print_table(found.results.rows(), found.results.headings())
    for file in found.files:
        print(file)
    if found.num_missing:
        print(f"{found.num_missing} models are missing; see the notes above")
    return 3 if found.num_missing else 0


def _command(args: argparse.Namespace) -> str:
    flags: list[Any] = ["--seeds", ",".join(map(str, args.seeds))]
    flags += ["--subjects", str(args.subjects)] if args.subjects else []
    flags += ["--address", args.address] if args.address else []
    return shell_command("ablate", args.name, args.job, "-o", args.output, *flags)


def _seeds(text: str) -> tuple[int, ...]:
    """Parse seeds that commas divide."""
    seeds = tuple(dict.fromkeys(int(part) for part in text.split(",")))
    if min(seeds) < 0:
        raise argparse.ArgumentTypeError(f"a seed is 0 or more, not {min(seeds)}")
    return seeds
