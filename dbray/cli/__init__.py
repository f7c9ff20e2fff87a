"""The command line: argv -> spec -> call -> exit code. The only place that prints.

Exit codes: 0 ok, 1 internal, 2 invalid input (nothing ran), 3 finished with failed subjects,
4 stopped at --max-failures, 130 interrupted. Commands import what they need when they run, so that
`--help` and `validate` start at once.
"""

from __future__ import annotations

import argparse
import importlib
import io
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

from dbray import __version__
from dbray.cli import ablate as ablating
from dbray.cli.arguments import number_from
from dbray.cli.display import displays
from dbray.errors import DbrayError, SpecError
from dbray.export import FORMATS
from dbray.processes import use_own_cores, wait_passively
from dbray.scores.values import COLUMNS
from dbray.spec.sections import Sampler

_DEFAULT_REGISTRY = "runs"
_DEMO_REGISTRY = "demo/runs"
_JOB_COMMANDS = ("jobs:run", "setup:demo", "ablate:ablate")
_WITH_RAY = (*_JOB_COMMANDS, "models:serve", "evaluate:evaluate")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command. Returns the exit code."""
    _accept_any_name()
    with displays() as output:
        args = _parser().parse_args(argv)
        code = _execute(args)
        output.flush()
        if output.loss:
            print(f"error: {output.loss}", file=sys.stderr)
            # A job's results are on storage; the output of other commands is their only result.
            code = code if args.run in _JOB_COMMANDS else code or 1
        return code


def _execute(args: argparse.Namespace) -> int:
    """Run the command of parsed arguments. Returns the exit code."""
    logging.basicConfig(
        level=logging.INFO if args.verbose else logging.ERROR,
        format="%(asctime)s %(levelname)s %(name)s %(message)s",
    )
    _quieten_libraries()
    wait_passively(os.environ)
    if args.run not in _WITH_RAY:
        use_own_cores(os.environ)
    module, function = args.run.split(":")
    try:
        return getattr(importlib.import_module(f"dbray.cli.{module}"), function)(args)
    except SpecError as exc:
        num_errors = sum(problem.severity == "error" for problem in exc.problems)
        print(f"{exc}\n\n{num_errors} error(s); nothing ran.", file=sys.stderr)
        return exc.exit_code
    except DbrayError as exc:
        print(f"error: {exc}", file=sys.stderr)
        return exc.exit_code
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


def _quieten_libraries() -> None:
    """Silence the banners and progress bars of libraries."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if not sys.stdout.isatty():
        os.environ.setdefault("RAY_COLOR_PREFIX", "0")  # Ray's messages in colour otherwise
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")


