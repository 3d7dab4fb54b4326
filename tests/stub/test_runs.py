"""Whole training runs on the stub GPU: how the loader copies, what a run asks for, what ends in an eager step."""

import subprocess
import sys

import pytest
import stub_gpu
import torch
from running import settings_of, train
from stub_steps import batches, small_trainer

from simfast.inference.evaluate import Scores, evaluate
from simfast.inference.signals import find_signals
from simfast.models import checkpoint, deeplab_v2
from simfast.testing import determinism
from simfast.training import looks, run, soundness
from simfast.training.capture import CannotCapture

CUDA = torch.device("cuda")


@pytest.fixture(autouse=True)
def restore_global_state():
    yield
    torch.use_deterministic_algorithms(False)
    torch.backends.cudnn.benchmark = False


@pytest.fixture
def arguments(settings, tmp_path, monkeypatch):
    """A run on the stub, in a folder of its own. The scores are of counts that the stub does not have, and the scale of
    fp16 is 0 there."""

    def score(model, loader, class_ids, *args, labelled_ids, **more):
        _, pictures = evaluate(model, loader, class_ids, *args, labelled_ids=labelled_ids, **more)
        return Scores.of(torch.ones(19, 19, dtype=torch.int64), class_ids, labelled_ids), pictures

    monkeypatch.setattr(looks, "evaluate", score)
    monkeypatch.setattr(soundness, "LOWEST_SCALE", 0.0)
    return [*settings, "--device", "cuda", "--out", str(tmp_path / "run")]


@pytest.mark.parametrize("workers", ["0", "2"])
def test_batches_are_copied_from_pinned_memory_on_a_stream_beside_the_step_s(workers, arguments, seen):
    loader, *_ = run.open_data(settings_of([*arguments, "--steps", "4", "--workers", workers]), CUDA, 0, None)
    iterator = iter(loader)

    def step():
        batch = next(iterator)
        batch.source_images.float()
        return batch

    parts = [x is not None for x in step()].count(True)
    step()
    stub_gpu.reset()
    with stub_gpu.traced():
        for _ in range(3):
            step()
    iterator.close()
    assert seen().names("memcpy").keys() == {"HtoD"}
    assert seen().total("sync") == 0
    (copies,) = {on for on, kind, _ in seen().trace if kind == "memcpy"}
    (compute,) = {on for on, kind, _ in seen().trace if kind == "kernel"}
    assert copies != compute
    other = {copies: str(compute), compute: str(copies)}
    trace = [(on, kind, kind != "wait" or other[on] in what.split()) for on, kind, what in seen().trace]
    # The copies wait for the step before the last one, the step for the copies.
    once = [(copies, "wait", True), *[(copies, "memcpy", True)] * parts]
    once += [(compute, "wait", True), (compute, "kernel", True)]
    assert trace == once * 3


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_both_stages_with_everything_run_as_graphs(precision, arguments, tmp_path, seen):
    more = ["--stage", "all", "--self-training", "online", "--transfer", "fda", "--precision", precision]
    results = train([*arguments, *more, "--steps", "5", "--workers", "2"])
    assert [results[stage]["step"] for stage in ("stage1", "stage2")] == [5, 5]
    found = seen()
    assert found.violations == []
    # With an evaluation after each second step, and pseudo labels in between.
    assert found.total("graph") == 10
    assert "step is eager" not in (tmp_path / "run" / "stage1" / "log.txt").read_text()
    assert len(list((tmp_path / "run").glob("stage2/pseudo-labels/*.png"))) == 4


def test_a_resumed_run_is_a_graph_again(arguments, tmp_path, seen):
    train([*arguments, "--steps", "2"])
    stub_gpu.reset()
    train(["--resume", str(tmp_path / "run"), "--steps", "5"])
    assert seen().total("graph") == 3
    assert seen().violations == []
    assert checkpoint.load(tmp_path / "run" / "last.pt")["step"] == 5


def test_a_step_of_a_run_reads_nothing_between_two_logs(arguments, seen):
    train([*arguments, "--steps", "6", "--eval-every", "6", "--log-every", "6"])
    few = seen().total("sync")
    stub_gpu.reset()
    train([*arguments[:-1], arguments[-1] + "-longer", "--steps", "12", "--eval-every", "12", "--log-every", "12"])
    assert seen().total("sync") == few


def test_signals_are_read_once_however_many_images_there_are(seen):
    model = deeplab_v2("resnet18", 19).to(CUDA)
    loader = [(torch.zeros(1, 3, 64, 64, dtype=torch.uint8).pin_memory(), None, ["x"])] * 3
    syncs = []

    def total(sums):
        """What the stub did not compute: 3 images, nothing broken."""
        syncs.append(seen().total("sync"))
        return torch.ones(len(sums), dtype=torch.float64).index_fill(0, torch.tensor([4]), 0)

    stub_gpu.reset()
    find_signals(model, loader, "rgb", CUDA, 0.9, total=total)
    assert syncs == [0]
    assert seen().names("memcpy").keys() == {"HtoD"}
    assert seen().violations == []


@pytest.fixture
def failing_capture(monkeypatch):
    """The capture of a step fails when the first optimiser has stepped and the second has not."""
    step = torch.optim.Adam.step

    def worse(self, *args, **more):
        step(self, *args, **more)
        if torch.cuda.is_current_stream_capturing():
            torch.cuda.synchronize()

    monkeypatch.setattr(torch.optim.Adam, "step", worse)


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_where_a_capture_fails_auto_goes_on_eagerly(precision, failing_capture):
    with determinism(True):
        trainer = small_trainer("stage 1", "auto", precision)
        for step, batch in enumerate(batches(4, "cuda")):
            losses = trainer.step(step, *batch)
    assert trainer.mode == "eager"
    assert {"seg", "adv", "stuff", "instance", "d"} == set(losses)


def test_a_failed_capture_says_what_failed_first(failing_capture):
    trainer = small_trainer("stage 1", "graph", "bf16")
    with pytest.raises(CannotCapture, match="not permitted when stream is capturing"):
        trainer.step(0, *next(batches(1, "cuda")))


@pytest.mark.parametrize("workers", ["0", "2"])
def test_a_run_on_the_cpu_makes_no_cuda_context(workers, settings, tmp_path):
    code = (
        "import atexit, runpy, stub_gpu; atexit.register(lambda: print('context:', stub_gpu.seen().context)); "
        "runpy.run_module('simfast', run_name='__main__')"
    )
    command = [*settings, "--device", "cpu", "--steps", "2", "--workers", workers, "--out", str(tmp_path / "run")]
    done = subprocess.run([sys.executable, "-c", code, "train", *command], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "context: None"
