"""The loader: a batch is a function of its number and the seed alone, whoever reads it and wherever a run began."""

import dataclasses
import multiprocessing
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import simfast
from simfast.config.classes import CITYSCAPES
from simfast.data import open_dataset
from simfast.data.classes import coding_of
from simfast.data.folder import open_pairs
from simfast.data.loader import DomainLoader, evaluation_loader, on_device
from simfast.data.order import Mixture
from simfast.data.prepare import prepare
from simfast.data.processes import spread
from simfast.testing import needs_gpu

CODING = coding_of("folder", CITYSCAPES)
SIZE = (8, 6)


def make_domain(root, count):
    """`count` pictures; a pixel's red is the number of its picture, green and label are its column."""
    for kind in ("images", "labels"):
        (root / kind).mkdir(parents=True)
    column = np.broadcast_to(np.arange(8, dtype=np.uint8), (6, 8))
    for i in range(count):
        Image.fromarray(np.stack([column * 0 + i, column, column], -1)).save(root / f"images/{i:02d}.png")
        Image.fromarray(column).save(root / f"labels/{i:02d}.png")
    return open_pairs(root / "images", root / "labels", SIZE, CODING)


@pytest.fixture(scope="module")
def domains(tmp_path_factory):
    root = tmp_path_factory.mktemp("domains")
    return make_domain(root / "source", 7), make_domain(root / "target", 5)


@pytest.fixture(scope="module")
def cached(domains, tmp_path_factory):
    """The same domains, prepared."""
    cache, parts = tmp_path_factory.mktemp("cache"), []
    for domain in domains:
        arguments = ("folder", domain.images[0].parents[1], "train", SIZE)
        prepare(open_dataset(*arguments), cache, 0, shard_items=3)
        parts.append(open_dataset(*arguments, cache=cache))
    return parts


def take(loader, count):
    return [batch for _, batch in zip(range(count), loader)]  # noqa: B905  the loader is endless


def identities(images):
    """Which pictures a batch holds, and which of them are mirrored."""
    return [(int(image[0, 0, 0]), bool(image[1, 0, 0])) for image in images]


def same(first, second):
    return all(torch.equal(x, y) for a, b in zip(first, second, strict=True) for x, y in zip(a, b, strict=True))


def test_a_batch_holds_bytes_of_both_domains(domains):
    loader = DomainLoader(*domains, 2, seed=0, workers=0, flip=False)
    batch = next(iter(loader))
    assert batch.source_images.shape == batch.target_images.shape == (2, 3, 6, 8)
    assert batch.source_labels.shape == (2, 6, 8)
    assert {x.dtype for x in batch} == {torch.uint8}
    assert batch.target_labels.shape == (2, 6, 8)
    assert next(iter(DomainLoader(domains[0], None, 2, 0, 0, False)))[2:] == (None, None)
    unlabelled = dataclasses.replace(domains[1], labels=None)
    assert next(iter(DomainLoader(domains[0], unlabelled, 2, 0, 0, False))).target_labels is None


def test_each_image_comes_once_an_epoch_in_an_order_of_its_own(domains):
    batches = take(DomainLoader(*domains, 3, seed=1, workers=0, flip=False), 35)  # 105 images: 15 and 21 epochs
    for part, count in (("source_images", 7), ("target_images", 5)):
        order = [i for batch in batches for i, _ in identities(getattr(batch, part))]
        epochs = [tuple(order[i : i + count]) for i in range(0, len(order), count)]
        assert all(sorted(epoch) == list(range(count)) for epoch in epochs)
        assert len(set(epochs)) > len(epochs) / 2


def test_the_seed_decides_whatever_the_global_random_state(domains):
    torch.manual_seed(5)
    first = take(DomainLoader(*domains, 2, seed=3, workers=0, flip=True), 6)
    torch.manual_seed(6)
    assert same(first, take(DomainLoader(*domains, 2, seed=3, workers=0, flip=True), 6))
    assert not same(first, take(DomainLoader(*domains, 2, seed=4, workers=0, flip=True), 6))


