"""docs/results.md and searches.md: their commands are understood, and experiments/fill.py fills them in."""

import importlib.util
import json
import shlex
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from generator.commands import parsers
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "docs" / name for name in ("results.md", "searches.md")]


def load(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / "experiments" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def fill(monkeypatch, tmp_path):
    """The module, whose repository is an empty folder with the runs `elsewhere`."""
    module = load("fill")
    monkeypatch.setattr(module, "ROOT", tmp_path)
    (tmp_path / "docs").mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "table").write_text("| of runs/x |\n")
    return module


def filled(fill, tmp_path, text):
    page = tmp_path / "docs" / "page.md"
    page.write_text(text)
    failed = fill.fill(page, tmp_path / "elsewhere")
    return page.read_text(), failed


@pytest.mark.parametrize(("page", "least"), [(PAGES[0], 14), (PAGES[1], 3)])
def test_every_command_of_the_page_is_understood_and_names_a_sweep_that_there_is(page, least):
    fill = load("fill")
    parts = [fill.read_part(mark) for mark in fill.MARK.finditer(page.read_text())]
    assert len(parts) >= least and page.read_text().count("<!-- end -->") == len(parts)
    for part in parts:
        program, name, *arguments = shlex.split(part.command)
        context = parsers()[name].make_context(name, list(arguments))  # raises for a flag that there is not
        assert program == "ssfnas" and (part.kind == "picture") == ("-o" in arguments) == (len(part.alt) > 20)
        if sweep := context.params.get("sweep"):
            assert (ROOT / sweep).is_file(), sweep


def test_a_table_and_a_picture_are_put_between_their_marks(fill, tmp_path):
    text = "a\n<!-- table: cat runs/table -->\nold\n<!-- end -->\nb\n"
    text += "<!-- picture: What: it shows: cp runs/table -o docs/pics/x.png -->\n<!-- end -->\n"
    text = text.replace("cp runs/table -o", "sh -c 'cp $0 $2' runs/table -o")
    page, failed = filled(fill, tmp_path, text)
    assert failed == []
    assert page.startswith(
        "a\n<!-- table: cat runs/table -->\n| of runs/x |\n\nMade by `cat runs/table`\n<!-- end -->\nb\n"
    )
    assert "\n![What: it shows](pics/x.png)\n\nMade by `sh -c" in page
    assert (tmp_path / "docs" / "pics" / "x.png").read_text() == "| of runs/x |\n"
    again, _ = filled(fill, tmp_path, page)
    assert again == page


def test_places_of_runs_are_not_on_the_page(fill, tmp_path):
    page, _ = filled(fill, tmp_path, "<!-- table: echo left out: runs/net -->\n<!-- end -->\n")
    assert "\nleft out: runs/net\n" in page


def test_what_cannot_be_made_keeps_what_was_there(fill, tmp_path):
    text = "<!-- table: cat runs/none -->\nfigures\n<!-- end -->\n<!-- table: ls runs/none -->\n<!-- end -->\n"
    page, failed = filled(fill, tmp_path, text)
    assert page == text.replace("ls runs/none -->\n", "ls runs/none -->\nNot there yet: `ls runs/none`\n")
    assert len(failed) == 2 and "No such file" in failed[0]


@pytest.fixture(scope="module")
def keep():
    return load("keep")


@pytest.fixture(scope="module")
def restored(keep, tmp_path_factory):
    """A folder with all runs that are committed, in a folder for each sweep."""
    folder = tmp_path_factory.mktemp("restored")
    for file in sorted(keep.FOLDER.glob(f"*{keep.SUFFIX}")):
        assert keep.restore(file, folder / file.name.removesuffix(keep.SUFFIX)) > 0
    return folder


@pytest.fixture(scope="module")
def stand_in(zygote, tmp_path_factory):
    """The program `ssfnas`, as a fork."""
    return zygote.open_door(tmp_path_factory.mktemp("bin"))


