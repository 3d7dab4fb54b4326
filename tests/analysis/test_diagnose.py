"""`simfast diagnose`: regions, distances and gradients where the answers are known, and whole runs."""

import json

import pytest
import torch
import torch.nn.functional as F
from running import train

from simfast.analysis.gradients import TRUTH, GradientTally, term_gradients
from simfast.analysis.region_statistics import RegionTally, bank_spacing, describe_regions, nearest_rows
from simfast.cli import main
from simfast.config import Config
from simfast.matching import StuffInstanceMatching
from simfast.matching.bank import RingBank
from simfast.models import Discriminator, deeplab_v2
from simfast.models.upsampled import upsample
from simfast.training.build import build_matching
from simfast.training.step import Terms, Trainer

ROAD, CAR = 0, 13


@pytest.fixture(autouse=True)
def restore_global_state():
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(scope="module")
def run(settings, tmp_path_factory):
    """The folder of a finished run of aa+sim, fused."""
    out = tmp_path_factory.mktemp("run")
    train([*settings, "--out", str(out), "--steps", "2", "--batch-size", "2", "--fuse", "all", "--memory", "low"])
    return out


def simfast(*arguments):
    """The exit code of `simfast ARGUMENTS`, or its message."""
    with pytest.raises(SystemExit) as exit_:
        main([str(argument) for argument in arguments])
    return exit_.value.code


def test_nearest_rows_and_the_spacing_of_a_bank_worked_by_hand():
    bank = RingBank([3, 2, 2], 2)  # the last ring stays empty, and its zeros are no rows
    bank.write(torch.tensor([[0.0, 0.0], [4.0, 2.0], [8.0, 8.0]]), torch.tensor([0, 0, 1]))
    own, other = nearest_rows(torch.tensor([[1.0, 0.0], [8.0, 6.0], [0.0, 0.0]]), torch.tensor([0, 0, 2]), bank)
    assert own.tolist() == [0.5, 4, torch.inf]
    assert other.tolist() == [7.5, 1, 0]
    spacing, rings = bank_spacing(bank)
    assert (spacing.tolist(), rings.tolist()) == ([3, 3, torch.inf], [0, 0, 1])


@pytest.fixture
def scene():
    """Road left, two cars right, in two channels; the head takes what is brighter in the second one for a car."""
    labels = torch.full((1, 3, 4), 255)
    labels[0, :, 0] = ROAD
    labels[0, 0, 2:] = labels[0, 2, 2:] = CAR
    features = torch.zeros(1, 2, 3, 4)
    features[0, 0, :, 0] = 2  # road: (2, 0)
    features[0, 1, 0, 2:] = 2  # first car: (0, 2)
    features[0, 0, 2, 2:], features[0, 1, 2, 3] = 3, 2  # second car: (3, 1), which the head takes for road
    truth = labels.clone()
    truth[0, 2, 2:] = torch.tensor([ROAD, 255])  # of its two pixels one is labelled
    matching = StuffInstanceMatching(2, [ROAD], [CAR], stuff_rows=1, max_instances=3, ops="reference")

    def classify(vectors):
        return F.one_hot(torch.where(vectors[:, 1] > vectors[:, 0], CAR, ROAD), CAR + 1).float()

    return matching, features, labels, classify, truth


def test_regions_worked_by_hand(scene):
    found = describe_regions(*scene)
    assert found.rings.tolist() == [0, 1, 1]
    assert found.vectors.tolist() == [[2, 0], [0, 2], [3, 1]]
    assert found.zeros.tolist() == [0.5, 0.5, 0.25]
    assert found.accepted.tolist() == [True, True, False]
    assert found.majority.tolist() == [ROAD, CAR, ROAD]
    matching, features, labels, classify, _ = scene
    assert describe_regions(matching, features, labels, classify).majority.tolist() == [-1, -1, -1]


