"""Several processes that train together: the same as one with all their images, and the same in each of them."""

import copy
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from running import train

from simfast.config import Config
from simfast.data import open_dataset
from simfast.data.loader import evaluation_loader
from simfast.inference.signals import find_signals
from simfast.matching import StuffInstanceMatching
from simfast.models import Discriminator, checkpoint, deeplab_v2, normalise
from simfast.models.restore import restore_model
from simfast.report.metrics import read_metrics
from simfast.runtime import distributed
from simfast.training.modes import resolve_mode
from simfast.training.step import Trainer

ROOT = Path(__file__).parents[2]
SIZE, STEPS = 64, 3
# Seconds. A busy machine takes its time to start processes, and is not to fail for it.
PATIENCE = 600
# A split for which the untrained network sees enough of both.
STUFF = (0, 2, 5, 8, 10)
THINGS = tuple(c for c in range(19) if c not in STUFF)


def new_trainer(stage, ranks):
    config = Config(
        stage=stage,
        pseudo_labels=Path("x") if stage == 2 else None,
        arch="resnet18",
        batch_norm="frozen",
        batch_size=2 // ranks,
        source_size=(SIZE, SIZE),
        target_size=(SIZE, SIZE),
        stuff_rows=3,
        max_instances=2,
        lr=1e-4,
        lambda_ci=1.0,
        lambda_adv=1.0,
        steps=STEPS,
        schedule_steps=10,
    )
    torch.manual_seed(0)
    model = deeplab_v2("resnet18", 19, batch_norm="frozen")
    discriminator = Discriminator(19)
    # Sure of one domain: unsure, its gradients of both cancel, and what is left changes by a tenth with the sign of one
    # activation, which another order of sums flips.
    torch.nn.init.constant_(discriminator.classifier.bias, 2)
    gather = distributed.gather if ranks > 1 else None
    matching = StuffInstanceMatching(model.num_features, STUFF, THINGS, 3, 2, gather=gather)
    return Trainer(config, model, discriminator, matching, "rgb", torch.device("cpu"))


def make_batches(model):
    """Two images a domain, of which the first has few labelled pixels and no pseudo label, with labels that the network
    gets right in most places, so that there is something to remember."""
    g = torch.Generator().manual_seed(1)
    network, batches = copy.deepcopy(model), []
    for _ in range(STEPS):
        images = torch.randint(256, (2, 2, 3, SIZE, SIZE), generator=g, dtype=torch.uint8)
        source, target = (F.avg_pool2d(x.float(), 5, 1, 2).byte() for x in images)
        with torch.no_grad():
            guesses = [network(normalise(x, "rgb"))[1].argmax(1).byte() for x in (source, target)]
        labels, pseudo = (F.interpolate(guess[:, None], SIZE)[:, 0] for guess in guesses)
        labels[0][torch.rand(labels[0].shape, generator=g) < 0.7] = 255
        pseudo[0] = 255
        batches.append((source, labels, target, pseudo))
    return batches


def run_steps(trainer, batches, rank=0, ranks=1):
    losses = []
    for step, batch in enumerate(batches):
        source, labels, target, pseudo = (x.chunk(ranks)[rank] for x in batch)
        values = trainer.step(step, source, labels, target, pseudo if trainer.config.stage == 2 else None)
        losses.append({name: float(distributed.total(x) / ranks) for name, x in values.items()})
    return {"losses": losses} | trainer.state_dict()


def one_of_two(rank, port, folder):
    """What each process of `two_ranks` does."""
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "TORCHELASTIC_USE_AGENT_STORE": "True"}
    with distributed.joined(torch.device("cpu")):
        states = [run_steps(new_trainer(stage, 2), torch.load(folder / f"{stage}.pt"), rank, 2) for stage in (1, 2)]
        torch.save(states, folder / f"rank{rank}.pt")
        with pytest.raises(ValueError, match="step_mode: must be eager, compile or auto with several processes"):
            resolve_mode("graph", torch.device("cuda"))
        assert resolve_mode("auto", torch.device("cuda")) == "eager"


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory):
    """Per stage: batches, and what each of two ranks holds after some steps on its half of them."""
    folder = tmp_path_factory.mktemp("ranks")
    batches = {stage: make_batches(new_trainer(stage, 1).model) for stage in (1, 2)}
    for stage, made in batches.items():
        torch.save(made, folder / f"{stage}.pt")
    # Here, as torchrun has it: a port that is free now may be another program's by the time that a rank asks for it.
    store = torch.distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    torch.multiprocessing.spawn(one_of_two, (store.port, folder), nprocs=2)
    states = [torch.load(folder / f"rank{rank}.pt") for rank in range(2)]
    return {stage: (batches[stage], [state[stage - 1] for state in states]) for stage in (1, 2)}


def tensors(state, prefix=""):
    for key, value in state.items():
        if isinstance(value, dict):
            yield from tensors(value, f"{prefix}{key}.")
        elif isinstance(value, torch.Tensor):
            yield f"{prefix}{key}", value


