import json
import os
import stat
import tracemalloc
import weakref
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ssfnas_cli.artifacts.dataset import DataSet
from ssfnas_cli.data import build
from ssfnas_cli.data.build import build_dataset
from ssfnas_cli.data.sources.base import Source, SourceSplit, open_source
from ssfnas_cli.data.sources.files import FileSplit
from ssfnas_cli.errors import InputError, OutputExistsError, UsageError
from ssfnas_cli.settings import MakeDatasetSettings, load_settings

SHARED = Path(__file__).resolve().parents[2].parent / "shared"
RETINA = SHARED / "data" / "retinamnist.npz"


def plan_of(root="", **settings):
    """Settings; `root` may be a path."""
    return MakeDatasetSettings(root=str(root), **settings)


def but(plan, **changes):
    """The same settings with some changed."""
    return MakeDatasetSettings(**plan.model_dump(exclude_unset=True) | changes)


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def whole(data, split):
    part = data.split(split)
    return part, part.rows(np.arange(len(part)))


@pytest.fixture
def folder_plan(make_folder):
    """A plan on three classes of 9x9 colour images, 12 to train on and 5 to test on in each."""
    root = make_folder(dict.fromkeys("abc", 12), dict.fromkeys("abc", 5))
    return plan_of(root, source="folder", dist="exp", mu=0.25)


def test_the_same_seed_gives_the_same_folder_byte_for_byte(folder_plan, tmp_path, lines):
    first = build_dataset(folder_plan, tmp_path / "one", lines.append)
    second = build_dataset(folder_plan, tmp_path / "deeper" / "two", lines.append)
    assert contents(first.path) == contents(second.path)
    assert first.sha256 == second.sha256
    assert lines[1::2] == ["train: 21 of 36 images kept: 15 left out by --dist exp, --mu 0.25"] * 2


def test_another_seed_takes_other_images(folder_plan, tmp_path, lines):
    first = build_dataset(folder_plan, tmp_path / "one", lines.append)
    other = build_dataset(but(folder_plan, seed=1), tmp_path / "two", lines.append)
    assert first.counts("train") == other.counts("train") == [12, 6, 3]
    assert not np.array_equal(first.split("train").source_index, other.split("train").source_index)
    assert first.sha256 != other.sha256


def test_the_manifest_names_neither_time_nor_place(folder_plan, tmp_path, lines):
    data = build_dataset(folder_plan, tmp_path / "out", lines.append)
    text = (data.path / "manifest.json").read_text()
    assert str(tmp_path) not in text and "version" not in text and "time" not in text
    assert json.loads(text)["mu"] == 0.25 and json.loads(text)["n_max"] == 12


@pytest.mark.parametrize("grey", [False, True])
@pytest.mark.parametrize("side", [9, 27])
def test_images_labels_and_places_are_those_of_the_source(make_folder, tmp_path, lines, grey, side):
    root = make_folder({"a": 8, "b": 8}, {"a": 3, "b": 3}, (side, side), grey, val={"a": 1, "b": 2})
    plan = plan_of(root, source="folder", dist="exp", mu=0.5)
    data = build_dataset(plan, tmp_path / "out", lines.append)
    assert (data.channels, data.image_size) == (1 if grey else 3, side)
    assert data.splits == ["train", "val", "test", "test_longtail"]
    assert data.counts("val") == [1, 2] and data.counts("test") == [3, 3]
    source = open_source(plan)
    for name in data.splits:
        split, images = whole(data, name)
        origin = source.splits[name.removesuffix("_longtail")]
        assert len(set(split.source_index.tolist())) == len(split)
        for image, label, place in zip(images, split.labels, split.source_index, strict=True):
            assert np.array_equal(image, origin.read(place)) and label == origin.labels[place]


def test_test_and_val_keep_the_sources_order_and_the_longtail_is_part_of_test(make_npz, tmp_path, lines):
    data = build_dataset(plan_of(make_npz(), source="npz", dist="exp"), tmp_path / "out", lines.append)
    assert data.split("test").source_index.tolist() == list(range(12))
    assert data.split("val").source_index.tolist() == list(range(8))
    assert data.counts("train") == [10, 4, 2, 1] and data.counts("test_longtail") == [3, 1, 1, 1]


