"""The arithmetic of a step: of what torch itself can tell it says the same, and the page has what it says."""

import dataclasses
import itertools
import json
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from bench import memory_table, roofline
from bench.roofline_step import Step
from simfast.config import Config
from simfast.matching import StuffInstanceMatching
from simfast.models import Discriminator, deeplab_v2
from simfast.testing import STUFF, THINGS, smooth_labels
from simfast.training.step import Trainer

ROOT = Path(__file__).parents[2]
SMALL = {"arch": "resnet18", "source_size": (96, 64), "target_size": (128, 96), "precision": "fp32"}
PAPER = Config()


def small(**settings) -> tuple[Config, Trainer, tuple[torch.Tensor, ...]]:
    """A configuration, its trainer on the CPU, and a batch."""
    config = Config(**SMALL | settings)
    torch.manual_seed(0)
    style = "caffe" if config.resnet_style == "auto" else config.resnet_style
    model = deeplab_v2(config.arch, 19, batch_norm=config.batch_norm, resnet_style=style)
    matching = StuffInstanceMatching(model.num_features, STUFF, THINGS) if config.method == "aa+sim" else None
    discriminator = Discriminator(19) if config.adversarial else None
    trainer = Trainer(config, model, discriminator, matching, "rgb", torch.device("cpu"))
    batch = []
    for width, height in (config.source_size, config.target_size):
        batch.append(torch.randint(255, (config.batch_size, 3, height, width), dtype=torch.uint8))
        batch.append(smooth_labels(config.batch_size, height, width, scale=16))
    return config, trainer, tuple(batch)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"batch_size": 2, "stage": 2, "pseudo_labels": "x"},
        {"self_training": "online"},
        {"method": "source-only", "arch": "vgg16"},
        {"arch": "resnet50", "method": "aa", "resnet_style": "torchvision"},
    ],
    ids=["stage 1", "stage 2, batch 2", "online", "vgg16", "resnet50"],
)
def test_convolutions_compute_what_torch_counts(settings):
    config, trainer, batch = small(**{"source_size": (64, 40), "target_size": (48, 32)} | settings)
    used = batch if config.uses_target else batch[:2]
    with FlopCounterMode(display=False) as counter:
        trainer.step(0, *(used if config.stage == 2 else used[:3]))
    counts = {str(name): number for name, number in counter.get_flop_counts()["Global"].items()}
    expected = sum(number for name, number in counts.items() if "convolution" in name)
    assert roofline.total(Step(config)).flops == expected > 0


def kept_by_torch(run, trainer: Trainer) -> int:
    """Bytes of the storages that autograd keeps of what `run` computes, without parameters and buffers."""
    networks = [trainer.model, trainer.discriminator, trainer.matching]
    own = {x.untyped_storage().data_ptr() for net in networks if net for x in (*net.parameters(), *net.buffers())}
    found = {}

    def pack(x: torch.Tensor) -> torch.Tensor:
        storage = x.untyped_storage()
        if storage.data_ptr() not in own:
            found[storage.data_ptr()] = storage.nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        held = run()  # alive, so that no storage is used twice
    assert held is not None
    return sum(found.values())


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("batch_norm", ["train", "frozen"])
def test_what_a_plain_step_keeps_is_what_autograd_keeps(precision, batch_norm):
    config, trainer, batch = small(precision=precision, batch_norm=batch_norm)
    trainer.model.train()
    step = Step(config)
    source = kept_by_torch(lambda: trainer.source_terms(*batch[:2]), trainer)
    assert sum(step.kept("source").values()) == pytest.approx(source, rel=1e-3)
    trainer.discriminator.requires_grad_(False)
    target = kept_by_torch(lambda: trainer.target_terms(batch[2], None), trainer)
    expected = sum(step.kept("target").values())
    if precision == "fp32":  # on a CPU; then the discriminator takes planes as they are
        expected -= step.rules.bytes(step.maps("target"))
    assert expected == pytest.approx(target, rel=0.02)  # matching keeps segments and slots


def test_a_plain_step_launches_what_the_stub_gpu_counted():
    counted = json.loads((ROOT / "bench" / "results" / "launches" / "stub.json").read_text())["after"]["paper"]
    names, step = counted["nodes_by_name"], Step(PAPER)
    kinds = roofline.by_kind(step)
    norms = [name for name in names if "batch_norm" in name]
    assert len(norms) == 4
    # Beside these four: two fills each way's semaphores, and the running statistics.
    expected = sum(names[name] for name in norms) * 7 / 4
    assert kinds["batch norm, forward"].launches + kinds["batch norm, backward"].launches == expected
    products = [work for work in step.works() if work.flops]
    assert len(products) == sum(names[f"library cudnn convolution {one}"] for one in ("forward", "data", "weights"))
    assert (
        kinds["ReLU"].launches == 2 * names["kernel vectorized_elementwise_kernel BinaryFunctor threshold_kernel_impl"]
    )
    assert roofline.total(step).launches == pytest.approx(counted["nodes"], rel=0.03)