def _accept_any_name() -> None:
    """Escape text that a stream cannot encode, such as file names that are not UTF-8."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="dbray",
        description="DreamBooth in bulk: from folders of photographs to published, promptable "
        "text-to-image models.",
        epilog="Start with: dbray demo",
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    parser.add_argument("-v", "--verbose", action="store_true", help="log what happens")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    _add_job_commands(commands)
    _add_model_commands(commands)
    _add_evaluate(commands)
    return parser


def _add(commands: Any, name: str, run: str, text: str) -> argparse.ArgumentParser:
    command = commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
    command.set_defaults(run=run)
    return command


def _add_job_commands(commands: Any) -> None:
    demo = _add(commands, "demo", "setup:demo", "personalise six drawn subjects on the miniature")
    demo.add_argument("-o", "--output", default="demo", help="folder to make (default: demo)")

    init = _add(commands, "init", "setup:init", "write a manifest and a job file for a folder")
    init.add_argument("photos", help="folder of one subject's photographs, or with a "
                      "sub-folder for each subject")  # fmt: skip
    init.add_argument("-o", "--output", default="job.yaml", help="job file (default: job.yaml)")
    init.add_argument("--class", dest="class_noun", metavar="NOUN",
                      help="class noun of subjects whose folder has no class.txt; auto: a CLIP "
                      "chooses it")  # fmt: skip
    init.add_argument("--base", default="miniature", help="miniature, a diffusers folder or hub id")
    init.add_argument(
        "--base-revision", metavar="COMMIT", help="commit of a hub id; required for hub ids"
    )
    init.add_argument("--force", action="store_true", help="overwrite existing files")

    validate = _add(commands, "validate", "jobs:validate", "list every mistake; needs no GPU")
    plan = _add(commands, "plan", "jobs:plan", "show what would run and what it costs")
    run = _add(commands, "run", "jobs:run", "run a job, or continue it")
    submit = _add(commands, "submit", "submit:submit", "send a job to a running cluster")
    for command in (validate, plan, run, submit):
        command.add_argument("job", help="job file (YAML)")
    for command in (validate, plan):
        command.add_argument("--json", action="store_true", help="print JSON")
    for command in (run, submit):
        command.add_argument("--retry-failed", action="store_true",
                             help="also retry subjects that would fail again, after you fixed the "
                             "cause")  # fmt: skip
        command.add_argument("--max-failures", type=number_from(0), metavar="N",
                             help="stop when more than N subjects have failed")  # fmt: skip
        command.add_argument("--skip-invalid", action="store_true",
                             help="train the valid subjects; list the others in "
                             "failed.jsonl")  # fmt: skip
    run.add_argument("--address", help="Ray cluster (default: $RAY_ADDRESS, or a local one)")

    submit.add_argument("--no-wait", action="store_true", help="do not follow the job")
    stop = _add(commands, "stop", "submit:stop", "stop a submitted job")
    stop.add_argument("submission", help="id that 'dbray submit' printed")
    for command in (submit, stop):
        command.add_argument("--address", required=True,
                             help="dashboard of the cluster, such as http://head:8265")  # fmt: skip

    ablating.add(_add(commands, "ablate", "ablate:ablate", "repeat one of the paper's ablations"))

    status = _add(commands, "status", "status:status", "show the jobs of a storage")
    text = f"storage of the jobs (default: {_DEFAULT_REGISTRY}, or the demo's)"
    status.add_argument("storage", nargs="?", default=_default_registry(), help=text)
    status.add_argument("--address", metavar="URL",
                        help="list the jobs submitted to this cluster instead")  # fmt: skip
    status.add_argument("--watch", action="store_true", help="repeat until no job runs")
    status.add_argument("--json", action="store_true", help="print JSON")

    report = _add(commands, "report", "status:report", "rewrite the report of a job")
    report.add_argument("job_folder", help="<storage>/jobs/<job id>, a folder or URI")

    prompts = _add(commands, "prompts", "prompts:prompts", "print named suites of prompts")
    prompts.add_argument("suite", nargs="?", help="such as properties, or properties-live for a "
                         "job file; absent: list the suites")  # fmt: skip
    prompts.add_argument("--class", dest="class_noun", metavar="NOUN",
                         help="choose the variant for a class noun, and fill it in")  # fmt: skip
    prompts.add_argument("--json", action="store_true", help="print JSON")

    schema = _add(commands, "schema", "jobs:schema", "print the JSON Schema of a job file")
    schema.add_argument("--subject", action="store_true", help="of a line of a manifest instead")


def _add_model_commands(commands: Any) -> None:
    models = commands.add_parser(
        "models", help="list, show, remove, export or import published models"
    )
    actions = models.add_subparsers(title="actions", metavar="ACTION", required=True)
    listing = _add(actions, "list", "models:list_models", "list the published models")
    listing.add_argument("--sort", choices=tuple(COLUMNS),
                         help="by a score, the best first; models without it last")  # fmt: skip
    show = _add(actions, "show", "models:show", "show the record of a model")
    remove = _add(actions, "remove", "models:remove", "remove a model and all its files")
    export = _add(actions, "export", "models:export", "write a model for other programs")
    import_ = _add(actions, "import", "models:import_", "publish a LoRA that another tool trained")
    for action in (show, remove, export):
        action.add_argument("model", help="id, or id@revision")
    remove.add_argument("--yes", action="store_true", help="do not ask for confirmation")
    export.add_argument("--format", choices=tuple(FORMATS), default="diffusers",
                        help="default: diffusers")  # fmt: skip
    export.add_argument("-o", "--output", required=True,
                        help="folder to make (diffusers, lora), or file")  # fmt: skip
    import_.add_argument("file", help="safetensors with the keys of kohya, diffusers or ComfyUI")
    import_.add_argument("--subject", required=True, metavar="ID", help="id to publish it as")
    import_.add_argument("--class", dest="class_noun", metavar="NOUN", required=True,
                         help="class noun to use in prompts")  # fmt: skip
    import_.add_argument("--identifier", help="word(s) that it was trained with (default: none)")
    import_.add_argument("--base", help="base that it was trained on (default: miniature)")
    for action in (listing, show):
        action.add_argument("--json", action="store_true", help="print JSON")

    generate = _add(commands, "generate", "generate:generate", "sample images of a model")
    generate.add_argument("model", help="id, id@revision, or 'base'")
    generate.add_argument("prompt", help='e.g. "a photo of a {subject} on the beach"')
    generate.add_argument("-n", type=number_from(1), default=1,
                          help="number of images (default: 1)")  # fmt: skip
    generate.add_argument("-o", "--output", default="out", help="folder (default: out)")
    generate.add_argument("--seed", type=int, default=0, help="of the first image (default: 0)")
    generate.add_argument("--steps", type=int, help="sampling steps")
    generate.add_argument("--guidance", type=float, help="guidance scale")
    generate.add_argument("--sampler", choices=get_args(Sampler),
                          help="default: that of the base's previews")  # fmt: skip
    generate.add_argument("--negative", default="", metavar="PROMPT", help="negative prompt")

    serve = _add(commands, "serve", "models:serve", "serve every model of a registry over HTTP")
    serve.add_argument("--port", type=int, default=8000, help="default: 8000")
    serve.add_argument("--host", default="127.0.0.1", help="default: loopback only")
    serve.add_argument("--keys", help="file of API keys; required beyond loopback")
    serve.add_argument("--base", help="base to load (default: that of the registry's first model)")
    for command in (export, generate):
        command.add_argument("--base", help="base to load instead of the one in the model's "
                             "record; with the model 'base', the base itself "
                             "(default: miniature)")  # fmt: skip
    for command in (export, import_, generate, serve):
        command.add_argument("--base-revision", metavar="COMMIT", help="commit of a hub id")
    for command in (listing, show, remove, export, import_, generate, serve):
        text = f"storage of the models (default: {_DEFAULT_REGISTRY}, or the demo's)"
        command.add_argument(
            "--registry", default=_default_registry(), metavar="STORAGE", help=text
        )


def _add_evaluate(commands: Any) -> None:
    evaluate = _add(commands, "evaluate", "evaluate:evaluate",
                    "score every image of every model, by the protocol of the paper")  # fmt: skip
    evaluate.add_argument("place", metavar="REGISTRY_OR_JOB",
                          help="storage of published models, or a job file")  # fmt: skip
    evaluate.add_argument("-o", "--output", default="evaluation",
                          help="folder of the results; an unfinished one is continued "
                          "(default: evaluation)")  # fmt: skip
    evaluate.add_argument("--prompts", default="dreambench", metavar="FILE|SUITE",
                          help="a prompt per line, the file of google/dreambooth, or a suite of "
                          "'dbray prompts' (default: dreambench)")  # fmt: skip
    evaluate.add_argument("--images", type=number_from(2), default=4,
                          help="of each prompt (default: 4)")  # fmt: skip
    evaluate.add_argument("--embedder", help="as scoring.embedder of a job")
    evaluate.add_argument("--embedder-revision", metavar="COMMIT", help="commit of a hub id")
    evaluate.add_argument("--clip", help="as scoring.clip of a job")
    evaluate.add_argument("--clip-revision", metavar="COMMIT", help="commit of a hub id")
    evaluate.add_argument("--seed", type=int, help="of the images (default: 0)")
    evaluate.add_argument("--steps", type=int, help="sampling steps")
    evaluate.add_argument("--guidance", type=float, help="guidance scale")
    evaluate.add_argument("--sampler", choices=get_args(Sampler),
                          help="default: that of the job's previews")  # fmt: skip
    evaluate.add_argument("--address", help="Ray cluster (default: $RAY_ADDRESS, or a local one)")


def _default_registry() -> str:
    """Return the storage in the files of `init`; if it does not exist, the demo's."""
    exists = [name for name in (_DEFAULT_REGISTRY, _DEMO_REGISTRY) if Path(name).is_dir()]
    return exists[0] if exists else _DEFAULT_REGISTRY