@pytest.mark.parametrize(("page", "least"), [(PAGES[0], 2), (PAGES[1], 0)])
def test_the_tables_of_the_page_are_what_the_committed_runs_say(restored, stand_in, monkeypatch, page, least):
    fill, checked = load("fill"), 0
    monkeypatch.setattr(fill.sys, "executable", str(stand_in.with_name("python")))  # it looks for `ssfnas` beside it
    for mark in fill.MARK.finditer(page.read_text()):
        part = fill.read_part(mark)
        if part.kind == "table" and fill.EMPTY not in mark["body"]:
            body, why = fill.fill_part(part, page, restored)
            assert (body, why) == (mark["body"], ""), part.command
            checked += 1
    assert checked >= least


def test_a_sweep_passes_over_what_is_restored(restored, keep, stand_in, tmp_path):
    """On another machine it goes on where the committed runs end, once the data set is made."""
    runs = tmp_path / "runs" / "table1-digits"
    keep.restore(keep.FOLDER / f"table1-digits{keep.SUFFIX}", runs)
    argv = ["sweep", ROOT / "experiments" / "table1" / "digits.toml", "-o", runs]
    subprocess.run([stand_in, *argv, "--only", "data-*", "--run", "-q"], check=True, capture_output=True)
    listed = subprocess.run([stand_in, *argv], check=True, capture_output=True, text=True)
    assert " 0 to do" in listed.stdout + listed.stderr


def test_kept_runs_are_kept_again_as_they_are_and_others_stay(restored, keep, tmp_path):
    kept = keep.FOLDER / f"table1-digits{keep.SUFFIX}"
    again = tmp_path / "again.jsonl.xz"
    keep.keep(restored / "table1-digits", again)
    assert keep.read(again) == keep.read(kept)
    few = tmp_path / "few"
    keep.restore(kept, few)
    for path in list(few.iterdir())[1:]:
        shutil.rmtree(path)
    assert keep.keep(few, again) == 1 and keep.read(again) == keep.read(kept)


def test_a_run_that_names_another_place_is_not_kept(keep, tmp_path):
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"command": f"ssfnas retrain {tmp_path}/g.json --data {tmp_path}/data"}))
    assert keep.content(path, str(tmp_path)) == {
        "json": {"command": "ssfnas retrain {runs}/g.json --data {runs}/data"},
        "sealed": False,
    }
    path.write_text(json.dumps({"command": "ssfnas retrain /home/me/g.json"}))
    with pytest.raises(ValueError, match=r"names /home/me/g\.json"):
        keep.content(path, str(tmp_path))


def test_cifar_10_is_written_as_a_folder_by_the_names_of_its_archive(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)
    planes = images.transpose(0, 3, 1, 2).reshape(3, -1)
    batches = [
        {"data": planes[:2], "labels": [1, 0], "filenames": ["b.png", "a.png"]},
        {"data": planes[2:], "labels": [1], "filenames": ["c.png"]},
    ]
    load("cifar10").write_split(tmp_path / "train", ["cat", "dog"], iter(batches))
    found = {str(path.relative_to(tmp_path)): np.asarray(Image.open(path)) for path in tmp_path.rglob("*.png")}
    assert found.keys() == {"train/dog/b.png", "train/cat/a.png", "train/dog/c.png"}
    for name, image in zip(["train/dog/b.png", "train/cat/a.png", "train/dog/c.png"], images, strict=True):
        assert (found[name] == image).all()


def test_the_table_is_one_command_of_make():
    """Images, then the sweep, which passes over what is done, then the page."""
    argv = ["make", "-n", "table1-small", "CIFAR10=none", "RUNS=elsewhere"]
    lines = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    lines = [line for line in lines if "experiments" in line]
    wanted = [
        "experiments/cifar10.py none",
        "sweep experiments/table1/small.toml --set data.root=none -o elsewhere/table1-small --run",
        "experiments/fill.py docs/results.md docs/searches.md --runs elsewhere",
    ]
    assert len(lines) == 3 and all(one in line for one, line in zip(wanted, lines, strict=True))