@pytest.mark.parametrize("stage", [1, 2])
def test_two_ranks_equal_one_process_with_both_images(stage, two_ranks):
    batches, (state, _) = two_ranks[stage]
    trainer = new_trainer(stage, 1)
    start = {name: x.clone() for name, x in tensors({"model": trainer.model.state_dict()})}
    start |= {name: x.clone() for name, x in tensors({"discriminator": trainer.discriminator.state_dict()})}
    one = run_steps(trainer, batches)
    for step, (ours, theirs) in enumerate(zip(state["losses"], one["losses"], strict=True)):
        assert ours == pytest.approx(theirs, rel=1e-4), step
    assert min(theirs.values()) > 0  # every loss took part
    found = dict(tensors(state))
    for name, expected in tensors(one):
        if name in start:
            # float32 sums of another order through 18 layers, as in test_step.
            moved = (expected - start[name]).float().norm()
            # Adam divides by the gradient's own size, and so enlarges what they leave: 1.7e-3 was seen.
            assert (found[name] - expected).float().norm() <= 5e-3 * moved, name
    assert torch.equal(found["matching.bank.written"], one["matching"]["bank.written"])
    assert (one["matching"]["bank.written"] > 3).any()  # rings have wrapped
    torch.testing.assert_close(found["matching.bank.storage"], one["matching"]["bank.storage"], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("stage", [1, 2])
def test_all_ranks_hold_the_same_bits(stage, two_ranks):
    _, (first, second) = two_ranks[stage]
    first, second = dict(tensors(first)), dict(tensors(second))
    assert first.keys() == second.keys()
    assert all(torch.equal(x, second[name]) for name, x in first.items())


# ----------------------------------------------------------------------------------------------------------------------
# From the command line
# ----------------------------------------------------------------------------------------------------------------------


def torchrun(processes, *arguments):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    command += [str(ROOT / "train.py"), *map(str, arguments)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment, cwd=ROOT
    )


def finish(process, code=0):
    output, _ = process.communicate(timeout=PATIENCE)
    assert (process.returncode == 0) == (code == 0), output
    return output


def process_of_rank(parent, rank):
    for child in Path(f"/proc/{parent}/task/{parent}/children").read_text().split():
        if f"RANK={rank}".encode() in Path(f"/proc/{child}/environ").read_bytes().split(b"\0"):
            return int(child)
    raise AssertionError(f"no child of rank {rank}")


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="finds the processes in /proc")
def test_a_signal_to_one_rank_stops_all_and_a_resumed_run_equals_a_straight_one(settings, tmp_path):
    # Three, whose sum depends on the order; evaluated on the training images, of which there are enough for them.
    settings = [*settings, "--eval-split", "train", "--eval-every", "100000", "--schedule-steps", "100000"]
    settings += ["--log-every", "3", "--source-size", "40", "40", "--target-size", "40", "40"]
    # More steps than are ever made: however late this process sees the first ones, the others are still at work.
    process = torchrun(3, *settings, "--steps", 100_000, "--out", tmp_path / "parts")
    metrics, deadline = tmp_path / "parts" / "metrics.jsonl", time.monotonic() + PATIENCE
    while not (metrics.exists() and metrics.read_text().splitlines()):
        assert process.poll() is None, process.stdout.read()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    os.kill(process_of_rank(process.pid, 1), signal.SIGTERM)
    assert "stopped by SIGTERM after step" in finish(process, code=1)
    step = checkpoint.load(tmp_path / "parts" / "last.pt")["step"]
    assert 2 <= step < 100_000

    with pytest.raises(SystemExit, match=r"as many processes as it began with \(3\).*got 1"):
        train(["--resume", str(tmp_path / "parts")])
    steps = ("--steps", step + 2)
    finish(torchrun(3, "--resume", tmp_path / "parts", *steps))
    output = finish(torchrun(3, *settings, *steps, "--out", tmp_path / "straight"))
    assert output.count("mIoU, 19 classes") == 1  # one process writes

    first, second = (checkpoint.load(tmp_path / name / "last.pt") for name in ("parts", "straight"))
    assert first["step"] == second["step"] == step + 2
    assert first["last"] == second["last"]
    first, second = dict(tensors(first)), dict(tensors(second))
    assert first.keys() == second.keys()
    assert all(torch.equal(x, second[name]) for name, x in first.items())
    losses = [
        [row for row in read_metrics(tmp_path / name / "metrics.jsonl") if row["kind"] == "train"]
        for name in ("parts", "straight")
    ]
    assert losses[0] == losses[1]
    assert [row["step"] for row in losses[0]] == [*range(3, step + 2, 3), step + 2]


def test_two_processes_find_the_signals_of_one(settings, folders, tmp_path):
    command = [*settings, "--eval-split", "none", "--method", "source-only", "--steps", 1, "--out", tmp_path]
    output = finish(torchrun(2, *command))
    assert output.count("step 1: confidence") == 1  # one process writes
    last = json.loads((tmp_path / "result.json").read_text())["last"]
    restored = restore_model(tmp_path / "best.pt")
    photographs = open_dataset("folder", folders / "target", "train", (64, 64), labelled=False)
    loader = evaluation_loader(photographs, 1, 0)
    found, _ = find_signals(restored.model, loader, restored.convention, restored.device, 0.9)
    expected = {name: getattr(found, name) for name in ("confidence", "entropy", "over_cap", "mirror")}
    assert {name: last[name] for name in expected} == pytest.approx(expected, rel=1e-4, abs=1e-3)


def test_a_failing_rank_brings_down_the_others_with_its_message(settings, folders, tmp_path):
    root = shutil.copytree(folders / "source", tmp_path / "source")
    (root / "train" / "images" / "3.png").write_bytes(b"not a picture")
    settings = [str(root) if part == str(folders / "source") else part for part in settings]
    process = torchrun(2, *settings, "--steps", 20, "--out", tmp_path / "run")
    output = finish(process, code=1)
    assert "images/3.png: must be a readable picture" in output
    assert "Timed out" not in output  # the others were ended, and did not wait for it in vain
