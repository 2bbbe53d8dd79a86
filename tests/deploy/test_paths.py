"""Which files are predicted, in which order."""

import io
import itertools
import os

import pytest
from PIL import Image

from ssfnas_cli.deploy.paths import Named, find_images, read_paths
from ssfnas_cli.errors import InputError


def touch(root, *names):
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def below(root, *arguments, stdin=b""):
    """What is found, with the root taken away."""
    found = find_images([a if a == "-" else str(root / a) for a in arguments], io.BytesIO(stdin))
    return [one._replace(path=one.path.removeprefix(f"{root}/")) for one in found]


def test_a_folder_is_read_to_its_ends_in_the_order_of_names(tmp_path):
    touch(tmp_path, "img/b.png", "img/a/z.JPG", "img/a/deep/x.tif", "img/c.png", "img/a.png", "img/strange")
    touch(tmp_path, "img/.hidden.png", "img/.cache/x.png", "img/@eaDir/t.png", "img/labels.csv", "img/Thumbs.db")
    assert below(tmp_path, "img") == [
        Named("img/a/deep/x.tif"),
        Named("img/a/z.JPG"),
        Named("img/a.png"),
        Named("img/b.png"),
        Named("img/c.png"),
        Named("img/strange", is_found=True),
    ]


def test_arguments_keep_their_order_and_their_form(tmp_path, monkeypatch):
    touch(tmp_path, "b.png", "a.png", "img/c.png", ".named.png")
    monkeypatch.chdir(tmp_path)
    found = find_images(["b.png", "./img", "img/", "nowhere.png", ".named.png", "b.png", "-"], io.BytesIO(b"./a.png\n"))
    paths = ["b.png", "./img/c.png", "img/c.png", "nowhere.png", ".named.png", "b.png", "./a.png"]
    assert list(found) == [Named(path) for path in paths]


def test_a_folder_named_as_an_image_is_a_folder(tmp_path):
    touch(tmp_path, "x.png/inside.png")
    assert below(tmp_path, "x.png") == [Named("x.png/inside.png")]
    touch(tmp_path, "img/y.png/inside.png")
    assert below(tmp_path, "img") == [Named("img/y.png/inside.png")]


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "TIFF", "WEBP", "BMP", "AVIF"])
def test_an_image_in_the_place_of_a_list_is_told(kind):
    content = io.BytesIO()
    Image.new("RGB", (4, 4)).save(content, kind)
    with pytest.raises(InputError, match="an image came, and a list of paths is expected"):
        list(read_paths(io.BytesIO(content.getvalue())))
    assert list(read_paths(io.BytesIO(b"II.png\nGIF8.gif\nBM-4.bmp\nRIFF.webp\nMM"))) == [
        "II.png",
        "GIF8.gif",
        "BM-4.bmp",
        "RIFF.webp",
        "MM",
    ]


def test_a_folder_without_images_is_told(tmp_path):
    touch(tmp_path, "notes/readme.txt")
    (tmp_path / "empty").mkdir()
    for name in ("notes", "empty"):
        assert below(tmp_path, name) == [Named(name, "is a folder without images")]


def test_links_in_a_circle_dangling_links_and_pipes(tmp_path):
    touch(tmp_path, "img/a.png")
    (tmp_path / "img" / "round").symlink_to(tmp_path / "img")
    (tmp_path / "img" / "lost.png").symlink_to(tmp_path / "nowhere")
    os.mkfifo(tmp_path / "img" / "pipe.png")
    assert below(tmp_path, "img") == [
        Named("img/a.png"),
        Named("img/lost.png", "cannot be read: No such file or directory"),
    ]


def test_paths_on_stdin(tmp_path):
    touch(tmp_path, "a.png", "img/b.png")
    lines = f"{tmp_path}/a.png\r\n\n{tmp_path}/img\n{tmp_path}/last".encode()
    assert below(tmp_path, "-", stdin=lines) == [
        Named("a.png"),
        Named("img", "is a folder: list its files, as 'find -type f' does"),
        Named("last"),
    ]
    zeros = b"one\ntwo.png\0three.png\0"
    assert [one.path for one in below(tmp_path, "-", stdin=b"x\0" + zeros)] == ["x", "one\ntwo.png", "three.png"]
    inside = b"first\nname.png\0second.png\0"
    assert list(read_paths(io.BytesIO(inside))) == ["first\nname.png", "second.png"], "no name has a zero byte"
    assert [os.fsencode(path) for path in read_paths(io.BytesIO(b"\xff.png\n"))] == [b"\xff.png"]


class Endless(io.RawIOBase):
    """A list of paths without an end."""

    def __init__(self):
        self.numbers = itertools.count()

    def read1(self, size):
        return b"%d.png\n%d" % (next(self.numbers), next(self.numbers))


def test_a_list_is_read_as_it_is_needed():
    endless = Endless()
    paths = list(itertools.islice(find_images(["-"], endless), 3))
    assert [one.path for one in paths] == ["0.png", "12.png", "34.png"]
    assert next(endless.numbers) < 10


@pytest.mark.parametrize("blank", [b"", b"\n", b"\r\n\n", b"\0"])
def test_a_list_without_a_path_is_refused(blank):
    with pytest.raises(InputError, match="standard input: nothing came, expected paths of images"):
        list(find_images(["-"], io.BytesIO(blank)))


def test_what_is_no_list_of_paths_is_refused():
    with pytest.raises(InputError, match="one in a line"):
        list(read_paths(io.BytesIO(b"x" * (2**20 + 2**17))))


def test_a_path_that_is_too_long_for_the_system_is_one_bad_row():
    assert list(find_images(["x" * 5000], None)) == [Named("x" * 5000)]
