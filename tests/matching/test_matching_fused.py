"""Matching on the fused ops: equal to the reference, the same in every run, and never waiting for the device."""

import copy
import dataclasses

import pytest
import torch
from torch import Tensor, nn

from simfast.matching import StuffInstanceMatching
from simfast.ops import library
from simfast.testing import DEVICES, HARD_MAPS, Calls, assert_same, feature_maps, needs_gpu, noise_labels, smooth_labels

STUFF, THINGS = [3, 8], [0, 1, 5, 13]
CLASSES, WIDTH, ROWS, INSTANCES = 14, 16, 3, 2

Batch = tuple[Tensor, Tensor, Tensor, Tensor]  # source features and labels, target features and labels


def make_matching(ops: str = "fused", **options) -> StuffInstanceMatching:
    return StuffInstanceMatching(WIDTH, STUFF, THINGS, ROWS, INSTANCES, ops=ops, **options)


def make_head(device: str = "cpu") -> nn.Linear:
    """Assigns a vector to the class whose own channel is the largest: mostly right, on small regions often wrong."""
    head = nn.Linear(WIDTH, CLASSES, bias=False)
    nn.init.eye_(head.weight)
    return head.to(device)


def make_batches(number: int, images: int) -> list[Batch]:
    """Blobs, and noise every third time; the target is smaller than the source, as Cityscapes is than GTA5."""
    batches = []
    for seed in range(number):
        batch = []
        for domain, size in enumerate(((11, 14), (9, 13))):
            if seed % 3 == 2:
                labels = noise_labels(images, *size, CLASSES, ignore=0.1, seed=seed)
            else:
                labels = smooth_labels(images, *size, CLASSES, scale=4, ignore=0.1, seed=seed)
            features = feature_maps(images, WIDTH, *size, seed=2 * seed + domain)
            own = labels[:, None] == torch.arange(WIDTH)[:, None, None]
            batch += [features + 0.7 * own, labels]
        batches.append(tuple(batch))
    return batches