def test_tallies_worked_by_hand(scene):
    matching, features, labels, classify, truth = scene
    matching.bank.write(torch.tensor([[2.0, 1.0], [2.0, 1.0], [0.0, 2.0]]), torch.tensor([0, 0, 1]))
    tally = RegionTally(matching)
    tally.add("source", Terms({}, features, None, torch.full_like(labels, 255), None), classify)
    for shown in (labels, torch.where(labels == ROAD, 255, labels)):  # two images, one without road
        tally.add("target", Terms({}, features, None, shown, None), classify, truth)
    road, car, both = tally.row([0]), tally.row([1]), tally.row([0, 1])
    # Two vectors for the only slot of the road; one for the three of the cars.
    assert road["bank"] == {"written": 2, "valid": 1, "capacity": 1, "any": 1, "full": 1, "spacing": None}
    assert car["bank"] == {"written": 1, "valid": 1, "capacity": 3, "any": 1, "full": 0, "spacing": None}
    assert both["source"] == {"regions": 0, "accepted": 0, "images": 0}
    pure = {"all": 1, "accepted": 1, "own_nearest": 1}
    assert road["target"] == {"regions": 0.5, "accepted": 0.5, "images": 0.5, "purity": pure, "judged": 1}
    pure = {"all": 0.5, "accepted": 1, "own_nearest": 1}
    assert car["target"] == {"regions": 2, "accepted": 1, "images": 1, "purity": pure, "judged": 4}
    assert both["target"]["images"] == 0.75
    assert road["distance"] == {"own": 0.5, "other": 2, "own_nearest": 1, "feature": 1, "zeros": 0.5}
    # The second car, (3, 1), is nearer to the road's (2, 1) than to the car's (0, 2).
    assert car["distance"] == {"own": 1, "other": 1, "own_nearest": 0.5, "feature": 1.5, "zeros": 0.375}


def test_gradients_are_those_of_autograd_on_the_losses_written_plainly():
    torch.manual_seed(0)
    sizes = {"source_size": (64, 64), "target_size": (64, 64), "steps": 8, "schedule_steps": 10}
    config = Config.from_dict({"arch": "resnet18", "lambda_adv": 0.5, "lambda_ci": 0.25, "stage": 1} | sizes, "test")
    model, discriminator = deeplab_v2("resnet18", 19), Discriminator(19)
    matching = build_matching(config, model.num_features, torch.device("cpu"))
    trainer = Trainer(config, model, discriminator, matching, "rgb", torch.device("cpu"))
    images = torch.randint(0, 256, (1, 3, 64, 64), dtype=torch.uint8)
    truth = torch.randint(0, 19, (1, 64, 64), dtype=torch.uint8)
    terms = trainer.target_terms(images, None)
    matching.remember(terms.features.roll(1, 2), terms.labels)
    terms = trainer.target_terms(images, None)
    found = term_gradients(trainer, terms, truth)

    logits = upsample(terms.logits, (64, 64))
    plain = {
        "adv": 0.5 * F.softplus(discriminator(logits.softmax(1))).mean(),
        "matching": 0.25 * sum(matching(terms.features, terms.labels)),
        TRUTH: F.cross_entropy(logits, truth.long()),
    }
    head = set(model.head.parameters())
    backbone = [p for p in model.parameters() if p.requires_grad and p not in head]
    flat = {}
    for name, loss in plain.items():
        features, *rest = torch.autograd.grad(loss, [terms.features, *backbone], retain_graph=True)
        flat[name] = torch.cat([x.flatten() for x in rest])
        assert flat[name].any()
        torch.testing.assert_close(found[name].features, features, rtol=1e-4, atol=1e-8)
        torch.testing.assert_close(found[name].backbone, flat[name], rtol=1e-3, atol=1e-6)
    assert all(p.grad is None for p in model.parameters())

    tally = GradientTally(trainer.weights)
    tally.add(found)
    rows = tally.rows({"adv": 1.0, "stuff": 2.0, "instance": 3.0}, {"adv", "stuff", "instance", "matching"})
    assert rows["matching"]["loss"] == 5
    assert rows["adv"]["backbone"] == pytest.approx(float(flat["adv"].norm()), rel=1e-3)
    for other in ("adv", TRUTH):
        expected = F.cosine_similarity(flat["matching"], flat[other], dim=0)
        assert rows["matching"][f"cosine {other}"]["mean"] == pytest.approx(float(expected), abs=1e-3)
    assert [name for name, row in rows.items() if not row["trained"]] == [TRUTH]


