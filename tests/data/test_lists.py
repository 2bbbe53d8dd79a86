"""Image files that list files name: how lists are written, what is said of them, and what is refused."""

import os

import numpy as np
import pytest
from sources_support import opened, save

from ssfnas_cli.data.build import build_dataset
from ssfnas_cli.errors import InputError, UsageError
from ssfnas_cli.settings import MakeDatasetSettings, load_settings


@pytest.fixture
def root(tmp_path):
    """`images/{0..5}.png`, each of one grey, and a name with a blank and a comma."""
    for number in range(6):
        save(tmp_path / "images" / f"{number}.png", np.full((9, 9), 10 * number, np.uint8))
    save(tmp_path / "images" / "of the sea" / "one, two.png", np.full((9, 9), 99, np.uint8))
    return tmp_path / "images"


def write(root, **lists):
    for name, text in lists.items():
        data = text if isinstance(text, bytes) else text.encode("utf-8", "surrogateescape")
        (root / f"{name}.txt").write_bytes(data)
    return root


def greys(split):
    return [int(split.read(index)[0, 0, 0]) for index in range(len(split))]


def entries(root):
    """Labels and greys of the train split, in the order of the list."""
    split = opened("list", root).splits["train"]
    return list(zip(split.labels.tolist(), greys(split), strict=True))


# How lists are written


def test_each_split_has_a_list_and_its_order(root):
    write(root, train="3.png 1\n0.png 0\n4.png 1\n", val="1.png 0\n", test="2.png 0\n5.png 1\n")
    source = opened("list", root)
    assert (source.class_names, source.channels, source.image_size) == (["0", "1"], 1, 9)
    assert {name: split.labels.tolist() for name, split in source.splits.items()} == {
        "train": [1, 0, 1],
        "val": [0],
        "test": [0, 1],
    }
    assert greys(source.splits["train"]) == [30, 0, 40] and greys(source.splits["test"]) == [20, 50]
    assert source.mirrorable and source.splits["train"].name(0) == "3.png"
    assert "3 images in" in source.notes[0] and "train.txt" in source.notes[0]


@pytest.mark.parametrize(
    "text",
    [
        "3.png 1\n0.png 0\n",
        "3.png 1\r\n0.png 0\r\n",
        "3.png 1\n0.png 0",
        "\ufeff3.png 1\n0.png 0\n",
        "3.png 1\n0.png 0\n".encode("utf-16"),
        "# of 2020\n\n3.png 1\n   \n#\n 0.png 0 \n",
        "3.png,1\n0.png,0\n",
        "3.png, 1\n0.png ,0\n",
        "3.png\t1\n0.png;0\n",
        "image,label\n3.png,1\n0.png,0\n",
        'filename,class\n"3.png","1"\n"0.png",0\n',
        "./3.png 1\nof the sea/..//0.png +0\n",
        "of the sea\\..\\3.png 1\n.\\0.png 00\n",
    ],
)
def test_the_same_list_in_many_hands(root, text):
    assert entries(write(root, train=text)) == [(1, 30), (0, 0)]


def test_paths_may_hold_blanks_commas_and_bytes_that_are_no_text(root):
    odd = os.fsdecode(b"\xff#.png")
    save(root / odd, np.full((9, 9), 77, np.uint8))
    text = f'of the sea/one, two.png 0\n"of the sea/one, two.png",0\n./{odd} 1\n'
    assert entries(write(root, train=text)) == [(0, 99), (1, 77)]


def test_a_backslash_may_be_part_of_a_name(root):
    save(root / "a\\b.png", np.full((9, 9), 55, np.uint8))
    assert entries(write(root, train="a\\b.png 0\n")) == [(0, 55)]


def test_absolute_paths_below_the_root_are_taken(root, tmp_path):
    (tmp_path / "link").symlink_to(root)
    write(root, train=f"{root}/3.png 1\n{root.resolve()}/0.png 0\n{tmp_path}/link/4.png 1\n")
    assert entries(tmp_path / "link") == [(1, 30), (0, 0), (1, 40)]


# Which files are the lists, and what the classes are called


def test_lists_are_known_by_the_split_in_their_names(root):
    write(
        root, ImageNet_LT_train="3.png 0\n", ImageNet_LT_test="2.png 0\n", ImageNet_LT_open="x.png 0\n", notes="hello"
    )
    assert list(opened("list", root).splits) == ["train", "test"]
    write(root, train="3.png 0\n")
    with pytest.raises(InputError, match=r"has both ImageNet_LT_train.txt and train.txt for the split train: name one"):
        opened("list", root)


