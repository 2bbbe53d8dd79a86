import copy
import hashlib
import json
import sys

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from ssfnas_cli.artifacts.dataset import DataSet, Manifest, Skipped, Split, SplitInfo
from ssfnas_cli.artifacts.files import write_json
from ssfnas_cli.artifacts.shards import ShardWriter
from ssfnas_cli.errors import InputError

SHAPE = (9, 9, 3)


def images_of(num, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (num, *SHAPE), dtype=np.uint8)


def write_split(folder, name, images, labels, shard_bytes=2**20):
    writer = ShardWriter(folder, name, images.shape[1:], shard_bytes)
    for place, (image, label) in enumerate(zip(images, labels, strict=True)):
        writer.add(image, label, 10 * place)
    return SplitInfo(counts=np.bincount(labels, minlength=2).tolist(), shards=writer.close())


@pytest.fixture
def folder(tmp_path):
    """A data set of two classes: 10 images to train on in three shards, 4 to test on."""
    path = tmp_path / "data"
    path.mkdir()
    row = int(np.prod(SHAPE)) + 16
    splits = {
        "train": write_split(path, "train", images_of(10), [0, 1] * 5, 4 * row),
        "test": write_split(path, "test", images_of(4), [0, 1, 1, 1]),
        "test_longtail": write_split(path, "test_longtail", images_of(2), [0, 1]),
    }
    manifest = Manifest(
        source="folder",
        dist="exp",
        mu=0.5,
        n_max=5,
        seed=0,
        class_names=["cat", "dog"],
        channels=3,
        image_size=9,
        mean=[0.5] * 3,
        std=[0.25] * 3,
        mirrorable=True,
        short_classes=[],
        skipped=Skipped(count=0, files=[]),
        splits=splits,
    )
    write_json(path / "manifest.json", manifest.to_value())
    return path


@pytest.fixture
def edit(folder):
    """Changes the manifest: a function that edits the parsed JSON in place."""

    def change(function):
        value = json.loads((folder / "manifest.json").read_text())
        function(value)
        (folder / "manifest.json").write_text(json.dumps(value))

    return change


def first_shard(value):
    return value["splits"]["train"]["shards"][0]


def refused(folder, words, split=None):
    """The one-line error that opening (and reading) the data set gives."""
    with pytest.raises(InputError, match=words) as caught:
        data = DataSet.open(folder)
        if split:
            data.split(split).rows([0])
    assert "\n" not in str(caught.value)


# What is read back


def test_what_was_written_is_read_back(folder):
    data = DataSet.open(folder)
    assert (data.class_names, data.num_classes, data.channels, data.image_size) == (["cat", "dog"], 2, 3, 9)
    assert (data.mean, data.std) == ([0.5] * 3, [0.25] * 3)
    assert data.splits == ["train", "test", "test_longtail"]
    assert data.sha256 == hashlib.sha256((folder / "manifest.json").read_bytes()).hexdigest()
    assert data.counts("train") == [5, 5] and data.counts("val") == []
    split = data.split("train")
    assert len(split) == 10 and split.counts == [5, 5]
    assert split.labels.dtype == np.int64 and split.labels.tolist() == [0, 1] * 5
    assert split.source_index.tolist() == list(range(0, 100, 10))
    assert np.array_equal(split.rows(np.arange(10)), images_of(10))
    data.verify()


def test_rows_come_in_the_order_asked_across_shards(folder):
    split = DataSet.open(folder).split("train")
    places = [9, 0, 4, 4, 3, 8]
    assert np.array_equal(split.rows(places), images_of(10)[places])
    assert split.rows([]).shape == (0, *SHAPE)


def test_rows_are_a_copy_that_can_be_written_to(folder):
    split = DataSet.open(folder).split("train")
    split.rows([0])[:] = 0
    assert np.array_equal(split.rows([0])[0], images_of(10)[0])


@pytest.mark.parametrize("place", [-1, 10])
def test_a_row_outside_the_split_is_an_index_error(folder, place):
    with pytest.raises(IndexError, match="a split of 10"):
        DataSet.open(folder).split("train").rows([0, place])


def test_a_split_in_use_can_be_pickled_without_its_images(folder):
    split = DataSet.open(folder).split("train")
    split.rows(np.arange(10))
    assert split.__getstate__()["_maps"] == {}
    twin = copy.deepcopy(split)  # the protocol by which a loader's worker processes are given it
    assert np.array_equal(twin.rows([7, 0]), images_of(10)[[7, 0]])


def test_shards_are_safetensors_that_others_can_read(folder):
    tensors = load_file(folder / "train-00002.safetensors")
    assert np.array_equal(tensors["images"], images_of(10)[8:])
    assert tensors["labels"].tolist() == [0, 1] and tensors["source_index"].tolist() == [80, 90]


