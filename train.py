"""Train and adapt a segmentation network: `python train.py --stage 1` runs on the embedded `streets`; see --help."""

import itertools
import json
import logging
import math
import os
import signal
import sys
import time
from pathlib import Path

# Deterministic matrix products on a GPU need this before the first one (NVIDIA cuBLAS documentation).
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

import torch
import yaml
from tqdm import tqdm

from simfast import checkpoint, report
from simfast.cli import parse
from simfast.config import Config
from simfast.data import open_dataset
from simfast.data.classes import NUM_CLASSES, STUFF, THINGS
from simfast.data.loader import DomainLoader, evaluation_loader
from simfast.evaluate import evaluate
from simfast.matching import StuffInstanceMatching
from simfast.models.deeplab import deeplab_v2
from simfast.models.discriminator import Discriminator
from simfast.models.weights import load_weights
from simfast.step import Trainer

log = logging.getLogger("simfast")


def main(argv: list[str] | None = None) -> dict:
    """One run, from the command line to its last evaluation.

    Returns:
        What `result.json` in the run's folder holds: {"step", "last", "best", "seconds"}, scores as rows of metrics.

    Raises:
        SystemExit: bad settings or data (a message), or a signal (128 + its number; a checkpoint is saved first).
    """
    config = parse(sys.argv[1:] if argv is None else argv)
    device = torch.device("cuda" if config.device != "cpu" and torch.cuda.is_available() else "cpu")
    if config.device == "cuda" and device.type != "cuda":
        raise SystemExit("train.py: device: cuda was asked for, and torch sees no GPU")
    out = run_folder(config)
    logging.basicConfig(
        level=logging.INFO,
        format="%(message)s",
        handlers=[BesideTheBar(), logging.FileHandler(out / "log.txt")],
        force=True,
    )
    try:
        return train(config, device, out)
    except (ValueError, OSError) as error:
        log.debug("", exc_info=True)
        raise SystemExit(f"train.py: {error}") from error


