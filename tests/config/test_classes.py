"""Class lists: built in, from files, stored with a run; every rule is told where it is broken."""

import dataclasses

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from running import save_run, settings_of

from simfast.config.classes import BUILT_IN, CITYSCAPES, Classes, LabelClass, built_in, classes_of
from simfast.models import checkpoint

FIVE = """
classes:
  - {name: ground, colour: "#804080", kind: stuff, ids: [7, 8]}
  - {name: sky, colour: [70, 130, 180], kind: stuff}
  - {name: "green, any", colour: [107, 142, 35], kind: stuff, ids: [21], colours: [[0, 255, 0], [1, 2, 3]]}
  - {name: vehicle, colour: [0, 0, 142], kind: thing, ids: [26, 65535]}
  - {name: person, colour: [220, 20, 60], kind: thing, ids: [24]}
ignore: {ids: [0], colours: [[0, 0, 0]]}
other: ignore
score_sets: {moving: [person, vehicle]}
"""


def test_the_built_in_lists_are_those_of_the_paper():
    stuff = [CITYSCAPES.names[i] for i in CITYSCAPES.stuff]
    assert stuff == ["road", "sidewalk", "building", "wall", "fence", "vegetation", "terrain", "sky"]  # section 4.2
    assert {name: len(ids) for name, ids in CITYSCAPES.sets.items()} == {"19": 19, "16": 16, "13": 13}
    assert {name: len(built_in(name)) for name in BUILT_IN} == {"cityscapes": 19, "camvid": 11, "synthia": 16}
    entry = {one.name: (one.colour, one.kind) for one in CITYSCAPES.entries}
    for name in BUILT_IN:
        assert all((one.colour, one.kind) == entry[one.name] for one in built_in(name).entries)


def test_a_file_says_what_is_told_apart_and_what_stands_for_it(tmp_path):
    (tmp_path / "yard.yaml").write_text(FIVE)
    classes = classes_of(tmp_path / "yard.yaml")
    assert (str(classes), classes.names[2], classes.stuff, classes.things) == ("yard", "green, any", (0, 1, 2), (3, 4))
    assert classes.ids == {7: 0, 8: 0, 21: 2, 26: 3, 65535: 3, 24: 4, 0: 255}
    # What has neither ids nor colours is painted in its own colour.
    assert classes.colours == {(70, 130, 180): 1, (0, 255, 0): 2, (1, 2, 3): 2, (0, 0, 0): 255}
    assert (classes.other, classes.sets, classes.entries[0].colour) == ("ignore", {"moving": (3, 4)}, (128, 64, 128))


def test_a_copy_of_a_built_in_list_is_a_list_of_its_own(tmp_path):
    (tmp_path / "cityscapes.yaml").write_text(CITYSCAPES.text())
    copy = classes_of(tmp_path / "cityscapes.yaml")
    assert (copy.entries, copy.built_in, CITYSCAPES.built_in) == (CITYSCAPES.entries, False, True)
    assert copy != CITYSCAPES
    assert classes_of(copy.stored()) == copy


# Hypothesis knows the words of our own source, "ignore" among them, which no class may be called.
NAMES = st.text(st.characters(blacklist_categories=("C", "Z")), min_size=1, max_size=8).filter("ignore".__ne__)
COLOURS = st.tuples(*[st.integers(0, 255)] * 3)


@given(
    st.lists(NAMES, min_size=2, max_size=12, unique=True),
    st.data(),
    st.sampled_from(["error", "ignore"]),
)
def test_a_list_survives_being_written_and_stored(names, data, other):
    count = len(names)
    colours = data.draw(st.lists(COLOURS, min_size=count, max_size=count, unique=True))
    ids = data.draw(st.lists(st.integers(0, 65535), min_size=count + 2, max_size=count + 2, unique=True))
    kinds = data.draw(st.lists(st.sampled_from(["stuff", "thing"]), min_size=count, max_size=count))
    entries = tuple(
        LabelClass(name, colour, kind, (raw,), (colour,) if raw % 2 else ())
        for name, colour, kind, raw in zip(names, colours, kinds, ids[:count], strict=True)
    )
    classes = Classes("mine", entries, tuple(ids[count:]), (), other, (("first", (0, 1)),))
    assert classes_of(classes.stored()) == classes
    assert classes_of(yaml.safe_load(classes.text())) == classes


def test_a_run_keeps_its_classes_wherever_their_file_has_gone(tmp_path):
    path = tmp_path / "yard.yaml"
    path.write_text(FIVE)
    config = settings_of(["--classes", str(path)])
    path.unlink()
    save_run(tmp_path / "last.pt", config)
    assert settings_of(["--resume", str(tmp_path)]).classes == config.classes
    (tmp_path / "settings.yaml").write_text(yaml.safe_dump(config.portable()))
    assert settings_of(["--config", str(tmp_path / "settings.yaml")]).classes == config.classes
    checkpoint.save(tmp_path / "best.pt", {"config": config.to_dict()})
    stage2 = ["--stage", "2", "--stage1", str(tmp_path)]
    assert settings_of(stage2).classes == settings_of([*stage2, "--preset", "gta5"]).classes == config.classes
    # The preset's score set is none of the list.
    assert settings_of([*stage2, "--preset", "synthia"]).score_classes == "auto"
    path.write_text(FIVE.replace("24", "25"))
    with pytest.raises(ValueError, match="got 'yard of other content'"):
        settings_of(["--resume", str(tmp_path), "--classes", str(path)])
    with pytest.raises(ValueError, match=r"classes: a resumed run keeps its settings .'yard' in .*, got 'camvid'"):
        settings_of(["--resume", str(tmp_path), "--classes", "camvid"])


