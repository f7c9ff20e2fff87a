"""Commands about published models: models list|show|remove|export|import, serve."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from dbray import bases
from dbray.cli.output import print_table, writing
from dbray.errors import BaseError, RegistryError, SpecError, without_secrets
from dbray.records.models import ModelRecord, Registry
from dbray.records.scores import read, read_all
from dbray.scores.flags import flags_of
from dbray.scores.values import COLUMNS, Scores, rank_of, references, shown, value_of
from dbray.spec.canon import UNTOUCHED
from dbray.spec.paths import MINIATURE, anchor_base
from dbray.spec.problems import problems_of
from dbray.spec.prompts import fill_prompt
from dbray.spec.subject import Subject
from dbray.storage.store import Store

if TYPE_CHECKING:
    from dbray.export.source import Source


def _registry(args: argparse.Namespace) -> Registry:
    """The registry that a command names. A missing folder is an error, not an empty registry."""
    store = Store(args.registry)
    if store.is_missing:
        raise RegistryError(f"there is no folder {store.uri}; give the storage of a job with "
                            "--registry, or run one first")  # fmt: skip
    return Registry(store)


def list_models(args: argparse.Namespace) -> int:
    """List the latest revision of every model, with its scores if any model has some."""
    registry = _registry(args)
    records = list(registry.list())
    found = read_all(registry.store, [record.name for record in records])
    listed = list(zip(records, found, strict=True))
    if args.sort:
        listed.sort(key=lambda one: rank_of(one[1], args.sort))
    if args.json:
        print(json.dumps([_brief(*one) for one in listed], indent=2))
        return 0
    if not listed:
        print(f"no models in {without_secrets(args.registry)}", file=sys.stderr)
    elif any(scores for _, scores in listed):
        print_table((_scored_row(*one) for one in listed), _SCORED_HEADINGS)
    else:
        print_table(_row(record) for record in records)
    return 0


_SCORED_HEADINGS = ("model", "subject", *(one.heading for one in COLUMNS.values()), "flags")


def _row(record: ModelRecord) -> tuple[str, ...]:
    subject = fill_prompt("{subject}", record.class_noun, record.identifier)
    return record.name, subject, record.base, record.created_at


def _scored_row(record: ModelRecord, scores: Scores | None) -> tuple[str, ...]:
    figures = (shown(value_of(scores, column)) for column in COLUMNS)
    flags = ", ".join(flag.words for flag in flags_of(scores)) if scores else "not scored"
    return *_row(record)[:2], *figures, flags


def _brief(record: ModelRecord, scores: Scores | None) -> dict[str, Any]:
    chosen = {"id", "revision", "class_noun", "identifier", "base", "steps", "created_at", "job_id"}
    brief = record.model_dump(mode="json", include=chosen)
    if scores is not None:
        brief["scores"] = scores.model_dump()
        brief["flags"] = [flag._asdict() for flag in flags_of(scores)]
    return brief


def show(args: argparse.Namespace) -> int:
    """Show the record of one model."""
    registry = _registry(args)
    record = registry.find(args.model)
    if args.json:
        print(record.model_dump_json(indent=2))
        return 0
    fields = record.model_dump(mode="json", exclude={"loss"})
    rows = {name: value if isinstance(value, str) else json.dumps(value)
            for name, value in fields.items()}  # fmt: skip
    if record.loss:
        rows["loss"] = f"{record.loss[0][1]:.4f} at first, {record.loss[-1][1]:.4f} at last"
    others = [one.revision for one in registry.revisions(record.id) if one != record]
    rows |= _scored_rows(read(registry.store, record.name))
    rows["other revisions"] = ", ".join(others) or "none"
    print_table(rows.items())
    return 0


def _scored_rows(scores: Scores | None) -> dict[str, str]:
    """Return the scores of a model, beside the base's and the ceiling, and its flags."""
    if scores is None:
        return {}
    rows = {
        f"score {name}": f"{shown(getattr(scores, one.field))} {references(scores, one)}".rstrip()
        for name, one in COLUMNS.items()
    }
    for flag in flags_of(scores):
        rows[f"flag {flag.kind}"] = flag.text
    return rows


def remove(args: argparse.Namespace) -> int:
    """Remove a model, or one revision of it."""
    if not args.yes:
        if not sys.stdin.isatty():
            raise RegistryError(f"removing {args.model} is final: add --yes")
        if input(f"Remove {args.model} for good? [y/N] ").strip().lower() != "y":
            return 0
    for name in _registry(args).remove(args.model):
        print(f"removed {name}")
    return 0


def export(args: argparse.Namespace) -> int:
    """Write a model in a format of other programs; print Python that loads it with diffusers."""
    from dbray.export import check, format_of

    output = Path(args.output)
    with writing(output), open_source(args) as source:
        check(args.format, source, output)
        line = format_of(args.format).export(source, output)
    print(f"wrote {output}; load it with:\n{line}")
    if source.has_rest and args.format in ("lora", "kohya", "comfyui"):
        print("its changed biases, norms and small layers are not in that file, so its images "
              "differ a little; --format diffusers holds all", file=sys.stderr)  # fmt: skip
    if source.has_tokens and args.format in ("kohya", "comfyui"):
        print("its learnt embeddings are not in that file: write them with --format embedding too; "
              f"in prompts write {source.token} for its identifier", file=sys.stderr)  # fmt: skip
    return 0


def import_(args: argparse.Namespace) -> int:
    """Publish a LoRA that another tool trained."""
    named = {"id": args.subject, "class_noun": args.class_noun, "identifier": args.identifier}
    try:
        subject = Subject.model_validate(named | {"images": ()})
    except ValidationError as exc:
        raise SpecError(problems_of(exc, "command line", model=Subject)) from exc
    from dbray.export.imported import Naming, import_lora

    base = bases.resolve(_anchored(args.base) or MINIATURE, args.base_revision)
    naming = Naming(subject.id, subject.class_noun, subject.identifier or "")
    model = import_lora(Path(args.file), base, naming)
    Registry(Store(args.registry)).publish(model.record, model.files)
    print(f"published {model.record.name}")
    return 0


@contextmanager
def open_source(args: argparse.Namespace) -> Iterator[Source]:
    """Find a model and its base, or the base alone; its files exist while the block runs."""
    from dbray.export.source import Source

    if args.model == UNTOUCHED:
        base = bases.resolve(args.base or MINIATURE, args.base_revision)
        yield Source(base, device=_device())
        return
    registry = _registry(args)
    record = registry.find(args.model)
    name, revision = record.served_by
    base = bases.resolve(args.base or name, args.base_revision or revision)
    base = bases.with_stage(base, record.super_resolution)
    if not record.fits(*base.digests):
        raise BaseError(f"{record.name} {record.of_another(base.digest)}")
    with tempfile.TemporaryDirectory() as folder:
        yield Source(base, record, registry.weights(record, Path(folder)), _device())


def _device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def serve(args: argparse.Namespace) -> int:
    """Serve every model of a registry until stopped."""
    from dbray.serving import launch

    launch(
        args.registry,
        args.port,
        Path(args.keys) if args.keys else None,
        host=args.host,
        on_ready=_print_address,
        base=_anchored(args.base),
        base_revision=args.base_revision,
    )
    return 0


def _anchored(base: str | None) -> str | None:
    """A folder is made absolute: replicas work elsewhere. Names and hub ids stay."""
    return anchor_base(base, Path.cwd()) if base else None


def _print_address(address: str) -> None:
    print(f"serving on {address}, playground at {address}/playground; stop with Ctrl-C", flush=True)