def test_shards_that_safetensors_wrote_itself_are_read(folder, edit):
    path = folder / "test-00000.safetensors"
    save_file(load_file(path), path, metadata={"by": "somebody else"})
    data = path.read_bytes()

    def rename(value):
        shard = value["splits"]["test"]["shards"][0]
        shard |= {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}

    edit(rename)
    opened = DataSet.open(folder)
    opened.verify()
    assert np.array_equal(opened.split("test").rows([3, 1]), images_of(4)[[3, 1]])


def test_a_shard_holds_at_least_one_image_and_a_writer_no_more_than_it_was_given(tmp_path):
    info = write_split(tmp_path, "train", images_of(3), [0, 1, 1], shard_bytes=1)
    assert [shard.rows for shard in info.shards] == [1, 1, 1]
    assert ShardWriter(tmp_path, "empty", SHAPE).close() == []


def test_rows_are_read_through_maps_that_are_made_once(tmp_path):
    """Which is what makes random rows quick."""
    images = np.zeros((5000, 32, 32, 3), np.uint8)
    info = write_split(tmp_path, "train", images, [0, 1] * 2500, shard_bytes=2**20)
    split = Split(tmp_path, info, (32, 32, 3))
    split.rows(np.arange(5000))
    opened = []
    sys.addaudithook(lambda event, arguments: opened.append(arguments) if event in ("open", "mmap.__new__") else None)
    for seed in range(20):
        split.rows(np.random.default_rng(seed).integers(0, 5000, 64))
    assert not [arguments for arguments in opened if str(tmp_path) in str(arguments[0]) or arguments[0] == -1]
    mapped = len(opened)
    split.unmap()
    split.rows([0])
    assert len(opened) > mapped, "the hook sees what is opened"


# What is refused


def test_a_split_that_is_not_there_lists_the_others(folder):
    with pytest.raises(InputError, match=r"no split 'val'. Available: train, test, test_longtail"):
        DataSet.open(folder).split("val")


def test_a_missing_shard_is_named(folder):
    (folder / "train-00001.safetensors").unlink()
    refused(folder, r"train-00001\.safetensors: is missing")


def test_a_truncated_shard_is_named(folder):
    path = folder / "train-00001.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    refused(folder, r"train-00001\.safetensors: has .* bytes, the manifest says")


def test_a_flipped_bit_is_found_by_verify(folder):
    path = folder / "train-00001.safetensors"
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(data)
    opened = DataSet.open(folder)
    with pytest.raises(InputError, match=r"train-00001\.safetensors: is damaged"):
        opened.verify()


def test_a_shard_that_vanishes_or_shrinks_in_use_is_named(folder):
    opened = DataSet.open(folder)
    split = opened.split("train")
    (folder / "train-00000.safetensors").write_bytes(b"short")
    (folder / "train-00001.safetensors").unlink()
    for place in (0, 5):
        with pytest.raises(InputError, match=r"train-0000\d\.safetensors"):
            split.rows([place])
    with pytest.raises(InputError, match=r"train-0000\d\.safetensors"):
        opened.verify()
    with pytest.raises(InputError, match=r"train-0000\d\.safetensors"):
        opened.split("train")


def lie(path, change):
    """Rewrite a shard's header, in the same number of bytes."""
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    change(header)
    text = json.dumps(header, separators=(",", ":")).encode()
    assert len(text) <= length + 64
    text = text.ljust(length) if len(text) <= length else text
    path.write_bytes((len(text).to_bytes(8, "little") + text + data[8 + length :])[: len(data)])


@pytest.mark.parametrize(
    "change",
    [
        lambda header: header["images"].update(dtype="I8"),
        lambda header: header["images"].update(shape=[4, 9, 27]),
        lambda header: header["images"].update(shape=[5, *SHAPE]),
        lambda header: header["images"].update(data_offsets=[64, 64 + 10**9]),
        lambda header: header["images"].update(data_offsets=[900, 900 + 4 * 243]),
        lambda header: header["labels"].update(data_offsets=[-8, 24]),
        lambda header: header["labels"].update(data_offsets=[0.5, 32.5]),
        lambda header: header["labels"].update(data_offsets=None),
        lambda header: header.pop("source_index"),
        lambda header: header.update(labels=3),
    ],
)
def test_a_header_that_lies_is_refused(folder, change):
    lie(folder / "train-00000.safetensors", change)
    refused(folder, r"train-00000\.safetensors: is damaged", split="train")


