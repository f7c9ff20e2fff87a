"""The command that samples images of a published model, or of the untouched base."""

from __future__ import annotations

import argparse
import itertools
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from pydantic import ValidationError

from dbray.bases.defaults import fill_super_resolution
from dbray.bases.reading import Reader
from dbray.cli.models import open_source
from dbray.cli.output import print_problems, writing
from dbray.cli.watch import step_bar
from dbray.errors import Problem, SpecError
from dbray.planning.long_prompts import Prompt, check_prompts
from dbray.spec.canon import UNTOUCHED
from dbray.spec.problems import problems_of
from dbray.spec.prompts import NO_NOUN, check_template, fill_prompt
from dbray.spec.sections import Previews

if TYPE_CHECKING:
    import numpy as np

    from dbray.bases import Backbone, Base
    from dbray.bases.generate import Sampling
    from dbray.records.models import ModelRecord

_WHERE = "command line"


def generate(args: argparse.Namespace) -> int:
    """Sample images, each from its own seed, and write them as PNG."""
    chosen = _chosen(args)
    with open_source(args) as source:
        _check_length(args, source.base, source.record)
        record, backbone = source.record, source.backbone
    prompt = _filled(args.prompt, record)
    stage = record.super_resolution if record else fill_super_resolution(source.base, None)
    sampling = _sampling(chosen, args.negative, backbone).through(stage)
    output = Path(args.output)
    with writing(output):
        output.mkdir(parents=True, exist_ok=True)
    seeds = range(args.seed, args.seed + args.n)
    for seed, pixels in _sampled(backbone, prompt, seeds, sampling):
        about = {"model": args.model, "prompt": prompt, "seed": seed, **sampling.identity()}
        with writing(output), _new_file(output, f"{args.model.replace('@', '-')}-{seed}") as file:
            _write_png(file, pixels, about)
        print(file.name)
    return 0


def _sampled(
    backbone: Backbone, prompt: str, seeds: Sequence[int], sampling: Sampling
) -> Iterator[tuple[int, np.ndarray]]:
    """Sample in batches, with a bar; yield each seed with its image."""
    from dbray.bases.generate import batch_size
    from dbray.bases.generate import generate as sample

    size = batch_size(backbone)
    batches = [seeds[start : start + size] for start in range(0, len(seeds), size)]
    with step_bar("sampling steps", len(batches) * sampling.all_steps) as advance:
        for batch in batches:
            prompts = [prompt] * len(batch)
            pixels = sample(backbone, prompts, batch, sampling, lambda *_: advance())
            yield from zip(batch, pixels, strict=True)


def _filled(prompt: str, record: ModelRecord | None) -> str:
    """Return the filled prompt; print a note if it does not name the class."""
    if record is None:
        return prompt
    filled = fill_prompt(prompt, record.class_noun, record.identifier)
    name = record.identifier if record.class_noun == NO_NOUN else record.class_noun
    if name not in filled:
        print(f'note: the prompt does not contain "{name}"; write {{subject}} where '
              "the subject should be", file=sys.stderr)  # fmt: skip
    return filled


def _new_file(folder: Path, name: str) -> BinaryIO:
    """Create NAME.png, or NAME-2.png and so on if it exists: no image is ever overwritten."""
    for number in itertools.count(1):
        suffix = f"-{number}" if number > 1 else ""
        try:
            return (folder / f"{name}{suffix}.png").open("xb")
        except FileExistsError:
            continue
    raise AssertionError("unreachable")


def _write_png(file: BinaryIO, pixels: np.ndarray, about: Mapping[str, Any]) -> None:
    """Write an image, with its parameters where viewers look for them."""
    from PIL import Image, PngImagePlugin

    info = PngImagePlugin.PngInfo()
    info.add_text("parameters", json.dumps(about))
    Image.fromarray(pixels).save(file, "PNG", pnginfo=info)


def _chosen(args: argparse.Namespace) -> dict[str, Any]:
    """Return the given sampling flags. Raises SpecError with every mistake in them."""
    flags = {name: getattr(args, name) for name in ("sampler", "steps", "guidance", "seed")}
    chosen = {name: value for name, value in flags.items() if value is not None}
    problems = _problems_of_prompt(args.model, args.prompt)
    try:
        Previews.model_validate(chosen)
    except ValidationError as exc:
        problems += problems_of(exc, _WHERE)
    if problems:
        raise SpecError(problems)
    return chosen


def _problems_of_prompt(model: str, prompt: str) -> list[Problem]:
    """Return problems with unknown placeholders."""
    if model == UNTOUCHED and set(prompt) & set("{}"):
        what = f"{prompt!r} has a placeholder, but the untouched base has no {{subject}}"
        return [Problem("error", "prompt", what, "write a class noun, such as 'dog'")]
    try:
        check_template(prompt, allowed=("{subject}", "{class}"))
    except ValueError as exc:
        fix = "write {subject} where the subject should be, and no other braces"
        return [Problem("error", "prompt", str(exc), fix)]
    return []


def _check_length(args: argparse.Namespace, base: Base, record: ModelRecord | None) -> None:
    """Print a warning for each prompt that the base does not read to its end.

    Raises:
        SpecError: the subject itself is not read.
    """
    noun, identifier = (record.class_noun, record.identifier) if record else ("", None)
    prompts = [
        Prompt(args.prompt, noun, identifier, "prompt"),
        Prompt(args.negative, noun, None, "--negative"),
    ]
    problems = check_prompts(prompts, Reader.of(base))
    if any(problem.severity == "error" for problem in problems):
        raise SpecError(problems)
    print_problems(problems)


def _sampling(chosen: dict[str, Any], negative: str, backbone: Backbone) -> Sampling:
    """Combine the given flags with the recommendations of the base's makers."""
    from dbray.bases.generate import Sampling

    return Sampling.of(backbone.base.fill(Previews.model_validate(chosen)), negative)
