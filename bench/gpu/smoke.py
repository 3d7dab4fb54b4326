"""Is everything right, at a glance: the library and the machine, then every op against the reference.

Exact results are compared with the library's own on the CPU, which the tests hold against the reference; means and
distances with the reference in float64. Fresh outputs are poisoned: what no kernel wrote is NaN.
"""

import importlib.util
import json
import os
import time
from functools import partial

import torch
from torch import Tensor

from bench import timing
from bench.gpu.part import Part, arguments
from bench.gpu.variants import BUNDLE
from bench.gpu.works import RING, ROWS, SLOTS, assert_as_near
from bench.run import machine
from bench.step_measures import matrix_rate
from simfast import ops, reference
from simfast.matching import StuffInstanceMatching
from simfast.ops import library
from simfast.ops.nearest import nearest_l1_ragged
from simfast.testing import STUFF, THINGS, assert_means_close, assert_same, feature_maps, noise_labels, smooth_labels

SIZES = ((1, 1), (91, 161), (65, 129), (1024, 2048))
LAYOUTS = {"contiguous": torch.contiguous_format, "channels-last": torch.channels_last}
BUNDLED = BUNDLE / "commit.json"
PACKAGES = ("triton", "cupy", "hypothesis", "skimage", "scipy", "cc3d", "pydantic", "tyro", "cv2", "matplotlib")


def facts(part: Part) -> None:
    has = [name for name in PACKAGES if importlib.util.find_spec(name)]
    found = machine() | {"load": os.getloadavg()[0]}
    if found["commit"] == "unknown" and BUNDLED.exists():  # where .git did not travel
        found |= {key: value for key, value in json.loads(BUNDLED.read_text()).items() if key in ("commit", "clean")}
    part.row("machine", machine=found, has=has, has_not=sorted(set(PACKAGES) - set(has)))
    assert library.available(), library.error
    if part.device == "cuda":
        library.require("segment_mean", torch.device("cuda"))
        properties = torch.cuda.get_device_properties(0)
        part.row(
            "device",
            capability=torch.cuda.get_device_capability(),
            processors=properties.multi_processor_count,
            cache_mib=properties.L2_cache_size >> 20,
            memory_mib=properties.total_memory >> 20,
            cudnn=torch.backends.cudnn.version(),
            copy_gb_per_s=timing.copy_rate("cuda") / 1e9,
            matrix_tflops=matrix_rate("cuda") / 1e12,
        )