@pytest.mark.parametrize("kind", ["files", "cache"])
@pytest.mark.parametrize("workers", [0, 2])
def test_a_resumed_loader_goes_on_where_the_straight_one_is(workers, kind, domains, request):
    domains = domains if kind == "files" else request.getfixturevalue("cached")
    straight = take(DomainLoader(*domains, 2, seed=7, workers=0, flip=True), 9)
    loader = DomainLoader(*domains, 2, seed=7, workers=workers, flip=True)
    start = take(loader, 4)
    assert loader.position == 4  # handed out; the workers are further on
    resumed = DomainLoader(*domains, 2, seed=7, workers=workers, flip=True, position=loader.position)
    assert same(straight, start + take(resumed, 5))
    assert same(straight[4:], take(loader, 5))


@pytest.mark.filterwarnings("error")
def test_more_workers_than_cores_are_no_warning(domains, monkeypatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0})
    assert len(take(DomainLoader(*domains, 2, seed=0, workers=2, flip=False), 2)) == 2


def test_too_many_open_files_are_told_with_the_setting(domains):
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    used = {int(path.name) for path in Path("/proc/self/fd").iterdir()}
    low = [number for number in range(len(used) + 9) if number not in used][4]  # four are left
    resource.setrlimit(resource.RLIMIT_NOFILE, (low, limit[1]))
    try:
        with pytest.raises(OSError, match=rf"^--workers 2 need more open files .* \({low}\); try fewer, or a higher"):
            take(DomainLoader(*domains, 2, seed=0, workers=2, flip=False), 9)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limit)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_cache_gives_the_same_batches_whatever_is_done_to_them(workers, domains, cached):
    plain = take(DomainLoader(*domains, 2, seed=5, workers=0, flip=True), 8)
    loader = DomainLoader(*cached, 2, seed=5, workers=workers, flip=True)
    for _ in range(2):
        for batch, expected in zip(loader, plain, strict=False):
            assert same([batch], [expected])
            for x in batch:
                x.zero_()
        loader.position = 0


def test_a_mixture_is_read_by_threads_only_where_all_of_it_is_from_caches(domains, cached):
    for second, processes in ((cached[1], 0), (domains[1], 2)):
        before = _children()
        batches = iter(DomainLoader(Mixture([cached[0], second], [1, 2]), None, 2, 0, 2, False))
        next(batches)
        assert len(_children() - before) == processes
        batches.close()


@pytest.mark.parametrize("batch_size", [1, 3])
def test_the_shares_of_all_ranks_are_the_batches_of_one(batch_size, domains):
    one = take(DomainLoader(*domains, 2 * batch_size, seed=2, workers=0, flip=True), 9)
    shares = [
        take(DomainLoader(*domains, batch_size, seed=2, workers=0, flip=True, rank=rank, ranks=2), 9)
        for rank in range(2)
    ]
    together = [[torch.cat(parts) for parts in zip(*pair, strict=True)] for pair in zip(*shares, strict=True)]
    assert same(one, together)


@pytest.mark.parametrize("ranks", [1, 2, 3, 7])
def test_ranks_share_the_evaluation_in_order(ranks, domains):
    shares = [list(evaluation_loader(domains[0], 2, 0, rank=rank, ranks=ranks)) for rank in range(ranks)]
    assert [name for share in shares for _, _, names in share for name in names] == domains[0].names
    assert shares[0][0][2][0] == domains[0].names[0]


@needs_gpu
@pytest.mark.parametrize("kind", ["files", "cache"])
@pytest.mark.parametrize("workers", [0, 2])
def test_batches_reach_a_busy_gpu_whole_and_are_left_alone_there(workers, kind, domains, request):
    domains = domains if kind == "files" else request.getfixturevalue("cached")
    expected = take(DomainLoader(*domains, 2, seed=5, workers=0, flip=True), 12)
    loader = DomainLoader(*domains, 2, seed=5, workers=workers, flip=True, device=torch.device("cuda"))
    found = []
    for _, batch in zip(range(12), loader):  # noqa: B905  the loader is endless
        torch.cuda._sleep(20_000_000)  # the host, and with it the copies, run ahead of the work on the batch
        found.append([x.clone() for x in batch])
    assert loader.position == 12
    assert same(expected, [[x.cpu() for x in batch] for batch in found])


@needs_gpu
@pytest.mark.parametrize("kind", ["files", "cache"])
@pytest.mark.parametrize("workers", [0, 2])
def test_evaluation_images_come_pinned(workers, kind, domains, request):
    data = (domains if kind == "files" else request.getfixturevalue("cached"))[0]
    for images, labels, _ in evaluation_loader(data, 2, workers, torch.device("cuda")):
        assert images.is_pinned()
        assert all(label.is_pinned() for label in labels)