def test_lists_are_named_by_options_from_here_or_from_the_root(root, tmp_path, monkeypatch):
    write(root, train="x.png 7\n", test="y.png 7\n", inside="3.png 0\n4.png 1\n")
    (tmp_path / "here.txt").write_text("0.png 0\n1.png 1\n")
    monkeypatch.chdir(tmp_path)
    source = opened("list", root, train="inside.txt", test="here.txt")
    assert greys(source.splits["train"]) == [30, 40] and greys(source.splits["test"]) == [0, 10]
    assert list(opened("list", root, train="inside.txt").splits) == ["train"], "the others are not looked for"
    with pytest.raises(InputError, match=r"--set source.val=gone.txt: no such file, neither here nor in"):
        opened("list", root, train="inside.txt", val="gone.txt")
    with pytest.raises(UsageError, match=r"--set source.train=FILE"):
        opened("list", root, test="inside.txt")


def test_classes_have_names_and_may_be_counted_from_one(root):
    write(root, train="3.png 2\n0.png 1\n", names="cat\r\ngreat white\r\n\r\n")
    with pytest.raises(InputError, match=r"its labels start at 1 and end at 2.*--set source.first_label=1"):
        opened("list", root)
    source = opened("list", root, first_label=1)
    assert source.class_names == ["1", "2"] and source.splits["train"].labels.tolist() == [1, 0]
    assert opened("list", root, first_label=1, classes="names.txt").class_names == ["cat", "great white"]
    with pytest.raises(InputError, match=r"has a label 2, and names.txt names 2 classes, 0 to 1"):
        opened("list", root, classes="names.txt")
    with pytest.raises(InputError, match=r"has a label 1, and by --set source.first_label=2 none is lower"):
        opened("list", root, first_label=2)


# Splits that are cut, distributions, and images that are there twice


def build(root, output, lines, *sets, **flags):
    settings = load_settings(MakeDatasetSettings, sets=sets, flags={"source": "list", "root": str(root), **flags})
    return build_dataset(settings, output, lines.append)


def many(root, number):
    """Names of further images, each of its own grey."""
    names = [f"more/{place}.png" for place in range(number)]
    for place, name in enumerate(names):
        save(root / name, np.full((9, 9), 100 + place, np.uint8))
    return names


def test_a_list_keeps_its_classes_and_lacking_splits_are_cut(root, tmp_path, lines):
    names = many(root, 30)
    write(root, train="".join(f"{name} {int(place >= 20)}\n" for place, name in enumerate(names)))
    data = build(root, tmp_path / "out", lines, val_share=0.25)
    assert (data.counts("train"), data.counts("val"), data.counts("test")) == ([12, 6], [4, 2], [4, 2])
    assert data.manifest.dist == "natural" and data.manifest.source == "list"
    write(root, test="0.png 0\n1.png 1\n")
    data = build(root, tmp_path / "given", lines, val_share=0.25)
    assert (data.counts("train"), data.counts("val"), data.counts("test")) == ([15, 8], [5, 2], [1, 1])
    assert not [line for line in lines if line.startswith("warning")]


def test_paths_in_two_lists_are_counted_with_one_of_them(root, tmp_path, lines):
    train, test = many(root, 2)
    write(root, train=f"0.png 0\n1.png 0\n2.png 0\n{train} 1\n", val="3.png 0\n1.png 0\n")
    write(root, test=f"./2.png 0\n{test} 1\n1.png 0\n")
    build(root, tmp_path / "out", lines)
    said = [line for line in lines if "paths are in" in line]
    assert len(said) == 3 and said[0].startswith(f"warning: {root / 'val.txt'}: 1 of its 2 paths are in")
    assert said[1].startswith(f"warning: {root / 'test.txt'}: 2 of its 3 paths are in {root / 'train.txt'}, too")
    assert "for example 2.png" in said[1]
    assert "2 of 3 images in test are in train, too, pixel for pixel" in "".join(lines)