def test_mean_and_std_are_those_of_the_training_pixels(folder_plan, tmp_path, lines):
    data = build_dataset(folder_plan, tmp_path / "out", lines.append)
    pixels = whole(data, "train")[1].reshape(-1, 3) / 255
    assert data.mean == [round(value, 6) for value in pixels.mean(axis=0)]
    assert data.std == [round(value, 6) for value in pixels.std(axis=0)]


def test_a_constant_channel_can_be_normalised(tmp_path, lines):
    root = tmp_path / "flat"
    for split in ("train", "test"):
        for name in ("a", "b"):
            (root / split / name).mkdir(parents=True)
            Image.new("L", (9, 9), 51).save(root / split / name / "0.png")
    data = build_dataset(plan_of(source="folder", root=root), tmp_path / "out", lines.append)
    assert (data.mean, data.std) == ([0.2], [1.0])


def test_digits_need_no_root_and_hold_no_image_twice(tmp_path, lines):
    data = build_dataset(plan_of(), tmp_path / "digits", lines.append)
    assert (data.manifest.source, data.manifest.mirrorable, data.num_classes) == ("digits", False, 10)
    assert sum(data.counts("test")) == 355 and sum(data.counts("train")) == 591
    train, test = data.split("train").source_index.tolist(), data.split("test").source_index.tolist()
    assert len({*train, *test}) == len(train) + len(test)
    assert data.sha256 == "0320d0327619626963c81364836ae338cd5ac507fda16dac8308df535a3c17a6"
    assert lines == [
        "test: 355 of 1797 images, drawn from each class by the seed (--test-share 0.2)",
        "train: 591 of 1442 images kept: 851 left out by --dist exp, --mu 0.1",
        "classes with fewer images than their share keep what they have: '0' 143 of 147",
    ]
    assert [item.model_dump() for item in data.manifest.short_classes] == [{"name": "0", "share": 147, "kept": 143}]


def test_max_per_class_limits_training_images_only(folder_plan, tmp_path, lines):
    plan = plan_of(folder_plan.root, source="folder", dist="balance", max_per_class=4)
    data = build_dataset(plan, tmp_path / "out", lines.append)
    assert data.counts("train") == [4, 4, 4] and data.counts("test") == [5, 5, 5]
    assert data.manifest.mu is None and data.manifest.n_max == 4


def test_shards_smaller_than_a_split_are_read_across(folder_plan, tmp_path, lines):
    one = build_dataset(folder_plan, tmp_path / "one", lines.append)
    row = 9 * 9 * 3 + 16
    many = build_dataset(but(folder_plan, shard_mb=4 * row / 2**20), tmp_path / "many", lines.append)
    assert [shard.rows for shard in many.manifest.splits["train"].shards] == [4, 4, 4, 4, 4, 1]
    places = np.random.default_rng(0).permutation(21)
    assert np.array_equal(one.split("train").rows(places), many.split("train").rows(places))
    assert np.array_equal(one.split("train").labels, many.split("train").labels)


def test_a_split_far_larger_than_a_shard_is_streamed(monkeypatch, tmp_path, lines):
    class Endless(SourceSplit):
        def read(self, index):
            return np.full((64, 64, 3), index % 256, np.uint8)

    splits = {"train": Endless(np.arange(4000) % 2), "test": Endless(np.arange(500) % 2)}
    source = Source("folder", ["a", "b"], 3, 64, True, splits)
    monkeypatch.setattr(build, "open_source", lambda *_: source)
    monkeypatch.setattr(build, "CHUNK_BYTES", 2**20)
    tracemalloc.start()
    data = build_dataset(plan_of(shard_mb=1, mu=1.0), tmp_path / "out", lines.append)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    total = sum(shard.bytes for shard in data.manifest.splits["train"].shards)
    assert total > 45 * 2**20 and peak < 8 * 2**20


@pytest.fixture
def damaged_plan(folder_plan):
    """Class a has lost 3 of its 12 training images, and a test image; the distribution takes all of a."""
    folder = Path(folder_plan.root) / "train" / "a"
    (folder / "0003.png").write_bytes(b"")
    (folder / "0005.png").write_bytes((folder / "0005.png").read_bytes()[:60])
    (folder / "0007.png").write_text("not an image")
    (Path(folder_plan.root) / "test" / "b" / "0001.png").write_bytes(b"")
    return folder_plan