@pytest.mark.parametrize("workers", [0, 2])
def test_nothing_is_pinned_for_a_cpu_on_a_machine_that_has_a_gpu(workers, domains, monkeypatch):
    pinned = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda x: pinned.append(x) or x)
    assert len(list(evaluation_loader(domains[0], 2, workers))) == 4
    assert not pinned


def test_on_a_cpu_batches_pass_as_they_are(domains):
    batches = take(DomainLoader(*domains, 2, seed=5, workers=0, flip=True), 2)
    passed = list(on_device(batches, torch.device("cpu")))
    assert all(x is y for a, b in zip(batches, passed, strict=True) for x, y in zip(a, b, strict=True))


def test_flip_mirrors_half_of_the_images_and_their_labels_with_them(domains):
    batches = take(DomainLoader(*domains, 2, seed=0, workers=0, flip=True), 100)
    images = torch.cat([batch.source_images for batch in batches])
    assert torch.equal(images[:, 1], torch.cat([batch.source_labels for batch in batches]))
    assert all(torch.equal(batch.target_images[:, 1], batch.target_labels) for batch in batches)
    mirrored = {part: [m for b in batches for _, m in identities(getattr(b, part))] for part in batches[0]._fields[::2]}
    assert all(80 <= sum(coins) <= 120 for coins in mirrored.values())
    assert mirrored["source_images"] != mirrored["target_images"]
    plain = take(DomainLoader(*domains, 2, seed=0, workers=0, flip=False), 100)
    assert not any(m for b in plain for _, m in identities(b.source_images))
    assert [i for b in plain for i, _ in identities(b.source_images)] == images[:, 0, 0, 0].tolist()


@pytest.mark.parametrize("workers", [0, 2])
def test_a_bad_file_is_named_by_whichever_process_meets_it(workers, tmp_path):
    data = make_domain(tmp_path, 4)
    (tmp_path / "images/02.png").write_bytes(b"not a picture")
    with pytest.raises(ValueError, match=r"^\S*images/02\.png: must be a readable picture"):
        take(DomainLoader(data, None, 1, 0, workers, False), 4)
    with pytest.raises(ValueError, match=r"^\S*images/02\.png: must be a readable picture"):
        list(evaluation_loader(data, 3, workers))


