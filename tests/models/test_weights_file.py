"""Where the tensors are in a file, what is in front of their names, and what a file is that has none."""

import argparse
import gzip
import io
import json
import logging
import pickle
import re
import zipfile

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from weight_files import assert_loaded, branches, class_list, constant, numbered, own_checkpoint, saved

from simfast.models import deeplab_v2, load_weights, read_weights, restore_model, save_weights
from simfast.models.formats import write_safetensors

STATE = {"conv1.weight": torch.ones(2), "layer1.0.bn1.bias": torch.zeros(3)}
AVERAGE = {name: tensor + 5 for name, tensor in STATE.items()}


@given(st.lists(st.sampled_from(["module.", "_orig_mod.", "backbone.", "model.", "encoder_q."]), max_size=5))
def test_prefixes_of_wrappers_are_taken_off_in_any_nesting_and_said(tmp_path_factory, nesting):
    prefix = "".join(nesting)
    path = saved(tmp_path_factory.mktemp("nested"), {prefix + name: tensor for name, tensor in STATE.items()})
    file = read_weights(path)
    assert list(file.tensors) == list(STATE)
    assert file.notes == ((f"names without {prefix}",) if prefix else ())


def test_parts_may_be_wrapped_apart_and_two_networks_are_not_mixed(tmp_path):
    apart = {f"module.backbone.{name}": tensor for name, tensor in numbered("resnet18").items()}
    apart |= {f"module.{name}": tensor for name, tensor in branches("layer6", 2, 19, 512).items()}
    apart |= {"module.queue": torch.zeros(3)}
    report = load_weights(deeplab_v2("resnet18", 19, (6, 12)), saved(tmp_path, apart), head_dilations=(6, 12))
    assert (report.matched, report.dropped) == (104, (("queue", "not in the model"),))
    momentum = {f"{part}.{name}": t for part in ("encoder_q", "encoder_k") for name, t in STATE.items()}  # MoCo's
    assert set(STATE) < set(read_weights(saved(tmp_path, momentum)).tensors)
    two = {f"{part}.{name}": tensor for part in ("model", "backbone") for name, tensor in STATE.items()}
    with pytest.raises(ValueError, match=r"two tensors for conv1\.weight: model\.conv1\.weight and backbone\.conv1"):
        read_weights(saved(tmp_path, two))


@pytest.mark.parametrize("plain", ["state_dict", "model_state_dict", "model"])
@pytest.mark.parametrize("average", ["model_ema", "ema_model", "state_dict_ema"])
def test_containers_are_found_and_the_average_is_taken_where_it_is_asked_for(tmp_path, plain, average):
    path = saved(tmp_path, {"epoch": 3, "best": torch.tensor(76.0), plain: STATE, average: {"module": {}} | AVERAGE})
    file, averaged = read_weights(path), read_weights(path, ema=True)
    assert (file.tensors.keys(), averaged.tensors.keys()) == (STATE.keys(), STATE.keys())
    assert torch.equal(file.tensors["conv1.weight"], STATE["conv1.weight"])
    assert torch.equal(averaged.tensors["conv1.weight"], AVERAGE["conv1.weight"])
    assert (file.notes, averaged.notes) == ((f"from its {plain}",), (f"from its {average}",))
    with pytest.raises(ValueError, match=rf"must have the weights themselves, got {average} alone: --ema takes it"):
        read_weights(saved(tmp_path, {average: AVERAGE}))
    with pytest.raises(ValueError, match=rf"ema: .* must keep a running average .*got {plain}$"):
        read_weights(saved(tmp_path, {plain: STATE}), ema=True)


def test_what_is_in_a_file_is_named_where_it_is_not_what_is_meant(tmp_path):
    with pytest.raises(ValueError, match=r"got several \(model, state_dict\)"):
        read_weights(saved(tmp_path, {"model": STATE, "state_dict": STATE}))
    nested = read_weights(saved(tmp_path, {"state_dict": {"model": STATE}}))
    assert nested.notes == ("from its state_dict.model",)
    with pytest.raises(ValueError, match=r"without named tensors: generator \(dict\), step \(int\)"):
        read_weights(saved(tmp_path, {"generator": STATE, "step": 3}))
    inside = {f"model.{k}": v for k, v in STATE.items()} | {f"ema_model.{k}": v for k, v in AVERAGE.items()}
    path = saved(tmp_path, {"state_dict": inside})  # a module that holds both networks
    for ema, expected in ((False, STATE), (True, AVERAGE)):
        found = read_weights(path, ema)
        assert found.tensors.keys() == STATE.keys()
        assert torch.equal(found.tensors["conv1.weight"], expected["conv1.weight"])