def test_a_bad_image_fails_the_build_with_its_name_and_the_mend(damaged_plan, tmp_path, lines):
    with pytest.raises(InputError, match=r"train/a/000[357]\.png: .*--set on_bad=skip"):
        build_dataset(damaged_plan, tmp_path / "out", lines.append)
    assert [path.name for path in tmp_path.iterdir()] == ["images"]


def test_bad_images_are_left_out_on_request_and_counted(damaged_plan, tmp_path, lines):
    plan = but(damaged_plan, on_bad="skip")
    data = build_dataset(plan, tmp_path / "out", lines.append)
    assert data.counts("train") == [3, 12, 6] and data.counts("test") == [5, 4, 5]
    assert data.manifest.skipped.count == 4
    assert set(data.manifest.skipped.files) == {
        *(f"train/a/000{n}.png" for n in (3, 5, 7)),
        "test/b/0001.png",
    }
    assert data.manifest.short_classes == [] and data.manifest.n_max == 12
    assert len([line for line in lines if line.startswith("warning: left out ")]) == 5


def test_the_next_image_in_line_replaces_a_bad_one(damaged_plan, tmp_path, lines):
    plan = but(damaged_plan, on_bad="skip", max_per_class=9, mu=1.0)
    data = build_dataset(plan, tmp_path / "out", lines.append)
    assert data.counts("train") == [9, 9, 9] and data.manifest.short_classes == []


def test_many_bad_images_are_named_up_to_a_limit(folder_plan, tmp_path, lines):
    for number in range(100, 130):
        (Path(folder_plan.root) / "test" / "a" / f"{number}.png").write_bytes(b"")
    data = build_dataset(but(folder_plan, on_bad="skip"), tmp_path / "out", lines.append)
    assert (data.manifest.skipped.count, len(data.manifest.skipped.files)) == (30, 20)
    assert len([line for line in lines if line.startswith("warning: left out test/a/")]) == 20
    assert "warning: left out 30 images that could not be read" in lines


def test_a_class_without_a_readable_image_cannot_be_skipped(folder_plan, tmp_path, lines):
    for path in (Path(folder_plan.root) / "test" / "b").iterdir():
        path.write_bytes(b"")
    with pytest.raises(InputError, match="class 'b' has no readable test images"):
        build_dataset(but(folder_plan, on_bad="skip"), tmp_path / "out", lines.append)


@pytest.mark.parametrize("split", ["train", "test"])
def test_an_empty_class_folder_is_named(folder_plan, tmp_path, lines, split):
    for path in (Path(folder_plan.root) / split / "c").iterdir():
        path.unlink()
    with pytest.raises(InputError, match=f"class 'c' has no {split} images"):
        build_dataset(folder_plan, tmp_path / "out", lines.append)


def test_an_output_that_exists_is_left_alone(folder_plan, tmp_path, lines):
    (tmp_path / "out").mkdir()
    with pytest.raises(OutputExistsError, match="out: exists"):
        build_dataset(folder_plan, tmp_path / "out", lines.append)
    assert list((tmp_path / "out").iterdir()) == []


def test_a_factor_beside_a_source_that_is_taken_as_it_is_is_refused(tmp_path):
    with pytest.raises(UsageError, match=r"--mu: .*the source 'folder' is taken as it is \(natural\).*leave --mu out"):
        plan_of(tmp_path, source="folder", mu=0.1).resolve_plugins()
    plain = plan_of(tmp_path, source="folder").resolve_plugins()
    assert plain.refused() == {"mu"}, "--show-settings would print what --config refuses"


def test_the_same_data_set_that_is_there_is_no_error_and_another_one_is(folder_plan, tmp_path, lines):
    out = tmp_path / "out"
    first, before = build_dataset(folder_plan, out, lines.append), contents(out)
    again = build_dataset(folder_plan, out, lines.append)
    assert again.sha256 == first.sha256 and contents(out) == before
    assert lines[-1] == f"{out}: is there already, with the same contents"
    for change in ({"seed": 1}, {"mu": 0.5}, {"max_per_class": 8}, {"dist": "step"}):
        with pytest.raises(OutputExistsError, match="out: exists: give another folder with -o, or --force"):
            build_dataset(but(folder_plan, **change), out, lines.append)
    Image.new("RGB", (9, 9)).save(Path(folder_plan.root) / "test" / "a" / "0000.png")
    with pytest.raises(OutputExistsError, match="out: exists"):
        build_dataset(folder_plan, out, lines.append)
    assert contents(out) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["images", "out"]