def test_what_was_stored_before_there_were_lists_has_cityscapes(tmp_path):
    older = settings_of([]).to_dict()
    del older["classes"]
    save_run(tmp_path / "last.pt", older | {"score_classes": 13, "source": "gta5"})
    config = settings_of(["--resume", str(tmp_path)])
    assert (config.classes, config.score_classes, config.source) == (CITYSCAPES, "13", ("gta5",))


NO_QUOTES = "classes:\n  - name: a\n    colour: #804080\n    kind: stuff\n"


def swap(old, new):
    return FIVE.replace(old, new, 1)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- road", r"a class list: must be a mapping with title, classes, .*, got list"),
        ("{1: 2", "must be a readable YAML file"),
        ("title: x", "a class list: must have classes, got title"),
        ("classes: {a: 1}", "classes: must be a list of classes, got dict"),
        ("classes: [{name: a, colour: [0, 0, 0], kind: stuff}]", "classes: must be 2 to 255, got 1"),
        (swap("kind: stuff", "sort: stuff"), r"class 0 \(ground\): unknown key 'sort'; the closest one is"),
        (swap(", kind: stuff", ""), r"class 0 \(ground\): must have kind, got name, colour, ids"),
        (swap("kind: stuff", "kind: staff"), r"class 0 \(ground\): kind: must be stuff or thing, got 'staff'"),
        (swap("name: ground", "name: no"), r"class 0: name: must be text .* got False"),
        (swap("#804080", "#80408"), r"class 0 .* colour: must be red, green and blue .*, got .#80408"),
        (NO_QUOTES, r"class 0 \(a\): colour: must be .*, got nothing \(what follows a # without quotes is a comment"),
        (swap("name: ground", "name: ignore"), r"class 0 \(ignore\): name: must not be what id maps call don't care"),
        (swap("ids: [7, 8]", "ids: [7], ids: [8]"), "must be a readable YAML file, got the key ids twice in"),
        (swap("[7, 8]", "[7, 010]"), "must be a readable YAML file, got 010, which YAML takes for 8"),
        (swap("[7, 8]", "[1:30]"), "must be a readable YAML file, got 1:30, which YAML takes for 90"),
        (swap("ignore: {ids: [0], colours: [[0, 0, 0]]}", "ignore: 0"), "ignore: must be a mapping .*, got int 0"),
        ('title: "a\\nb"\n' + FIVE, r"title: must be text on one line, got 'a\\nb'"),
        (swap("[7, 8]", "[7, 65536]"), r"class 0 .* ids: must be whole numbers in 0-65535, got 65536"),
        (swap("[7, 8]", "[7, 21]"), r"class 'green, any': ids: 21 must be there once, got it in class 'ground' too"),
        (swap("[1, 2, 3]", "[70, 130, 180]"), r"class 'green, any': colours: \[70, 130, 180\] must be there once"),
        (swap("ids: [0]", "ids: [24]"), "ignore: ids: 24 must be there once, got it in class 'person' too"),
        (swap("name: sky", "name: ground"), "class 'ground': name: 'ground' must be there once"),
        (swap("[107, 142, 35]", "[0, 0, 142]"), r"class 'vehicle': colour: \[0, 0, 142\] must be there once"),
        (swap("other: ignore", "other: skip"), "other: must be error or ignore, got 'skip'"),
        (
            swap("[person, vehicle]", "[car]"),
            r"score_sets: moving: must be a list of the classes' names, got \['car'\]",
        ),
    ],
)
def test_a_broken_rule_is_told_with_file_class_and_key(text, message, tmp_path):
    path = tmp_path / "yard.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=rf"yard\.yaml: {message}"):
        classes_of(path)


def test_a_file_named_as_a_built_in_list_is_a_list_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "camvid").write_text(FIVE)
    classes = classes_of("./camvid")
    assert not classes.built_in
    assert classes_of(classes.stored()) == classes


def test_255_classes_fit_and_256_do_not():
    entries = tuple(LabelClass(f"c{i}", (i, 0, 0), "stuff", (i,)) for i in range(255))
    assert len(Classes("many", entries)) == 255
    with pytest.raises(ValueError, match="classes: must be 2 to 255, got 256"):
        Classes("many", (*entries, dataclasses.replace(entries[0], name="more", colour=(0, 1, 0), ids=(999,))))


def test_a_score_set_is_one_of_the_list(tmp_path):
    (tmp_path / "yard.yaml").write_text(FIVE)
    assert (
        settings_of(["--classes", str(tmp_path / "yard.yaml"), "--score-classes", "moving"]).score_classes == "moving"
    )
    with pytest.raises(ValueError, match="score_classes: must be one of auto, moving with the classes yard, got '13'"):
        settings_of(["--classes", str(tmp_path / "yard.yaml"), "--score-classes", "13"])