def test_the_mean_teacher_of_a_run_is_its_average(tmp_path):
    torch.manual_seed(0)
    student, teacher = deeplab_v2("resnet18", 3), deeplab_v2("resnet18", 3)
    mine = class_list("soil", "leaf", "weed")
    path = saved(tmp_path, own_checkpoint(student, classes=mine) | {"teacher": teacher.state_dict()})
    for ema, network in ((False, student), (True, teacher)):
        restored = restore_model(path, ema=ema)
        assert torch.equal(restored.model.conv1.weight, network.conv1.weight)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"config": 3}, r"the config that .*weights\.pth records must be settings by name, got int 3"),
        ({"network": torch.zeros(2)}, "the network that .* records must be settings by name, got a float32 tensor"),
        ({"network": {"arch": "vit"}}, "the arch that .* records must be one of resnet18, .*, got str 'vit'"),
        ({"network": {"arch": []}}, "the arch that .* records must be one of resnet18"),
        ({"network": {"resnet_style": []}}, "the resnet_style that .* records must be one of auto, caffe, torchvision"),
        ({"network": {"head_dilations": 6}}, "the head_dilations that .* records must be whole numbers, got int 6"),
        ({"network": {"head_dilations": ["6"]}}, "the head_dilations that .* records must be whole numbers, got list"),
    ],
)
def test_a_checkpoint_that_records_a_network_that_there_is_not_is_named(tmp_path, change, said):
    path = saved(tmp_path, own_checkpoint(deeplab_v2("resnet18", 19)) | change)
    for read in (restore_model, lambda path: load_weights(deeplab_v2("resnet18", 19), path)):
        with pytest.raises(ValueError, match=said):
            read(path)


def test_the_resnet_style_that_a_checkpoint_records_is_not_said_otherwise(tmp_path):
    caffe, other = deeplab_v2("resnet18", 19), deeplab_v2("resnet18", 19, resnet_style="torchvision")
    path = saved(tmp_path, own_checkpoint(caffe) | {"network": caffe.settings})
    for read in (restore_model, lambda path, **said: load_weights(other, path, **said)):
        with pytest.raises(ValueError, match=r"resnet_style must be 'caffe', which .*weights\.pth records, got 'torch"):
            read(path, resnet_style="torchvision")
    assert restore_model(path, resnet_style="caffe").model.resnet_style == "caffe"
    older = saved(tmp_path, own_checkpoint(caffe))  # does not say
    assert restore_model(older, resnet_style="torchvision").model.resnet_style == "torchvision"


def zipped(name):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(name, "x")
    return buffer.getvalue()


def torch_saved(content, **options):
    buffer = io.BytesIO()
    torch.save(content, buffer, **options)
    return buffer.getvalue()


def scripted():
    buffer = io.BytesIO()
    torch.jit.save(torch.jit.trace(torch.nn.Linear(2, 2), torch.zeros(1, 2)), buffer)
    return buffer.getvalue()