def test_a_class_that_would_get_no_images_is_named(make_folder, tmp_path, lines):
    root = make_folder({"cat": 20, "dog": 5, "eel": 4}, dict.fromkeys(("cat", "dog", "eel"), 2))
    with pytest.raises(InputError, match=r"class 'eel' would get no images of 20 .*mu 0.01\): raise --mu or"):
        build_dataset(plan_of(root, source="folder", dist="exp", mu=0.01), tmp_path / "out", lines.append)


def test_an_output_that_appears_meanwhile_is_left_alone(folder_plan, tmp_path, monkeypatch):
    output = tmp_path / "out"

    def somebody_else(line):
        output.mkdir(exist_ok=True)
        (output / "theirs").touch()

    (Path(folder_plan.root) / "test" / "b" / "0001.png").write_bytes(b"")
    with pytest.raises(OutputExistsError, match="out: exists"):
        build_dataset(but(folder_plan, on_bad="skip"), output, somebody_else)
    assert [path.name for path in output.iterdir()] == ["theirs"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["images", "out"]


def test_files_get_the_permissions_of_the_umask(folder_plan, tmp_path, lines):
    old = os.umask(0o022)
    try:
        data = build_dataset(folder_plan, tmp_path / "out", lines.append)
    finally:
        os.umask(old)
    modes = {stat.S_IMODE(path.stat().st_mode) for path in data.path.iterdir()}
    assert modes == {0o644} and stat.S_IMODE(data.path.stat().st_mode) == 0o755


def test_the_profile_follows_what_can_be_read(make_folder, tmp_path, lines):
    root = make_folder({"a": 20, "b": 20, "c": 20}, dict.fromkeys("abc", 2))
    plan = plan_of(root, source="folder", dist="exp", mu=0.1, on_bad="skip")
    cut_short = (root / "train" / "a" / "0000.png").read_bytes()[:60]
    for name in "abc":
        for number in range(20):
            (root / "train" / name / f"{number}.txt").write_text("0 0.5 0.5 1 1")
        for number in range(15):
            (root / "train" / name / f"bad{number}.png").write_bytes(cut_short)
    data = build_dataset(plan, tmp_path / "out", lines.append)
    assert data.counts("train") == [20, 6, 2] and data.manifest.skipped.count == 45


def test_the_largest_class_is_the_head_if_classes_differ_by_nature(make_folder, tmp_path, lines):
    root = make_folder({"a": 4, "b": 9, "c": 16}, dict.fromkeys("abc", 2))
    plan = plan_of(root, source="folder", dist="exp", mu=0.25)
    data = build_dataset(plan, tmp_path / "exp", lines.append)
    assert data.class_names == ["a", "b", "c"] and data.counts("train") == [4, 8, 16]
    step = build_dataset(but(plan, dist="step", mu=0.5), tmp_path / "step", lines.append)
    assert step.counts("train") == [4, 9, 16]


def test_auto_is_the_sources_own_distribution(make_folder, make_npz, tmp_path, lines):
    folder = make_folder({"a": 4, "b": 9}, {"a": 1, "b": 1})
    for name, root, dist in (("digits", "", "exp"), ("folder", folder, "natural"), ("npz", make_npz(), "natural")):
        plan = plan_of(root, source=name)
        assert (plan.dist, plan.resolve_plugins().dist) == ("auto", dist)
        assert build_dataset(plan, tmp_path / name, lines.append).manifest.dist == dist
    assert plan_of(source="digits", dist="step").resolve_plugins().dist == "step"


def test_a_limit_is_said_with_what_it_leaves_out(make_folder, tmp_path, lines):
    root = make_folder({"a": 4, "b": 9}, {"a": 1, "b": 1})
    build_dataset(plan_of(root, source="folder", max_per_class=5), tmp_path / "out", lines.append)
    assert "train: 7 of 13 images kept: 6 left out by --dist natural, --max-per-class 5" in lines


def test_a_class_of_one_training_image_is_said_with_advice_that_fits(make_folder, tmp_path, lines):
    root = make_folder({"a": 20, "b": 10, "c": 1}, dict.fromkeys("abc", 2))
    build_dataset(plan_of(root, source="folder"), tmp_path / "natural", lines.append)
    said = [line for line in lines if "1 training image" in line]
    assert len(said) == 1 and "class 'c':" in said[0] and "add images" in said[0]
    lines.clear()
    build_dataset(plan_of(root, source="folder", dist="exp", mu=0.05), tmp_path / "exp", lines.append)
    assert "raise --mu" not in "".join(lines), "class c has no more images to give"
    lines.clear()
    two = make_folder({"a": 20, "b": 10}, dict.fromkeys("ab", 2), name="two")
    build_dataset(plan_of(two, source="folder", max_per_class=2), tmp_path / "limited", lines.append)
    assert any("class 'b':" in line and line.endswith("needs 2: raise --max-per-class") for line in lines)
    lines.clear()
    build_dataset(plan_of(two, source="folder", dist="exp", mu=0.05), tmp_path / "out", lines.append)
    assert any("class 'b':" in line and "raise --mu or --max-per-class" in line for line in lines)


def count_of_images_in_memory(monkeypatch, root, output):
    """The most images of a folder that were alive at one time while its data set was made."""
    alive, most = set(), 0
    read = FileSplit.read

    def counted(self, index):
        nonlocal most
        image = read(self, index)
        alive.add(id(image))
        weakref.finalize(image, alive.discard, id(image))
        most = max(most, len(alive))
        return image

    monkeypatch.setattr(FileSplit, "read", counted)
    build_dataset(plan_of(root, source="folder"), output, lambda line: None)
    monkeypatch.undo()
    return most


def test_the_images_of_a_folder_are_held_one_by_one(make_folder, monkeypatch, tmp_path):
    few = make_folder({"a": 5, "b": 5}, {"a": 2, "b": 2}, name="few")
    many = make_folder({"a": 100, "b": 100}, {"a": 20, "b": 20}, name="many")
    numbers = [count_of_images_in_memory(monkeypatch, root, tmp_path / f"{root.name}-out") for root in (few, many)]
    assert numbers[0] == numbers[1] <= 3


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ({"seed": -1}, "--seed"),
        ({"seed": 2**40}, "--seed"),
        ({"mu": 0.0}, "--mu"),
        ({"mu": 0.1, "dist": "natural"}, "--mu: is for --dist exp and step, not for natural: leave it out"),
        ({"mu": 0.1, "dist": "balance"}, "--mu: is for --dist exp and step, not for balance: leave it out"),
        ({"dist": "zipf"}, "--dist.*'natural'"),
        ({"max_per_class": -1}, "--max-per-class"),
        ({"image_size": 4}, "--image-size"),
        ({"image_size": 100_000}, "--image-size"),
        ({"image_size": "large"}, "--image-size"),
        ({"test_share": 1.0}, "--test-share"),
        ({"val_share": -0.1}, "--val-share"),
        ({"root": "x\udcff"}, "--root: is not named in UTF-8"),
        ({"source": "digit"}, "--source: unknown source 'digit'.*Did you mean 'digits'.*folder, list, npz, idx"),
    ],
)
def test_a_setting_out_of_range_names_its_flag(flags, words):
    with pytest.raises(UsageError, match=words):
        load_settings(MakeDatasetSettings, flags=flags)


@pytest.mark.parametrize("text", ["on_bad=ignore", "shard_mb=0", "shard_mb=5000"])
def test_a_setting_without_a_flag_is_named_too(text):
    with pytest.raises(UsageError, match=text.partition("=")[0]):
        load_settings(MakeDatasetSettings, sets=[text])


def test_retinamnist_keeps_its_natural_profile(tmp_path, lines):
    if not RETINA.exists():
        pytest.skip(f"{RETINA} is not here: it is no part of the repository")
    plan = plan_of(source="npz", root=RETINA, dist="natural")
    data = build_dataset(plan, tmp_path / "out", lines.append)
    assert data.counts("train") == [486, 128, 206, 194, 66]
    assert data.counts("val") == [54, 12, 28, 20, 6]
    assert data.counts("test") == [174, 46, 92, 68, 20]
    assert data.counts("test_longtail") == [174, 45, 73, 68, 20]
    assert (data.channels, data.image_size, data.manifest.mu) == (3, 28, None)
    assert DataSet.open(data.path).sha256 == data.sha256
