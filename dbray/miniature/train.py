"""Train the miniature's bases: python -m dbray.miniature.train STAGE [STAGE ...].

Owns the command line and the order of stages: `render` draws the training set, `vae` trains the
autoencoder, `encode` caches latents, `unet` trains the UNet with the text encoder, `decoder`
refines the decoder, `clip` and `vit` train the embedders, `export` writes the weights folders;
`all` runs them in order. Of the cascade, `cascade-render` draws the training set, `first` trains
the first stage with its text encoder, `super-resolution` trains the second, and `cascade-export`
writes its folder; `cascade` runs these four. Each stage may be killed and run again: finished work
is kept, and training continues from the last checkpoint, which is at most two minutes old.
"""

from __future__ import annotations

import argparse
import datetime
import logging
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from dbray.bases import MINIATURE_FOLDER
from dbray.miniature import data

logger = logging.getLogger("dbray.miniature.train")

STAGES = ("render", "vae", "encode", "unet", "decoder", "clip", "vit", "export")
CASCADE_STAGES = ("cascade-render", "first", "super-resolution", "cascade-export")
GROUPS = {"all": STAGES, "cascade": CASCADE_STAGES}
MINUTES = {
    "vae": 20.0, "unet": 90.0, "decoder": 10.0, "clip": 30.0, "vit": 30.0,
    "first": 90.0, "super-resolution": 50.0,
}  # fmt: skip
BATCH_SIZES = {
    "vae": 16, "unet": 16, "decoder": 16, "clip": 96, "vit": 48,
    "first": 16, "super-resolution": 16,
}  # fmt: skip
"""For the stages that train until a deadline; MINUTES are their shares of --until too."""


def main(argv: list[str] | None = None) -> int:
    """Parse the command line and run the stages."""
    options = _parse(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", stream=sys.stdout)
    stages = [stage for name in options.stages for stage in GROUPS.get(name, (name,))]
    # Computed once: a stage that begins after that time of day would take tomorrow's.
    end = _next(options.until) if options.until else None
    for index, stage in enumerate(stages):
        deadline = _deadline(options, stages[index:], end)
        if options.rank is not None or options.processes == 1 or stage.endswith("export"):
            _run_stage(options, stage, deadline)
            continue
        if code := _run_peers(options, stage, deadline):
            return code
    return 0


def _parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m dbray.miniature.train", description=__doc__)
    parser.add_argument("stages", nargs="+", choices=(*STAGES, *CASCADE_STAGES, *GROUPS))
    parser.add_argument(
        "--folder",
        type=Path,
        default=Path("build/miniature"),
        help="folder of the training set and checkpoints (default: build/miniature)",
    )
    parser.add_argument(
        "--weights", type=Path, default=MINIATURE_FOLDER, help="folder to export to"
    )
    parser.add_argument("--minutes", type=float, help="time for each stage that trains")
    parser.add_argument("--until", help="instead: time of day, HH:MM, when the last ends")
    parser.add_argument(
        "--processes",
        type=int,
        default=_default_processes(),
        help="single-threaded processes that average parameters",
    )
    parser.add_argument("--num-shards", type=int, default=40, help="shards of 4000 scenes")
    parser.add_argument("--batch-size", type=int, help="per process")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rank", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--deadline", type=float, help=argparse.SUPPRESS)
    return parser.parse_args(argv)


def _default_processes() -> int:
    import torch

    return 1 if torch.cuda.is_available() else min(2, os.cpu_count() or 1)


def _deadline(options: argparse.Namespace, stages: Sequence[str], end: float | None) -> float:
    """Return when the first of the remaining stages ends, in seconds since the epoch."""
    if options.deadline is not None:
        return float(options.deadline)
    now, usual = time.time(), MINUTES.get(stages[0], 0.0)
    if end is not None:
        all_usual = sum(MINUTES.get(stage, 0.0) for stage in stages)
        return now + (end - now) * (usual / all_usual if all_usual else 0.0)
    return now + 60.0 * (usual if options.minutes is None else options.minutes)