def step(matching: StuffInstanceMatching, head: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
    """One step of a trainer: both losses, [2], and the gradient of their sum."""
    source, source_labels, target, target_labels = batch
    matching.remember(source, source_labels, head)
    target = target.detach().requires_grad_()
    losses = torch.stack(matching(target, target_labels, head))
    (gradient,) = torch.autograd.grad(losses.sum(), target)
    return losses.detach(), gradient


def on(device: str, batch: Batch) -> Batch:
    return tuple(x.to(device) for x in batch)


def assert_close(got: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(got.cpu(), expected.cpu(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("fill_rule", ["any", "full"])
@pytest.mark.parametrize("gate", ["none", "released"])
@pytest.mark.parametrize("images", [1, 3])
def test_thirty_steps_over_wrapping_rings_equal_the_reference_and_a_second_run(images, gate, fill_rule, device):
    batches = make_batches(30, images)
    options = {"gate": gate, "fill_rule": fill_rule}
    reference, first, second = make_matching("reference", **options), make_matching(**options), make_matching(**options)
    first, second, head = first.to(device), second.to(device), make_head(device)
    total = 0.0
    for batch in batches:
        expected_losses, expected_gradient = step(reference, make_head(), batch)
        losses, gradient = step(first, head, on(device, batch))
        assert_close(losses, expected_losses)
        assert_close(gradient, expected_gradient)
        for got, again in zip((losses, gradient), step(second, head, on(device, batch)), strict=True):
            assert_same(again, got, "second run")
        total += float(losses.sum())
    assert total > 0
    assert_same(first.bank.written, reference.bank.written, "written")
    assert (first.bank.written > first.bank.sizes).all()  # every ring has wrapped
    assert_close(first.bank.storage, reference.bank.storage)
    assert_same(second.bank.storage, first.bank.storage.cpu(), "storage of the second run")


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", HARD_MAPS)
def test_hard_maps_equal_the_reference(name, device):
    labels = torch.from_numpy(HARD_MAPS[name])[None]
    height, width = labels.shape[1:]
    fused, reference = make_matching().to(device), make_matching("reference")
    for seed in range(2):  # the second time, the rings of the map's classes are not empty
        source = feature_maps(1, WIDTH, height, width, seed=2 * seed)
        target = feature_maps(1, WIDTH, height, width, seed=2 * seed + 1)
        batch = (source, labels, target, labels.flip(2))
        for got, expected in zip(
            step(fused, make_head(device), on(device, batch)), step(reference, make_head(), batch), strict=True
        ):
            assert_close(got, expected)


@pytest.mark.parametrize("device", DEVICES)
def test_bfloat16_channels_last_features_equal_the_reference(device):
    fused, reference = make_matching().to(device), make_matching("reference")
    for source, source_labels, target, target_labels in make_batches(4, 2):
        features = [x.bfloat16().contiguous(memory_format=torch.channels_last) for x in (source, target)]
        batch = (features[0], source_labels, features[1], target_labels)
        losses, gradient = step(fused, make_head(device), on(device, batch))
        expected_losses, expected_gradient = step(reference, make_head(), batch)
        assert_close(losses, expected_losses)
        assert gradient.is_contiguous(memory_format=torch.channels_last)
        torch.testing.assert_close(gradient.cpu(), expected_gradient, rtol=2**-7, atol=1e-6)


def test_a_bfloat16_bank_moves_a_distance_by_at_most_a_256th_of_the_rows_norm():
    coarse, fine = make_matching(bank_dtype=torch.bfloat16), make_matching()
    for batch in make_batches(10, 1):
        losses, _ = step(coarse, make_head(), batch)
        expected, _ = step(fine, make_head(), batch)
        largest = fine.bank.storage.abs().sum(1).max() / WIDTH
        bound = torch.tensor([len(STUFF), len(THINGS)]) * largest / 256
        assert ((losses - expected).abs() <= bound + 1e-6).all()
    assert coarse.bank.storage.dtype == torch.bfloat16
    assert not torch.equal(losses, expected)


@pytest.mark.parametrize("gate", ["none", "released"])
def test_nothing_is_read_back_to_the_host(gate):
    calls, batches = {}, make_batches(2, 1)
    for ops in ("fused", "reference"):
        matching, head = make_matching(ops, gate=gate), make_head()
        calls[ops] = Calls()
        with calls[ops]:
            for batch in batches:
                step(matching, head, batch)
    assert calls["fused"].host_reads == []
    assert len(calls["reference"].host_reads) > 10  # what is looked for would be seen
    names = calls["fused"].names
    native = {name: names.count(name) for name in set(names) if name.startswith("simfast.")}
    assert native == {
        "simfast.find_regions.default": 4,
        "simfast.segment_mean.default": 4,
        "simfast.segment_mean_backward.default": 2,
        "simfast.select_rings.default": 4,
        "simfast.ring_write.default": 2,
        "simfast.matching_losses.default": 2,
        "simfast.matching_losses_backward.default": 2,
        "simfast.nearest_l1.default": 2,  # one search for stuff and things
        "simfast.nearest_l1_backward.default": 2,
    }


@pytest.mark.parametrize("gate", ["none", "released"])
def test_a_step_runs_on_the_meta_device_where_a_read_or_a_shape_that_depends_on_values_would_raise(gate):
    matching, batch = make_matching(gate=gate).to("meta"), on("meta", make_batches(1, 2)[0])
    losses, gradient = step(matching, make_head("meta"), batch)
    assert losses.shape == (2,)
    assert gradient.shape == batch[2].shape


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("gate", ["none", "released"])
@pytest.mark.parametrize(("stuff", "things"), [(STUFF, []), ([], THINGS), ([], [])], ids=["stuff", "things", "nothing"])
def test_either_kind_of_class_may_be_left_out(stuff, things, gate, device):
    fused, reference = (
        StuffInstanceMatching(WIDTH, stuff, things, ROWS, INSTANCES, gate, ops=ops) for ops in ("fused", "reference")
    )
    fused = fused.to(device)
    for batch in make_batches(3, 2):
        losses, gradient = step(fused, make_head(device), on(device, batch))
        for got, expected in zip((losses, gradient), step(reference, make_head(), batch), strict=True):
            assert_close(got, expected)
    assert [bool(loss) for loss in losses] == [bool(stuff), bool(things)]  # of a kind without classes: 0
    again = StuffInstanceMatching(WIDTH, stuff, things, ROWS, INSTANCES, gate, ops="fused")
    again.load_state_dict(fused.state_dict())
    assert_same(
        step(again.to(device), make_head(device), on(device, batch))[0],
        step(fused, make_head(device), on(device, batch))[0],
    )


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("num_stuff", "num_things"), [(255, 0), (0, 255), (90, 165)])
def test_255_classes_equal_the_reference(num_stuff, num_things, device):
    classes = list(range(255))
    fused, reference = (
        StuffInstanceMatching(WIDTH, classes[:num_stuff], classes[num_stuff:], ROWS, INSTANCES, ops=ops)
        for ops in ("fused", "reference")
    )
    fused = fused.to(device)
    for seed in range(3):
        batch = (
            feature_maps(1, WIDTH, 30, 40, seed=seed),
            smooth_labels(1, 30, 40, 255, scale=3, ignore=0.1, seed=seed),
            feature_maps(1, WIDTH, 20, 30, seed=seed + 9),
            noise_labels(1, 20, 30, 255, seed=seed),
        )
        losses, gradient = step(fused, make_head(device), on(device, batch))
        for got, expected in zip((losses, gradient), step(reference, make_head(), batch), strict=True):
            assert_close(got, expected)
    assert [bool(loss) for loss in losses] == [bool(num_stuff), bool(num_things)]
    assert_same(fused.bank.written, reference.bank.written, "written")
    assert (reference.bank.written > 0).sum() > 200


@pytest.mark.parametrize("gate", ["none", "released"])
def test_compiled_whole_over_two_sizes_it_equals_eager(gate):
    eager, head = make_matching(gate=gate), make_head()
    compiled = copy.deepcopy(eager)
    compiled.remember = torch.compile(compiled.remember, fullgraph=True, backend="aot_eager")
    compiled.forward = torch.compile(compiled.forward, fullgraph=True, backend="aot_eager")
    for source, source_labels, target, target_labels in make_batches(4, 1):
        for rows in (9, 7):
            batch = (source[:, :, :rows], source_labels[:, :rows], target[:, :, :rows], target_labels[:, :rows])
            for got, expected in zip(step(compiled, head, batch), step(eager, head, batch), strict=True):
                assert_close(got, expected)
    assert_same(compiled.bank.written, eager.bank.written, "written")


def test_auto_takes_what_is_built_and_fused_is_never_replaced_in_silence(monkeypatch):
    assert make_matching("auto").ops == "fused"
    monkeypatch.setattr(library, "error", "simfast.ops: the native library is missing; build it")
    assert make_matching("auto").ops == "reference"
    with pytest.raises(ValueError, match="native library is missing; build it"):
        make_matching("fused")


@needs_gpu
@pytest.mark.parametrize("gate", ["none", "released"])
def test_no_call_waits_for_the_gpu(gate):
    matching, head = make_matching(gate=gate).to("cuda"), make_head("cuda")
    batches = [on("cuda", batch) for batch in make_batches(3, 2)]
    step(matching, head, batches[0])  # compiles the Triton kernels
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for batch in batches:
            step(matching, head, batch)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert matching.bank.written.sum() > 0


@needs_gpu
@pytest.mark.parametrize("gate", ["none", "released"])
def test_a_captured_step_replayed_on_new_data_equals_eager(gate):
    eager, head = make_matching(gate=gate).to("cuda"), make_head("cuda")
    captured = copy.deepcopy(eager)
    batches = [on("cuda", batch) for batch in make_batches(12, 2)]
    static = tuple(x.clone() for x in batches[0])
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(2):
            step(captured, head, static)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = step(captured, head, static)
    captured.load_state_dict(eager.state_dict())  # copies in place: forgets what the runs before the capture stored
    for batch in batches:
        for place, x in zip(static, batch, strict=True):
            place.copy_(x)
        graph.replay()
        for got, expected in zip(results, step(eager, head, batch), strict=True):
            assert_same(got, expected.cpu(), "replayed step")
    assert_same(captured.bank.storage, eager.bank.storage.cpu(), "storage")
    assert_same(captured.bank.written, eager.bank.written.cpu(), "written")


@pytest.mark.parametrize(
    ("settings", "dtype"),
    [
        ({"precision": "fp32"}, torch.float32),
        ({"precision": "bf16"}, torch.bfloat16),
        ({"precision": "fp16"}, torch.bfloat16),
        ({"precision": "bf16", "bank_dtype": "float32"}, torch.float32),
        ({"precision": "fp32", "bank_dtype": "bfloat16"}, torch.bfloat16),
        ({"precision": "bf16", "recipe": "released"}, torch.float32),
    ],
    ids=str,
)
def test_a_run_remembers_in_16_bits_what_it_computes_in_16_bits(settings, dtype):
    from simfast.config import Config
    from simfast.config.presets import RECIPES
    from simfast.training.build import build_matching  # here: the cases for a GPU need no package for settings

    settings = RECIPES.get(settings.get("recipe"), {}) | {k: v for k, v in settings.items() if k != "recipe"}
    matching = build_matching(dataclasses.replace(Config(), **settings), 8, torch.device("cpu"))
    assert matching.bank.storage.dtype == dtype