KINDS = {
    "empty": (lambda: b"", "an empty file"),
    "html": (lambda: b"\n<!DOCTYPE html><html>404</html>", "a web page"),
    "html without a type": (lambda: b"<html>Quota exceeded</html>", "a web page"),
    "gzip": (lambda: gzip.compress(torch_saved(STATE)), "a gzip archive: unpack it"),
    "lfs": (lambda: b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "a Git LFS pointer.*git lfs pull"),
    "zip": (lambda: zipped("readme.txt"), r"a zip archive that torch.save did not write \(of readme.txt\): unpack it"),
    "cut": (lambda: torch_saved(STATE)[:500], "a file that is cut short"),
    "text": (lambda: b"Permission denied for user", "a text file, which begins with 'Permission denied for user'"),
    "module": (lambda: torch_saved(torch.nn.Linear(2, 2)), r"an object of the class torch\.nn\..*\.Linear.*state_dict"),
    "old module": (
        lambda: torch_saved(torch.nn.Linear(2, 2), _use_new_zipfile_serialization=False),
        r"an object of the class torch\.nn\.modules\.linear\.Linear",
    ),
    "arguments": (lambda: torch_saved({"args": argparse.Namespace()}), r"an object of the class argparse\.Namespace"),
    "pickle": (lambda: pickle.dumps(argparse.Namespace()), "a pickle that is no state dict"),
    "script": (scripted, r"a TorchScript archive"),
    "hdf5": (lambda: b"\x89HDF\r\n\x1a\n" + bytes(99), "an HDF5 file"),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_file_that_is_none_gets_its_own_sentence(tmp_path, kind):
    content, said = KINDS[kind]
    path = tmp_path / "weights.pth"
    path.write_bytes(content())
    with pytest.raises(ValueError, match=rf"weights\.pth: must be .*got {said}") as raised:
        read_weights(path)
    assert "weights_only" not in str(raised.value)


def test_a_network_goes_into_safetensors_and_comes_back_the_same(tmp_path, caplog):
    torch.manual_seed(0)
    mine, model = class_list("soil", "leaf", "weed"), deeplab_v2("resnet18", 3, (2, 4), "frozen", "torchvision")
    content = own_checkpoint(model, "bgr", classes=mine) | {"network": model.settings}
    restored = restore_model(saved(tmp_path, content))
    path = tmp_path / "out.safetensors"
    save_weights(restored, path)
    again = restore_model(path)
    assert (again.classes, again.convention, again.model.settings) == (mine, "bgr", model.settings)
    images = torch.randn(1, 3, 33, 33)
    assert torch.equal(again.model(images)[1], restored.model(images)[1])
    whole = path.read_bytes()
    for at in (len(whole) - 1, len(whole) // 2):
        damaged = bytearray(whole)
        damaged[at] ^= 1
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"out\.safetensors: must be as it was written, got a damaged file"):
            read_weights(path)
    path.write_bytes(whole[:-9])
    with pytest.raises(ValueError, match=r"out\.safetensors: must be a whole safetensors file"):
        read_weights(path)
    with pytest.raises(ValueError, match=r"must be named \*\.safetensors, got \.pt"):
        save_weights(restored, tmp_path / "out.pt")


def test_what_was_said_of_a_network_of_others_goes_into_safetensors_with_it(tmp_path):
    mine, path = class_list("soil", "leaf", "weed"), tmp_path / "out.safetensors"
    theirs = saved(tmp_path, numbered("resnet18") | branches("layer6", 4, 3, 512))
    restored = restore_model(theirs, classes=mine, head_dilations=(6, 12), resnet_style="torchvision")
    save_weights(restored, path)
    again = restore_model(path)
    assert (again.classes, again.convention, again.model.settings) == (mine, "bgr", restored.model.settings)
    assert_loaded(again.model, restored.model.state_dict())


@pytest.mark.parametrize("said", ["{", "[1]", "3", "[" * 100_000], ids=len)
def test_a_safetensors_file_that_says_no_mapping_of_its_network_is_named(tmp_path, said):
    path = tmp_path / "weights.safetensors"
    write_safetensors(path, {name: tensor.clone() for name, tensor in STATE.items()}, {"simfast": said})
    with pytest.raises(ValueError, match=r"weights\.safetensors: simfast in its metadata must be a mapping in JSON"):
        read_weights(path)


def test_safetensors_of_others_are_read_as_their_other_files_are(tmp_path):
    path = tmp_path / "weights.bin"  # by what it is, not by its name
    state = numbered("resnet18", "module.") | {"module.fc.weight": constant(0, 1000, 512)}
    write_safetensors(path, {name: tensor.clone() for name, tensor in state.items()}, {})
    model = deeplab_v2("resnet18", 19, resnet_style="torchvision")
    report = load_weights(model, path)
    assert (report.convention, report.used, report.in_file) == ("rgb", 100, 101)
    assert json.loads(path.read_bytes()[8 : 8 + int.from_bytes(path.read_bytes()[:8], "little")])["__metadata__"]


def test_the_log_says_which_resnet_is_built(tmp_path, caplog):
    path = saved(tmp_path, {"state_dict": numbered("resnet18", "module.") | {"fc.bias": constant(0, 1000)}})
    with caplog.at_level(logging.INFO):
        load_weights(deeplab_v2("resnet18", 19, resnet_style="torchvision"), path)
    said = "100 of the file's 101 tensors used; from its state_dict; names without module.; a ResNet in torchvision's"
    assert re.search(re.escape(said), caplog.text)