def _next(time_of_day: str) -> float:
    """Return when it is next HH:MM, in seconds since the epoch."""
    hour, minute = map(int, time_of_day.split(":"))
    now = datetime.datetime.now()
    end = now.replace(hour=hour, minute=minute, second=0)
    return (end if end > now else end + datetime.timedelta(days=1)).timestamp()


def _run_peers(options: argparse.Namespace, stage: str, deadline: float) -> int:
    """Run a stage in several processes; all end if one fails."""
    options.folder.mkdir(parents=True, exist_ok=True)
    (options.folder / "meeting").unlink(missing_ok=True)
    command = [sys.executable, "-m", "dbray.miniature.train", stage, "--deadline", str(deadline)]
    for name in ("folder", "weights", "processes", "num_shards", "batch_size", "seed"):
        value = getattr(options, name)
        if value is not None:
            command += ["--" + name.replace("_", "-"), str(value)]
    children = [
        subprocess.Popen([*command, "--rank", str(rank)]) for rank in range(options.processes)
    ]
    try:
        while any(child.poll() is None for child in children):
            time.sleep(1.0)
            if any(child.returncode for child in children):
                break
    finally:
        for child in children:
            child.terminate()
        codes = [child.wait() for child in children]
    return next((code for code in codes if code), 0)


def _run_stage(options: argparse.Namespace, stage: str, deadline: float) -> None:
    cache = options.folder / "cache"
    rank = options.rank or 0
    if stage in ("render", "cascade-render"):
        for index in range(rank, options.num_shards, options.processes):
            _render(cache, index, stage)
            logger.info("%s shard=%d", stage, index)
    elif stage == "export":
        from dbray.miniature.export import export, export_embedders

        export(options.folder, options.weights)
        export_embedders(options.folder, options.weights.with_name("embedders"))
    elif stage == "cascade-export":
        from dbray.miniature.pixels.export import export_cascade

        export_cascade(options.folder, options.weights.with_name("cascade"))
    else:
        _run_torch_stage(options, stage, deadline)


def _render(cache: Path, index: int, stage: str) -> None:
    if stage == "render":
        data.write_shard(cache, index)
        data.write_identities(cache, index)
        return
    from dbray.miniature.pixels import data as fine_data

    fine_data.write_shard(cache, index)


def _run_torch_stage(options: argparse.Namespace, stage: str, deadline: float) -> None:
    import torch

    from dbray.miniature import autoencoder, denoiser, embedding
    from dbray.miniature.pixels import training as pixels
    from dbray.miniature.training import Peers, Run

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    rank = options.rank or 0
    alone = stage == "encode"  # shards are independent; peers need not meet
    meeting_file = (options.folder / "meeting").resolve()
    peers = Peers.meet(rank, 1 if alone else options.processes, meeting_file)
    if device.type == "cuda":
        torch.set_num_threads(os.cpu_count() or 1)
    batch_size = options.batch_size or BATCH_SIZES.get(stage, 1)
    if device.type == "cuda":
        batch_size *= 4
    run = Run(options.folder, deadline, peers, device, batch_size, options.seed)
    trainers = {
        "vae": autoencoder.train_autoencoder,
        "decoder": autoencoder.refine_decoder,
        "clip": embedding.train_clip,
        "vit": embedding.train_vit,
        "first": pixels.train_first,
        "super-resolution": pixels.train_super_resolution,
    }
    if stage == "encode":
        model = autoencoder.load_autoencoder(options.folder, device)
        num_shards = min(options.num_shards, len(data.shards(options.folder / "cache", "scenes")))
        for index in range(rank, num_shards, options.processes):
            autoencoder.encode_shard(run, model, index)
            logger.info("encode shard=%d", index)
    elif stage == "unet":
        denoiser.train_unet(run, denoiser.load_wordings(options.folder))
    else:
        trainers[stage](run)


if __name__ == "__main__":
    raise SystemExit(main())