def test_a_run_with_banks_of_its_own(run, tmp_path, capsys):
    path = tmp_path / "new" / "report.json"
    before = {file: file.read_bytes() for file in run.iterdir() if file.is_file()}
    assert simfast("diagnose", run, "--pairs", 3, "--gradient-pairs", 2, "--report", path) == 0
    assert {file: file.read_bytes() for file in run.iterdir() if file.is_file()} == before
    printed, report = capsys.readouterr().out, json.loads(path.read_text())
    assert (report["step"], report["pairs"], report["gradient_pairs"]) == (2, 4, 2)  # whole batches of two
    assert report["banks"] == "the run's own"
    written = torch.load(run / "last.pt", weights_only=True)["matching"]["bank.written"]
    assert report["all"]["bank"]["written"] == int(written.sum()) > 0
    assert report["all"]["target"]["judged"] > 0
    gradients = report["gradients"]
    assert list(gradients) == ["seg", "adv", "stuff", "instance", "matching", TRUTH]
    assert all(row["backbone"] > 0 for name, row in gradients.items() if name not in ("stuff", "instance"))
    assert all(row["features"] > 0 for name, row in gradients.items() if name not in ("stuff", "instance"))
    assert all(name in printed for name in (*report["classes"], *gradients, "Banks.", "Regions", "Distances"))
    # Other settings than the run's may be tried, and its networks may not.
    assert simfast("diagnose", run, "--pairs", 1, "--lambda-adv", "0.002", "--fresh-banks", "--report", path) == 0
    other = json.loads(path.read_text())
    assert other["banks"] == "filled anew from 200 source images"
    assert other["gradients"]["adv"]["backbone"] == pytest.approx(2 * gradients["adv"]["backbone"], rel=1e-3)
    (tmp_path / "settings.yaml").write_text("method: aa")
    assert simfast("diagnose", run, "--config", tmp_path / "settings.yaml").endswith(
        f"method: must stay 'aa+sim', as {run}/last.pt was trained, got 'aa'"
    )
    assert simfast("diagnose", run, "--pairs", 0) == "simfast diagnose: pairs: must be at least 1, got 0"


@pytest.mark.parametrize(
    ("method", "trained"), [("source-only", ["seg"]), ("aa", ["seg", "adv"]), ("target-only", [TRUTH])]
)
def test_runs_without_banks_get_some_for_comparison(method, trained, settings, tmp_path):
    small = ["--source-size", "40", "40", "--target-size", "40", "40", "--precision", "bf16"]
    train([*settings, *small, "--out", str(tmp_path), "--steps", "1", "--method", method])
    path = tmp_path / "report.json"
    count = ["--pairs", 2, "--gradient-pairs", 1, "--bank-images", 5]
    assert simfast("diagnose", tmp_path, *count, "--report", path) == 0
    report = json.loads(path.read_text())
    assert (report["banks"], report["precision"]) == ("filled anew from 5 source images", "bf16")
    assert report["all"]["bank"]["valid"] > 0
    assert [name for name, row in report["gradients"].items() if row["trained"]] == trained


def test_stage_2_is_read_with_its_pseudo_labels_and_a_target_without_labels_without_purity(
    run, folders, settings, tmp_path
):
    out, path, unlabelled = tmp_path / "second", tmp_path / "report.json", tmp_path / "target"
    for part in ("train", "val"):
        (unlabelled / part).mkdir(parents=True)
        (unlabelled / part / "images").symlink_to(folders / "target" / part / "images")
    (unlabelled / "val" / "labels").symlink_to(folders / "target" / "val" / "labels")
    stage2 = ["--stage", "2", "--stage1", str(run), "--target-root", str(unlabelled)]
    train([*stage2, "--out", str(out), "--steps", "1"])
    assert simfast("diagnose", out, "--pairs", 2, "--gradient-pairs", 1, "--report", path) == 0
    report = json.loads(path.read_text())
    assert report["all"]["target"]["judged"] == 0
    assert set(report["all"]["target"]["purity"].values()) == {None}
    assert list(report["gradients"]) == ["seg", "seg_target", "adv", "stuff", "instance", "matching"]
    labelled = ["--target-root", folders / "target"]
    assert simfast("diagnose", out, "--pairs", 2, "--gradient-pairs", 1, "--report", path, *labelled) == 0
    assert json.loads(path.read_text())["all"]["target"]["judged"] > 0
    (out / "pseudo-labels" / "thresholds.json").unlink()
    assert "pseudo_labels: " in simfast("diagnose", out)