def train(config: Config, device: torch.device, out: Path) -> dict:
    """The story of a run: data, networks, then steps with evaluations and checkpoints between them."""
    torch.manual_seed(config.seed)
    torch.use_deterministic_algorithms(config.deterministic)
    torch.backends.cudnn.benchmark = not config.deterministic
    resumed = checkpoint.load(config.resume) if config.resume else None
    report.write_text(out / "config.yaml", yaml.safe_dump(config.recipe(), sort_keys=False))

    # Data. target-only is source-only on the target's labels.
    target = open_dataset(
        config.target,
        config.target_root,
        config.target_split,
        config.target_size,
        labelled=config.method == "target-only",
        ids=config.target_ids,
    )
    held_out = open_dataset(
        config.target,
        config.target_root,
        config.eval_split,
        config.target_size,
        resize_labels=False,
        ids=config.target_ids,
    )
    source = target
    if config.method != "target-only":
        source = open_dataset(
            config.source, config.source_root, config.source_split, config.source_size, ids=config.source_ids
        )
    class_ids = sorted(set(source.class_ids) & set(held_out.class_ids))
    adversarial = config.method in ("aa", "aa+sim")
    loader = DomainLoader(
        source,
        target if adversarial else None,
        config.batch_size,
        config.seed,
        config.workers,
        config.flip,
        position=resumed["step"] if resumed else 0,
    )
    held_out_loader = evaluation_loader(held_out, 1, config.workers)

    # Networks.
    model = deeplab_v2(config.arch, NUM_CLASSES, config.head_dilations, config.batch_norm)
    convention = "rgb" if config.convention == "auto" else config.convention
    if resumed:
        convention = resumed["convention"]
    elif config.weights:
        convention = load_weights(
            model, config.weights, None if config.convention == "auto" else config.convention
        ).convention
    discriminator = Discriminator(NUM_CLASSES) if adversarial else None
    matching = None
    if config.method == "aa+sim":
        matching = StuffInstanceMatching(
            model.num_features,
            STUFF,
            THINGS,
            config.stuff_rows,
            config.max_instances,
            config.gate,
            config.fill_rule,
            config.ops,
        )
    for part in (model, discriminator, matching):
        if part is not None:
            part.to(device)
    trainer = Trainer(config, model, discriminator, matching, convention)

    first, best, last = 0, None, None
    if resumed:
        for name, part in (trainer.modules() | trainer.optimizers()).items():
            part.load_state_dict(resumed[name])
        checkpoint.set_random_state(resumed["random"])
        first, best, last = resumed["step"], resumed["best"], resumed["last"]
        log.info("continuing %s at step %d", config.resume, first)
    log.info("%s", yaml.safe_dump(config.recipe(), sort_keys=False))
    log.info(
        "%s: %d %s -> %d %s images, %d held out; %s on %s, %s input, run folder %s",
        config.method,
        len(source),
        config.source,
        len(target),
        config.target,
        len(held_out),
        config.arch,
        device,
        convention,
        out,
    )

    def save(name: str, step: int) -> None:
        state = {key: part.state_dict() for key, part in (trainer.modules() | trainer.optimizers()).items()}
        checkpoint.save(
            out / name,
            state
            | {
                "step": step,
                "best": best,
                "last": last,
                "convention": convention,
                "random": checkpoint.random_state(),
                "config": config.to_dict(),
            },
        )

    metrics = report.Metrics(out, first)
    started, sums, since = time.monotonic(), None, first
    bar = tqdm(total=config.steps, initial=first, desc=config.method, unit="step", dynamic_ncols=True)
    with StopSignals() as stop, bar:
        for step, batch in zip(range(first + 1, config.steps + 1), loader):  # noqa: B905  the loader is endless
            source_images, source_labels, target_images = (
                None if x is None else x.to(device, non_blocking=True) for x in batch
            )
            losses = trainer.step(step - 1, source_images, source_labels, target_images)
            sums = torch.stack(list(losses.values())) + (0 if sums is None else sums)
            bar.update()

            if step % config.log_every == 0 or step == config.steps:
                means = dict(zip(losses, (sums / (step - since)).tolist(), strict=True))  # the one read from the device
                sums, since = None, step
                if not all(map(math.isfinite, means.values())):
                    raise ValueError(f"the losses are not finite at step {step}: {means}; the last checkpoint is kept")
                metrics.write("train", step, means | {"lr": trainer.optimizer.param_groups[0]["lr"]})
                bar.set_postfix({name: f"{value:.3g}" for name, value in means.items()})

            if step % config.eval_every == 0 or step == config.steps:
                scores, pictures = evaluate(model, held_out_loader, class_ids, convention, device, config.panel_images)
                last = report.score_row(scores) | {"step": step}
                is_best = best is None or last["miou"] > best["miou"]
                best = last if is_best else best
                metrics.write("eval", step, {k: v for k, v in last.items() if k != "step"})
                if pictures:
                    report.save_panel(out / f"panel-{step:06d}.png", pictures)
                log.info(
                    "step %d: mIoU %.2f %% (best %.2f %% at step %d)",
                    step,
                    100 * last["miou"],
                    100 * best["miou"],
                    best["step"],
                )
                if is_best:
                    save("best.pt", step)
                save("last.pt", step)

            if stop.received and step < config.steps:
                save("last.pt", step)
                log.info("stopped by %s after step %d; continue with --resume %s", stop.received.name, step, out)
                raise SystemExit(128 + stop.received)
    metrics.close()

    report.save_curve(out / "curve.png", {config.method: report.read_metrics(metrics.path)})
    result = {"step": config.steps, "last": last, "best": best, "seconds": round(time.monotonic() - started, 1)}
    report.write_text(out / "result.json", json.dumps(result, indent=1) + "\n")
    log.info("\n%s\n", report.score_table({f"last ({last['step']})": last, f"best ({best['step']})": best}))
    log.info("%s: checkpoints last.pt and best.pt, panels, curve.png, metrics.jsonl, tensorboard/", out)
    return result


def run_folder(config: Config) -> Path:
    """The folder to write to; a new run never writes into one that holds a run already."""
    out = config.out
    if out is None:
        name = f"{config.preset}-{config.method}".replace("auto-", "")
        out = next(p for n in itertools.count(1) if not (p := Path("runs") / f"{name}-{n}").exists())
    elif config.resume is None and (out / "config.yaml").exists():
        raise SystemExit(
            f"train.py: out: {out} holds a run already; continue it with --resume {out}, or choose another"
        )
    out.mkdir(parents=True, exist_ok=True)
    return out


class StopSignals:
    """Ctrl-C and SIGTERM as a wish to stop after the current step; a second one stops at once."""

    def __enter__(self) -> "StopSignals":
        self.received: signal.Signals | None = None
        self._before = {s: signal.signal(s, self._receive) for s in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _receive(self, number: int, _frame) -> None:
        if self.received:
            raise KeyboardInterrupt
        self.received = signal.Signals(number)
        tqdm.write(f"{self.received.name}: finishing this step and saving; once more to stop at once", file=sys.stderr)


class BesideTheBar(logging.Handler):
    """Log lines that do not tear the progress bar."""

    def emit(self, record: logging.LogRecord) -> None:
        tqdm.write(self.format(record))


if __name__ == "__main__":
    main()