@pytest.mark.parametrize("length", [0, 1, 2**16 + 1, 2**63])
def test_a_header_of_absurd_length_is_refused(folder, length):
    path = folder / "train-00000.safetensors"
    path.write_bytes(length.to_bytes(8, "little") + path.read_bytes()[8:])
    refused(folder, r"train-00000\.safetensors: is damaged or no safetensors file", split="train")


def test_a_header_that_is_not_json_is_refused(folder):
    path = folder / "train-00000.safetensors"
    data = path.read_bytes()
    path.write_bytes(data[:8] + b"[" * 100 + data[108:])
    refused(folder, r"train-00000\.safetensors: header", split="train")


def test_labels_that_contradict_the_manifest_are_refused(folder):
    path = folder / "test-00000.safetensors"
    for label, words in ((0, "class counts"), (7, "a label is not in 0 to 1"), (2**63 - 1, "a label")):
        data = path.read_bytes()
        start = 8 + int.from_bytes(data[:8], "little")
        path.write_bytes(data[: start + 8] + label.to_bytes(8, "little") + data[start + 16 :])
        refused(folder, words, split="test")


@pytest.mark.parametrize("name", ["../train-00000.safetensors", "/etc/passwd", "..", "", "a\\b", "sub/x", "x\0"])
def test_a_shard_name_that_leads_out_of_the_folder_is_refused(folder, edit, name):
    edit(lambda value: first_shard(value).update(file=name))
    refused(folder, "leads out of the folder")


def test_a_link_that_leads_out_of_the_folder_is_refused(folder, tmp_path):
    path = folder / "train-00000.safetensors"
    path.rename(tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    refused(folder, r"train-00000\.safetensors: is a link that leads out")


def test_a_data_set_reached_through_a_link_is_read(folder, tmp_path):
    (tmp_path / "link").symlink_to(folder)
    assert len(DataSet.open(tmp_path / "link").split("train")) == 10


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda value: value.update(schema="ssfnas.dataset/2"), "newer than this ssfnas reads.*upgrade"),
        (lambda value: value.update(schema="other"), "is not a data set's manifest"),
        (lambda value: value.pop("schema"), "is not a data set's manifest"),
        (lambda value: value.update(extra=1), "extra: "),
        (lambda value: value.update(seed="0"), "seed: "),
        (lambda value: value.update(seed=True), "seed: "),
        (lambda value: value.update(channels=2), "channels: "),
        (lambda value: value.update(mean=[0.5]), "one number per channel"),
        (lambda value: value.update(std=[0.0] * 3), "std.0: "),
        (lambda value: value.update(class_names=["cat"]), "differ in number"),
        (lambda value: value["splits"].pop("test"), "has no test split"),
        (lambda value: value["splits"].update(extra=value["splits"]["test"]), "extra"),
        (lambda value: value["splits"]["train"].update(counts=[5, 6]), "do not add up"),
        (lambda value: first_shard(value).update(rows=-1), "rows: "),
        (lambda value: first_shard(value).update(sha256="0"), "sha256: "),
        (lambda value: first_shard(value).update(file="test-00000.safetensors"), "listed twice"),
    ],
)
def test_a_manifest_that_does_not_fit_names_the_field(folder, edit, change, words):
    edit(change)
    refused(folder, rf"manifest\.json: .*{words}")


def test_a_manifest_with_duplicate_keys_or_no_json_is_refused(folder):
    path = folder / "manifest.json"
    text = path.read_text()
    for data, words in (
        (text.replace('"seed": 0', '"seed": 0, "seed": 1'), "'seed' stands twice"),
        (text.replace("0.25", "NaN", 1), "NaN"),
        (text[: len(text) // 2], "is not whole JSON"),
        ("", "is empty"),
        ("[]", "is not a data set's manifest"),
        ("[" * 100_000, "nested too deeply|not whole JSON"),
    ):
        path.write_text(data)
        refused(folder, rf"manifest\.json: .*({words})")


def test_what_is_no_data_set_is_called_by_its_name(folder, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    refused(tmp_path / "nowhere", "nowhere: no such data set folder")
    refused(run, r"run: is a folder without manifest\.json, not a data set")
    (run / "config.json").write_text("{}")
    refused(run, "run: is a run folder")
    (tmp_path / "genotype.json").write_text('{"schema": "ssfnas.genotype/1"}')
    refused(tmp_path / "genotype.json", "is a genotype, not a data set folder")
    refused(folder / "train-00000.safetensors", "is a file, not a data set folder")
    refused(folder / "manifest.json", "give the folder that holds it")


def test_a_split_can_be_read_after_its_files_were_unmapped(folder):
    split = DataSet.open(folder).split("train")
    first = split.rows([5])
    split.unmap()
    assert np.array_equal(split.rows([5]), first)