@pytest.fixture(params=[signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def early(request, monkeypatch):
    """A signal that comes to a worker before it has begun."""
    begin = multiprocessing.process.BaseProcess._bootstrap

    def interrupted(self, *given, **more):
        os.kill(os.getpid(), request.param)
        return begin(self, *given, **more)

    normal = signal.default_int_handler if request.param == signal.SIGINT else signal.SIG_DFL
    before = signal.signal(request.param, normal)
    monkeypatch.setattr(multiprocessing.process.BaseProcess, "_bootstrap", interrupted)
    yield
    signal.signal(request.param, before)


def test_a_worker_that_has_just_been_forked_leaves_signals_to_the_trainer_too(early, domains, capfd):
    batches = iter(DomainLoader(*domains, batch_size=2, seed=0, workers=2, flip=True))
    assert [next(batches).source_images.shape[0] for _ in range(4)] == [2] * 4
    batches.close()
    assert capfd.readouterr().err == ""


def _doubled(_shared, job, _tick):
    return 2 * job


@pytest.mark.parametrize("early", [signal.SIGINT], indirect=True)
def test_a_process_that_has_just_been_forked_to_share_work_leaves_ctrl_c_to_the_first_one(early, capfd):
    assert sorted(spread(_doubled, None, range(6), 2, 6, "double")) == [0, 2, 4, 6, 8, 10]
    assert capfd.readouterr().err == ""


def test_workers_leave_ctrl_c_and_sigterm_to_the_trainer(domains):
    batches = iter(DomainLoader(*domains, 1, seed=0, workers=2, flip=False))
    _ = next(batches), next(batches)  # one of each worker, so both have begun
    children = _children()
    assert len(children) == 2
    for child in children:
        os.kill(child, signal.SIGINT)
        os.kill(child, signal.SIGTERM)
    for _ in range(20):
        next(batches)
    batches.close()
    assert not _children() & children


UNCLOSED = """
from simfast.data import open_dataset
from simfast.data.loader import DomainLoader
batches = iter(DomainLoader(open_dataset("streets", None, "source", (8, 6)), None, 1, 0, 2, False))
next(batches)
next(batches)
"""


def test_a_program_that_leaves_a_loader_open_ends():
    environment = os.environ | {"PYTHONPATH": str(Path(simfast.__file__).parents[1])}
    subprocess.run([sys.executable, "-c", UNCLOSED], env=environment, check=True, timeout=60)


def test_a_worker_whose_program_is_killed_as_soon_as_it_begins_ends(tmp_path):
    (tmp_path / "slow.py").write_text("import os, time\nos.register_at_fork(after_in_child=lambda: time.sleep(2))")
    environment = os.environ | {"PYTHONPATH": f"{Path(simfast.__file__).parents[1]}{os.pathsep}{tmp_path}"}
    program = subprocess.Popen([sys.executable, "-c", f"import slow\n{UNCLOSED}"], env=environment)
    children = Path(f"/proc/{program.pid}/task/{program.pid}/children")
    while not (started := children.read_text().split()):
        assert program.poll() is None
    program.kill()
    program.wait()
    deadline = time.monotonic() + 60
    while any(_is_alive(pid) for pid in started):
        assert time.monotonic() < deadline


def _is_alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_too_little_shared_memory_is_told_with_the_setting(domains, monkeypatch):
    def full(_):
        raise RuntimeError("unable to allocate shared memory(shm) for file </torch_1>: No space left on device (28)")

    monkeypatch.setattr(torch.Tensor, "share_memory_", full)
    with pytest.raises(OSError, match=r"^shared memory \(/dev/shm\) is full .*fewer --workers, or 0, .* --shm-size$"):
        next(iter(DomainLoader(*domains, 2, seed=0, workers=2, flip=False)))


def test_a_worker_that_does_not_answer_is_ended_with_the_others(domains):
    before = _children()
    batches = iter(DomainLoader(*domains, 1, seed=0, workers=2, flip=False))
    _ = next(batches), next(batches)
    os.kill(min(_children() - before), signal.SIGSTOP)  # as if the machine had no time for it
    batches.close()
    assert not _children() - before


def _children():
    return {process.pid for process in multiprocessing.active_children()}


@pytest.mark.parametrize("workers", [0, 2])
def test_evaluation_reads_each_image_once_in_order_with_labels_of_their_own_size(workers, tmp_path):
    make_domain(tmp_path, 5)
    Image.new("RGB", (20, 10), (9, 0, 0)).save(tmp_path / "images/05.png")
    Image.new("L", (20, 10), 3).save(tmp_path / "labels/05.png")
    data = open_pairs(tmp_path / "images", tmp_path / "labels", SIZE, CODING, resize_labels=False)
    loader = evaluation_loader(data, 4, workers)
    assert len(loader) == 2
    batches = list(loader)
    assert [len(images) for images, _, _ in batches] == [4, 2]
    assert [int(image[0, 0, 0]) for images, _, _ in batches for image in images] == [0, 1, 2, 3, 4, 9]
    assert [tuple(label.shape) for _, labels, _ in batches for label in labels] == [(6, 8)] * 5 + [(10, 20)]
    assert [name for _, _, names in batches for name in names] == data.names


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size: must be at least 1, got 0"),
        ({"position": -1}, "position: must not be negative"),
        ({"rank": 2, "ranks": 2}, r"rank: must be in \[0, 2\), got 2"),
    ],
)
def test_bad_arguments_are_named(options, message, domains):
    arguments = {"batch_size": 1, "seed": 0, "workers": 0, "flip": False} | options
    with pytest.raises(ValueError, match=message):
        DomainLoader(*domains, **arguments)


def test_fewer_bad_files_than_there_were_before_a_resume_are_not_any_number(tmp_path):
    source = make_domain(tmp_path / "source", 4)
    (tmp_path / "source/images/02.png").write_bytes(b"")
    loader = DomainLoader(source, None, 1, 0, 0, False, skip=1)
    loader.skipped |= {"source: 00": "bad", "source: 01": "bad"}
    with pytest.raises(ValueError, match=r"02\.png.*skip_bad_files: more than 1 bad files"):
        take(loader, 4)