def maps(part: Part, height: int, width: int) -> None:
    """Components and regions of a smooth and a noisy map, to the bit."""
    for make in (partial(smooth_labels, scale=max(4, height // 8)), noise_labels):
        labels = make(2 if height < 1000 else 1, height, width, ignore=0.1, seed=int(time.time()))
        for dtype in (torch.uint8, torch.int64):
            there = labels.to(dtype).to(part.device)
            for found, expected in (
                (ops.connected_components(there), ops.connected_components(labels)),
                (ops.find_regions(there, STUFF, THINGS), ops.find_regions(labels, STUFF, THINGS)),
            ):
                for one, other in zip(found, expected, strict=True):
                    assert_same(one.cpu(), other)


def means(part: Part, height: int, width: int, dtype: torch.dtype) -> None:
    """segment_mean and its gradient in both layouts, a few roundings from float64."""
    channels = 2048 if 1 < height < 1000 else 24
    labels = smooth_labels(1, height, width, scale=max(4, height // 8), ignore=0.1)
    segments, areas = ops.find_regions(labels, STUFF, THINGS)
    features = feature_maps(1, channels, height, width, dtype, seed=int(time.time()))
    count = areas.shape[1]
    exact = reference.segment_mean(features.double(), segments, count)
    grad = torch.randn(exact.shape, generator=torch.Generator().manual_seed(1))
    quotients = torch.cat([grad[0] / areas[0].clamp(min=1)[:, None], grad.new_zeros(1, channels)]).to(dtype)
    index = torch.where(segments >= 0, segments, count).flatten().long()
    expected = quotients[index].t().view(features.shape)
    for layout, memory_format in LAYOUTS.items():
        there = features.to(part.device).contiguous(memory_format=memory_format).requires_grad_()
        found = ops.segment_mean(there, segments.to(part.device), count)
        assert_means_close(found.detach(), exact)
        (gradient,) = torch.autograd.grad(found, there, grad.to(part.device))
        assert_same(gradient.cpu(), expected, f"gradient, {layout}")


def nearest(part: Part, number: int, rows: int, width: int, dtype: torch.dtype) -> None:
    """nearest_l1 and its gradient, with classes absent, empty and full."""
    g = torch.Generator().manual_seed(int(time.time()))
    queries, bank = torch.randn(number, width, generator=g), torch.randn(19, rows, width, generator=g).to(dtype)
    classes = torch.randint(-1, 19, (number,), generator=g)
    filled = torch.randint(0, rows + 1, (19,), generator=g)
    filled[0], filled[1] = 0, rows
    expected, which = reference.nearest_l1(queries, classes, bank, filled)
    there = [x.to(part.device) for x in (queries.clone(), classes, bank, filled)]
    there[0].requires_grad_()
    distances, found = ops.nearest_l1(*there)
    torch.testing.assert_close(distances.detach().cpu(), expected, rtol=1e-5, atol=0)
    assert bool((found.cpu() < rows).all()), "a row beyond the class's last"
    assert_as_near(found.cpu(), which, lambda row: (queries - bank.float()[classes, row]).abs().sum(1))
    starts = torch.arange(19, device=part.device) * rows
    again, _ = nearest_l1_ragged(there[0], there[1], there[2].flatten(0, 1), starts, there[3], rows)
    assert torch.equal(again, distances), "the ragged call differs"
    signs = torch.where(which[:, None] >= 0, (queries - bank.float()[classes, found.cpu()]).sign(), 0)
    for given in (distances, again):
        (gradient,) = torch.autograd.grad(torch.where(found >= 0, given, 0).sum(), there[0])
        assert torch.equal(gradient.cpu(), signs), "gradient"


def writes(part: Part, sizes: Tensor, number: int, width: int, dtype: torch.dtype) -> None:
    """ring_write to the bit, three times: rings wrap, and some get more vectors than they have rows."""
    g = torch.Generator().manual_seed(int(time.time()))
    storage, vectors = torch.randn(int(sizes.sum()) + 1, width, generator=g), torch.randn(number, width, generator=g)
    classes = torch.randint(-1, len(sizes), (number,), generator=g)
    written = torch.randint(0, 1000, (len(sizes),), generator=g)
    here = storage.to(dtype), written, vectors, classes, sizes.cumsum(0) - sizes, sizes
    there = [x.to(part.device, copy=True) for x in here]
    for _ in range(3):
        ops.ring_write(*there)
        reference.ring_write(*here)
    assert_same(there[0].cpu(), here[0], "storage")
    assert_same(there[1].cpu(), here[1], "written")


def slots(part: Part, images: int, dtype: torch.dtype) -> None:
    """select_rings without a head, and with one that knows all slots or some; ties everywhere."""
    g = torch.Generator().manual_seed(int(time.time()))
    areas = torch.randint(0, 3, (images, SLOTS), generator=g, dtype=torch.int32)
    assert_same(
        ops.select_rings(areas.to(part.device), RING.to(part.device)).cpu(), reference.select_rings(areas, RING)
    )
    for gated in (SLOTS, len(STUFF)):
        logits = torch.randint(0, 2, (images * gated, 19), generator=g).to(dtype)
        arguments = areas, RING, logits, torch.tensor(STUFF + THINGS)[RING]
        found = ops.select_rings(*(x.to(part.device) for x in arguments))
        assert_same(found.cpu(), reference.select_rings(*arguments), f"{gated} slots gated")


def losses(part: Part, images: int) -> None:
    """matching_losses, and their gradient to the bit."""
    g = torch.Generator().manual_seed(int(time.time()))
    rows, rings = (torch.randint(-1, 5, (images, SLOTS), generator=g) for _ in range(2))
    distances = torch.where(rows >= 0, torch.rand(images, SLOTS, generator=g), torch.inf)
    sizes, results = (len(STUFF), (SLOTS - len(STUFF)) // len(THINGS), 2048), []
    for module, device in ((ops, part.device), (reference, "cpu")):
        given = distances.to(device, copy=True).requires_grad_()
        stuff, instances = module.matching_losses(given, rows.to(device), rings.to(device), *sizes)
        (gradient,) = torch.autograd.grad(0.01 * stuff + 0.3 * instances, given)
        results.append((torch.stack([stuff, instances]).detach().cpu(), gradient.cpu()))
    torch.testing.assert_close(results[0][0], results[1][0], rtol=1e-5, atol=0)
    assert_same(results[0][1], results[1][1], "gradient")


def matching(part: Part, layout: str, dtype: torch.dtype) -> None:
    """Both losses and their gradient, fused against the reference ops, after two source images."""
    results = []
    for which, device in (("fused", part.device), ("reference", "cpu")):
        module = StuffInstanceMatching(256, STUFF, THINGS, 5, 10, ops=which).to(device)
        for seed in range(3):
            labels = smooth_labels(1, 65, 129, scale=16, seed=seed).to(device)
            features = feature_maps(1, 256, 65, 129, dtype, seed=seed).to(device)
            features = features.contiguous(memory_format=LAYOUTS[layout])
            if seed < 2:
                module.remember(features, labels)
        losses = module(features.requires_grad_(), labels)
        sum(losses).backward()
        results.append([x.detach().float().cpu() for x in (*losses, features.grad)])
    for one, other in zip(*results, strict=True):
        assert other.abs().sum() > 0
        close = torch.isclose(one, other, rtol=0.02 if dtype != torch.float32 else 1e-3, atol=1e-7)
        assert close.float().mean() > 0.999, f"{int((~close).sum())} of {close.numel()} differ"


def main() -> None:
    part = Part("smoke", arguments(__doc__).parse_args())
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True

    def case(name: str, check, *values) -> None:
        began = time.monotonic()
        wrong = timing.judge(lambda _: check(part, *values), None)
        part.row(name, passed=not wrong, seconds=time.monotonic() - began, **({"wrong": wrong} if wrong else {}))

    sizes = SIZES if part.device == "cuda" else SIZES[:1]
    cases = {"facts": partial(facts, part)}
    searches = ((118, 1, 2048), (118, 500, 2048), (1, 1, 1), (33, 3, 37))
    for number, rows, width in searches if part.device == "cuda" else searches[2:]:
        for dtype in (torch.float32, torch.bfloat16):
            name = f"nearest_l1, {number} queries, {rows} rows a class, width {width}, bank {dtype}"
            name = name.replace("torch.", "")
            cases[name] = partial(case, name, nearest, number, rows, width, dtype)
    few = torch.tensor([3, 1, 30])
    for rings, number, width in ((ROWS, SLOTS, 2048), (few, 40, 37), (few, 1500, 2048), (few, 1, 1)):
        for dtype in (torch.float32, torch.bfloat16, torch.float16):
            name = f"ring_write, {number} vectors of width {width}, {len(rings)} rings, {dtype}".replace("torch.", "")
            cases[name] = partial(case, name, writes, rings, number, width, dtype)
    for images in (1, 3):
        for dtype in (torch.float32, torch.bfloat16):
            name = f"select_rings, {images} images, {dtype}".replace("torch.", "")
            cases[name] = partial(case, name, slots, images, dtype)
        cases[f"matching_losses, {images} images"] = partial(case, f"matching_losses, {images} images", losses, images)
    for size in sizes:
        name = f"components and regions, {size[0]}x{size[1]}"
        cases[name] = partial(case, name, maps, *size)
        for dtype in (torch.bfloat16, torch.float16, torch.float32):
            name = f"segment_mean, {size[0]}x{size[1]}, {dtype}".replace("torch.", "")
            cases[name] = partial(case, name, means, *size, dtype)
    for layout in LAYOUTS:
        for dtype in (torch.float32, torch.bfloat16):
            name = f"matching, {layout}, {dtype}".replace("torch.", "")
            cases[name] = partial(case, name, matching, layout, dtype)
    part.each(cases)
    part.end()


if __name__ == "__main__":
    main()