def test_a_repeated_line_counts_once_and_a_second_label_is_refused(root, lines, tmp_path):
    write(root, train="0.png 0\n1.png 1\n./0.png 0\n2.png 1\n0.png 0\n")
    source = opened("list", root)
    assert greys(source.splits["train"]) == [0, 10, 20]
    assert source.notes[1].startswith(f"warning: {root / 'train.txt'}: 2 lines repeat an earlier path and label")
    write(root, train="0.png 0\n\n1.png 1\n0.png 1\n")
    with pytest.raises(InputError, match=r"'0.png' has label 0 in line 1 and 1 in line 4: an image has one class"):
        opened("list", root)


# What is wrong with a list


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("0.png 0\n1.png -1\n", "train.txt: line 2: its label -1 is out of range"),
        ("0.png 0\n1.png 9999999999\n", "line 2: its label 9999999999 is out of range"),
        ("0.png 0\n1.png 1.0\n", "line 2: its label '1.0' is no whole number"),
        ("0.png 0\n1.png cat\n", "line 2: its label 'cat' is no whole number"),
        ("0.png cat\n", "line 1: its label 'cat' is no whole number"),
        ("0.png 0\n1.png\n", "line 2: '1.png' is not `path label`"),
        ("0.png 0\nlabel label\n", "line 2: its label 'label' is no whole number"),
        ("0.png 0\n1.png 7\n", "no image has label 1, and the highest label is 7: number the classes without gaps"),
        ("0.png 0\n../x.png 0\n", "line 2: '../x.png' is not below --root"),
        ("a/../../x.png 0\n", "line 1: 'a/../../x.png' is not below --root"),
        ("/etc/x.png 0\n", "line 1: '/etc/x.png' is not below --root"),
        (".. 0\n", "is not below --root"),
        ("", "train.txt: lists no images"),
        ("# nothing\n", "train.txt: lists no images"),
        ("path label\n", "train.txt: lists no images"),
        (b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", "is not `path label`"),
        (b"0" * 100_000, "line 1 is without an end"),
        ("0.png 0\n".encode("utf-16")[:-1], "cannot be read"),
        ("far/0.png 0\nfar/1.png 0\n", r"no image that it lists is below --root .*far/0.png: is missing \(line 1 of"),
        ("0.png 0 1 0\n", r"no image that it lists .*several labels\? One class an image"),
    ],
)
def test_a_list_that_is_wrong_names_the_line(root, text, words):
    with pytest.raises(InputError, match=words) as caught:
        opened("list", write(root, train=text))
    assert "\n" not in str(caught.value)


def test_a_missing_image_is_named_or_left_out(root, tmp_path, lines):
    train, test = many(root, 2)
    write(root, train=f"0.png 0\n1.png 0\n\ngone/x.png 0\n2.png 0\n{train} 1\n", test=f"3.png 0\n{test} 1\n")
    with pytest.raises(InputError, match=r"gone/x.png: is missing \(line 4 of .*train.txt\): mend .*on_bad=skip"):
        build(root, tmp_path / "out", lines)
    data = build(root, tmp_path / "out", lines, "on_bad=skip")
    assert data.counts("train") == [3, 1] and data.manifest.skipped.files == ["gone/x.png"]


def test_a_class_without_training_images_and_an_empty_list(root, tmp_path, lines):
    write(root, train="0.png 0\n1.png 0\n", test="3.png 0\n4.png 1\n")
    with pytest.raises(InputError, match="class '1' has no train images"):
        build(root, tmp_path / "out", lines)
    more = "".join(f"{name} 1\n" for name in many(root, 2))
    write(root, train=f"0.png 0\n1.png 0\n{more}", test="# none yet\n")
    data = build(root, tmp_path / "out", lines)
    assert data.counts("test") == [1, 1] and any(
        "lists no images: the split test is left out" in line for line in lines
    )


def test_a_root_that_holds_no_lists_says_what_is_wanted(root):
    with pytest.raises(InputError, match=r"has no list of training images: source 'list' wants train.txt"):
        opened("list", root)
    with pytest.raises(InputError, match=r"is not a folder: give the one that the paths"):
        opened("list", write(root, train="0.png 0\n") / "train.txt")


def test_a_name_may_end_like_a_label(root):
    save(root / "shot 1.png", np.full((9, 9), 44, np.uint8))
    save(root / "shot", np.full((9, 9), 45, np.uint8), format="PNG")
    assert entries(write(root, train="shot 1.png 0\nshot 1\n")) == [(0, 44), (1, 45)]