@pytest.mark.parametrize("settings", [{}, {"precision": "fp32"}, {"batch_norm": "frozen"}, {"batch_size": 4}], ids=str)
def test_every_option_moves_less(settings):
    steps = roofline.ways(dataclasses.replace(PAPER, **settings))
    totals = {name: roofline.total(step) for name, step in steps.items()}
    moved = {name: one.read + one.written for name, one in totals.items()}
    kept = {name: sum(sum(step.kept(domain).values()) for domain in step.sizes) for name, step in steps.items()}
    same = {"weights"} if settings.get("precision") == "fp32" else set()  # nothing is cast
    frozen = "batch_norm" in settings
    for part in set(roofline.PARTS) - same:
        assert moved[part] < moved["none"]
        assert totals[part].launches < totals["none"].launches
        assert totals[part].seconds < totals["none"].seconds
        assert moved["all"] < moved[part] or part == "norms" == frozen
        assert kept[part] <= kept["none"]
    assert moved["products"] < moved["norms"] or frozen
    if frozen:  # nothing is summed up, and results alone are kept
        assert moved["all"] == moved["all, memory low"] < moved["none"]
        assert kept["all, memory low"] == kept["all"]
    else:
        assert moved["all"] < moved["all, memory low"] < moved["none"]
        assert kept["all, memory low"] < kept["all"]
    assert frozen or moved[roofline.FURTHER] < moved["all"]
    assert all(one.floor < one.seconds for one in totals.values())
    flops = {part: totals[part].flops for part in (*roofline.PARTS, "none")}
    assert len({flops[part] for part in set(flops) - {"maps"}}) == 1
    assert flops["none"] < flops["maps"] < 1.01 * flops["none"]  # five channels more for the discriminator


def test_twice_the_images_move_twice_the_maps():
    one, two = (roofline.by_kind(Step(dataclasses.replace(PAPER, batch_size=n))) for n in (1, 2))
    for kind in ("ReLU", "batch norm, forward", "gradient adds"):
        assert two[kind].read == 2 * one[kind].read
    assert two["casts"] == one["casts"]


def test_a_relu_costs_what_is_written_in_the_rules():
    found = roofline.by_kind(Step(PAPER))
    maps = found["batch norm, forward"].written  # every batch norm writes its map once
    assert found["batch norm, forward"].read == 2 * maps
    assert (found["batch norm, backward"].read, found["batch norm, backward"].written) == (4 * maps, maps)
    assert found["ReLU"].read / found["ReLU"].written == 3 / 2
    assert found["residual adds"].read == 2 * found["residual adds"].written


def test_the_page_has_the_table_of_the_rules():
    page = (ROOT / "docs" / "gpu-estimates.md").read_text()
    assert roofline.put(page, roofline.tables(PAPER)) == page, (
        "python -m bench.roofline --docs docs/gpu-estimates.md writes it"
    )


def test_the_command_takes_other_settings_and_writes_what_it_adds_up(tmp_path, monkeypatch, capsys):
    arguments = ["--set", "arch=resnet18", "precision=fp32", "--options", "norms,head", "--json", str(tmp_path / "x")]
    monkeypatch.setattr("sys.argv", ["roofline", *arguments])
    roofline.main()
    assert "residual adds" in capsys.readouterr().out
    found = json.loads((tmp_path / "x").read_text())
    assert found["norms"]["total"]["read"] < found["none"]["total"]["read"]
    config = dataclasses.replace(PAPER, arch="resnet18", precision="fp32", fuse=("norms",))
    assert roofline.bytes_moved(config) == found["norms"]["total"]["read"] + found["norms"]["total"]["written"]
    assert roofline.floor_ms(config) == pytest.approx(1e3 * found["norms"]["total"]["floor"])


def test_the_page_has_the_memory_that_was_counted():
    page = (ROOT / "docs" / "step.md").read_text()
    found = json.loads(memory_table.RESULTS.read_text())
    assert memory_table.put(page, memory_table.table(found)) == page, (
        "python -m bench.memory_table docs/step.md writes it"
    )


def test_a_plain_step_holds_what_the_rules_say_is_kept():
    rows = json.loads(memory_table.RESULTS.read_text())["rows"]
    for precision, size in itertools.product(("bf16", "fp32"), (1, 2, 4)):
        counted = rows[f"gta5, stage 1, {precision}"]["plain"][str(size)]
        step = Step(dataclasses.replace(PAPER, batch_size=size, precision=precision))
        kept = sum(step.kept("source").values()) / 2**20
        # Beside the networks, their gradients and the optimisers; and a few maps while the head's are made.
        expected = kept + counted["allocated_mib"]
        assert expected < counted["peak_allocated_mib"] < 1.06 * expected
