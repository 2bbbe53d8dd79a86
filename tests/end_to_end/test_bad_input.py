"""Bad input: one line that names the flag or file and the mend, the right exit code, and every file as it was."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ASCII = {"LC_ALL": "C", "PYTHONIOENCODING": "ascii"}


# What needs no torch: flags and settings


@pytest.mark.parametrize(
    "words, argv",
    [
        (["--mu", "greater than 0", "got 0.0"], ["make-dataset", "--mu", "0"]),
        (["--mu", "less than or equal to 1", "got 1.5"], ["make-dataset", "--mu", "1.5"]),
        (["--mu", "finite"], ["make-dataset", "--mu", "nan"]),
        (["--mu", "valid number", "make-dataset --help"], ["make-dataset", "--mu", "much"]),
        (["--image-size", "'auto'", "8", "got 4"], ["make-dataset", "--image-size", "4"]),
        (["--source", "Did you mean 'digits'?", "npz"], ["make-dataset", "--source", "digit"]),
        (["--root", "folder"], ["make-dataset", "--source", "folder"]),
        (["--dist", "'natural'"], ["make-dataset", "--dist", "normal"]),
        (["on_bad", "'skip' or 'fail'"], ["make-dataset", "--set", "on_bad=maybe"]),
        (["unknown setting 'onbad'", "Did you mean 'on_bad'?"], ["make-dataset", "--set", "onbad=skip"]),
        (["--set on_bad", "key=value"], ["make-dataset", "--set", "on_bad"]),
        (["--foo", "make-dataset --help"], ["make-dataset", "--foo"]),
        (["'make-datset'", "make-dataset"], ["make-datset"]),
        (["unknown relaxation 'sigmod'", "Did you mean 'sigmoid'?", "ssfnas plugins"], ["search", "--relax", "sigmod"]),
        (["unknown loss 'barlo'", "Did you mean 'barlow'?", "--loss"], ["search", "--loss", "barlo"]),
        (["unknown op 'sep_conv_3x'", "Did you mean 'sep_conv_3x3'?"], ["search", "--set", "ops=none,sep_conv_3x"]),
        (["unknown setting 'epoch'", "Did you mean 'epochs'?"], ["search", "--set", "epoch=3"]),
        (["--order", "1 or 2"], ["search", "--order", "3"]),
        (["--epochs", "1", "got 0"], ["search", "--epochs", "0"]),
        (["--batch-size", "2", "got 1"], ["search", "--loss", "barlow", "--batch-size", "1"]),
        (["--channels", "multiple of 2"], ["search", "--channels", "3"]),
        (
            ["'partial_channels'", "channels=16: take one of 1, 2, 4, 8, 16, or channels=18"],
            ["search", "--set", "partial_channels=3"],
        ),
        (["--channels", "65536", "got 1000000000"], ["search", "--channels", "1000000000"]),
        (["--layers", "1000", "got 100000"], ["search", "--layers", "100000"]),
        (["--batch-size", "1000000"], ["search", "--batch-size", "2000000000"]),
        (["--workers", "1024"], ["search", "--workers", "100000"]),
        (["--threads", "1024"], ["search", "--threads", "100000"]),
        (["'epochs'", "1000000"], ["search", "--set", f"epochs={10**18}"]),
        (["--set x", "nested too deeply"], ["search", "--set", "x=" + "[" * 100_000]),
        (["--set epochs", "too many digits"], ["search", "--set", "epochs=" + "9" * 5000]),
        (["--seed"], ["make-dataset", "--seed", "9" * 30]),
        (["--threads", "greater than or equal to 0"], ["search", "--threads", "-1"]),
        (["--threads", "greater than or equal to 0"], ["evaluate", "run", "--threads", "-1"]),
        (["--max-time", "3:50:00"], ["search", "--max-time", "soon"]),
        (["--precision", "'bf16'"], ["search", "--precision", "fp64"]),
        (["--preset", "'fast'", "quick, standard, paper"], ["search", "--preset", "fast"]),
        (["--threshold nan", "0.85"], ["derive", "run", "--threshold", "nan"]),
        (["--stem", "'auto', 'cifar' or 'imagenet'"], ["search", "--stem", "patch"]),
        (["--stem patch", "auto, cifar, imagenet"], ["describe", "DARTS_V2", "--stem", "patch"]),
        (["--cell", "normal, reduce, both"], ["plot-genotype", "g.json", "--cell", "middle"]),
        (["cells.jpg", ".svg", ".dot"], ["plot-genotype", "g.json", "-o", "cells.jpg"]),
        (["--kind", "Did you mean 'loss'?"], ["plugins", "--kind", "los"]),
        (["--image-size", "8"], ["describe", "g.json", "--image-size", "4"]),
    ],
)
def test_usage(ssfnas, tmp_path, words, argv):
    ssfnas.refuses(2, words, *argv, cwd=tmp_path)


def test_config_file(ssfnas, tmp_path):
    piped = ssfnas.shell("ssfnas search --show-settings --config <(echo 'epochs = 6')", tmp_path)
    assert "epochs = 6\n" in piped.out.decode() and piped.code == 0, "a pipe is read once"
    ssfnas.refuses(3, ["--config", "none.toml", "no such file"], "search", "--config", "none.toml", cwd=tmp_path)
    (tmp_path / "broken.toml").write_text("epochs = = 3\n")
    ssfnas.refuses(3, ["broken.toml", "TOML", "line 1"], "search", "--config", "broken.toml", cwd=tmp_path)
    (tmp_path / "other.toml").write_text("epoch = 3\n")
    ssfnas.refuses(2, ["'epoch'", "Did you mean 'epochs'?"], "search", "--config", "other.toml", cwd=tmp_path)
    (tmp_path / "latin.toml").write_bytes(b'data = "\xe9"\n')
    ssfnas.refuses(3, ["latin.toml", "cannot be read"], "search", "--config", "latin.toml", cwd=tmp_path)


def test_a_config_file_with_bottomless_nesting_or_a_number_without_end(ssfnas, tmp_path):
    (tmp_path / "deep.toml").write_text("x = " + "[" * 100_000)
    ssfnas.refuses(3, ["--config deep.toml", "nested too deeply"], "search", "--config", "deep.toml", cwd=tmp_path)
    (tmp_path / "long.toml").write_text("epochs = " + "9" * 5000)
    ssfnas.refuses(3, ["--config long.toml", "too many digits"], "search", "--config", "long.toml", cwd=tmp_path)
    (tmp_path / "half.toml").write_bytes("epochs = 3".encode("utf-16")[:-1])
    ssfnas.refuses(3, ["--config half.toml", "cannot be read"], "search", "--config", "half.toml", cwd=tmp_path)


# Genotypes


@pytest.mark.parametrize(
    "words, edit",
    [
        (["NaN"], lambda g: g["provenance"].update(threshold=float("nan"))),
        (
            ["unknown op 'sep_conv_3x4'", "Did you mean 'sep_conv_3x3'?"],
            lambda g: g["normal"]["edges"][0].update(op="sep_conv_3x4"),
        ),
        (
            ["normal.edges.0", "from node 4 to node 3", "cycle"],
            lambda g: g["normal"]["edges"][0].update({"from": 4, "to": 3}),
        ),
        (["ssfnas.genotype/2", "newer", "upgrade ssfnas"], lambda g: g.update(schema="ssfnas.genotype/2")),
        (["not a genotype", "schema"], lambda g: g.pop("schema")),
        (["normal.colour"], lambda g: g["normal"].update(colour="red")),
        (["reduce", "required"], lambda g: g.pop("reduce")),
        (["normal", "no output"], lambda g: g["normal"].update(edges=[{"op": "none", "from": 0, "to": 2}])),
        (["op_options", "'skip_connect' has no option 'x'"], lambda g: g.update(op_options={"skip_connect": {"x": 1}})),
    ],
)
def test_genotype_that_is_wrong(ssfnas, edited, tmp_path, words, edit):
    path = edited(edit)
    ssfnas.refuses(3, [str(path), *words], "plot-genotype", path, "-o", "cells.svg", cwd=tmp_path)


@pytest.mark.parametrize(
    "content, words",
    [
        (b"", ["is empty"]),
        (b'{"schema": "ssfnas.genotype/1", "normal"', ["not whole JSON", "line 1"]),
        (b"\xff\xfe{}", ["not UTF-8"]),
        (b"[" * 100_000, ["nested too deeply"]),
        (b'{"schema": 1, "schema": 2}', ["'schema' stands twice"]),
        (b" " * (2 << 20), ["more than"]),
    ],
)
def test_genotype_that_is_none(ssfnas, tmp_path, content, words):
    (tmp_path / "g.json").write_bytes(content)
    ssfnas.refuses(3, ["g.json", *words], "retrain", "g.json", cwd=tmp_path)


def test_published_genotype_that_is_none(ssfnas, tmp_path):
    run = "Genotype(normal=__import__('os').mkdir('owned'), normal_concat=[2], reduce=[], reduce_concat=[2])"
    ssfnas.refuses(3, ["standard input"], "import-genotype", "-", stdin=run.encode(), cwd=tmp_path)
    ssfnas.refuses(3, ["standard input", "Genotype("], "import-genotype", "-", stdin=b"hello", cwd=tmp_path)
    ssfnas.refuses(3, ["none.py", "no such file"], "import-genotype", "none.py", cwd=tmp_path)


# One thing where another is expected


@pytest.mark.parametrize(
    "what, words, argv",
    [
        ("a search run for a genotype", ["search: is a folder", "name ", "genotype.json"], ["retrain", "{search}"]),
        ("a retrain run for a genotype", ["retrain: is a folder", "genotype.json"], ["retrain", "{retrain}"]),
        (
            "a data set for a genotype",
            ["data: is a folder", "not a genotype"],
            ["plot-genotype", "{data}", "-o", "x.svg"],
        ),
        ("a genotype for a run", ["genotype.json: is a file", "run folder"], ["derive", "{genotype.json}"]),
        ("a data set for a run", ["data: is a data set, not a run"], ["evaluate", "{data}"]),
        ("a retrain run for a search", ["is a retrain run, not a search run"], ["derive", "{retrain}"]),
        ("a search run for a retrain run", ["is a search run", "ssfnas derive", "retrain"], ["evaluate", "{search}"]),
        ("nothing for a run", ["nowhere: no such run folder"], ["derive", "nowhere"]),
        (
            "a genotype for a data set",
            ["genotype.json: is a genotype", "make-dataset"],
            ["search", "--data", "{genotype.json}"],
        ),
        ("a run for a data set", ["search: is a run folder", "make-dataset"], ["search", "--data", "{search}"]),
        (
            "nothing for a data set",
            ["nowhere: no such data set", "make-dataset -o nowhere"],
            ["search", "--data", "nowhere"],
        ),
        (
            "a file of a run for a run",
            ["model.safetensors: is a file; a run folder is expected: name its run"],
            ["evaluate", "{retrain}/model.safetensors"],
        ),
        ("nothing for runs", ["nowhere: no such folder"], ["runs", "nowhere"]),
    ],
)
def test_one_thing_for_another(ssfnas, world, tmp_path, what, words, argv):
    paths = {f"{{{path.name}}}": str(path) for path in world.iterdir()}
    in_place = lambda word: re.sub(r"^{.*?}", lambda match: paths.get(match[0], match[0]), word)
    ssfnas.refuses(3, words, *map(in_place, argv), cwd=tmp_path)


@pytest.mark.parametrize(
    "argv, stdin, words",
    [
        (["derive", "-"], b"", ["standard input", "nothing came", "ssfnas search"]),
        (["retrain", "-"], b"  \n", ["standard input", "nothing came", "genotype"]),
        (["evaluate", "-"], b"", ["standard input", "nothing came", "ssfnas retrain"]),
        (
            ["derive", "-"],
            b'{"kind": "retrain-run", "path": "r"}',
            ["standard input", "is retrain-run", "ssfnas search"],
        ),
        (
            ["evaluate", "-"],
            b'{"kind": "search-run", "path": "s"}',
            ["standard input", "is search-run", "ssfnas retrain"],
        ),
        (["retrain", "-"], b'{"kind": "search-run", "path": "s"}', ["standard input", "ssfnas derive s"]),
        (["evaluate", "-"], b'{"kind": "retrain-r', ["standard input", "not whole JSON"]),
    ],
)
def test_a_pipe_that_brings_nothing_or_the_wrong_thing(ssfnas, tmp_path, argv, stdin, words):
    ssfnas.refuses(3, words, *argv, stdin=stdin, cwd=tmp_path)


# Outputs


def test_an_output_that_exists_is_kept(ssfnas, world, tmp_path):
    (tmp_path / "mine").write_text("precious")
    exists = ["--output mine", "--force"]
    ssfnas.refuses(4, exists, "derive", world / "search", "-o", "mine", cwd=tmp_path)
    ssfnas.refuses(4, exists, "evaluate", world / "retrain", "-o", "mine", cwd=tmp_path)
    ssfnas.refuses(4, exists, "import-genotype", "-", "-o", "mine", stdin=b"x", cwd=tmp_path)
    ssfnas.refuses(4, ["mine: exists", "--force"], "make-dataset", "-o", "mine", cwd=tmp_path)
    run = ["search", "--data", str(world / "data"), *ssfnas.tiny]
    ssfnas.refuses(4, ["mine: is a file", "-o"], *run, "-o", "mine", cwd=tmp_path)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("precious")
    ssfnas.refuses(4, ["full", "other things"], *run, "-o", "full", cwd=tmp_path)


def test_another_run_in_the_folder_is_kept(ssfnas, world):
    words = ["search: holds another run", "seed (0 there, 3 here)", "--force"]
    argv = ["search", "--data", "data", *ssfnas.tiny, *ssfnas.ops, "--epochs", "2", "-o", "search"]
    ssfnas.refuses(4, words, *argv, "--seed", "3", cwd=world)
    ssfnas.refuses(4, ["retrain: holds a retrain run"], *argv[:-1], "retrain", cwd=world)


def test_what_fails_with_force_moves_nothing(ssfnas, world, tmp_path):
    (tmp_path / "mine").write_text("precious")
    ssfnas.refuses(3, ["nowhere"], "derive", "nowhere", "--force", "-o", "mine", cwd=tmp_path)
    ssfnas.refuses(
        3, ["nowhere"], "make-dataset", "--source", "folder", "--root", "nowhere", "--force", "-o", "mine", cwd=tmp_path
    )
    argv = ["search", "--data", "data", *ssfnas.tiny, "--device", "cuda:99", "--force", "-o", "search"]
    ssfnas.refuses(2, ["--device cuda:99", "auto or cpu"], *argv, cwd=world)


@pytest.mark.parametrize("parent", ["/proc/nowhere", "file"])
def test_an_output_that_cannot_be_written(ssfnas, world, tmp_path, parent):
    (tmp_path / "file").write_text("precious")
    output, genotype = f"{parent}/x.svg", world / "genotype.json"
    ssfnas.refuses(5, [output, "cannot be written"], "plot-genotype", genotype, "-o", output, cwd=tmp_path)
    ssfnas.refuses(5, [output, "cannot be written"], "make-dataset", "-q", "-o", output, cwd=tmp_path)
    if parent == "file":
        run = ["search", "--data", world / "data", *ssfnas.tiny, "-o", output]
        ssfnas.refuses(5, [output, "cannot be made"], *run, cwd=tmp_path)


def test_a_full_disk(ssfnas, world, tmp_path):
    if not Path("/dev/full").exists():
        pytest.skip("needs /dev/full")
    result = ssfnas.shell(f"ssfnas plot-genotype {world / 'genotype.json'} -o - > /dev/full", tmp_path)
    assert result.code == 5
    assert result.err.startswith("ssfnas: ") and "No space left" in result.err and len(result.err.splitlines()) == 1


# Data


def test_a_class_too_small_for_both_halves(ssfnas, tmp_path):
    ssfnas.ok("make-dataset", "--max-per-class", "3", "--mu", "0.5", "-o", "small", cwd=tmp_path)
    words = ["'9'", "both halves", "make a data set with more of them"]
    ssfnas.refuses(3, words, "search", "--data", "small", *ssfnas.tiny, "-o", "run", cwd=tmp_path)


def test_another_data_set_than_the_recorded_one(ssfnas, world, edited, tmp_path):
    def another(genotype):
        genotype["provenance"]["data_sha256"] = "0" * 64

    def gone(genotype):
        genotype["provenance"]["data"] = "/nowhere"

    words = ["data: is not the genotype's data set", "000000000000", "--data"]
    ssfnas.refuses(3, words, "retrain", edited(another), *ssfnas.tiny, "-o", "run", cwd=tmp_path)
    words = ["/nowhere: the genotype's data set is not there", "--data"]
    ssfnas.refuses(3, words, "retrain", edited(gone), *ssfnas.tiny, "-o", "run", cwd=tmp_path)
    ssfnas.ok("make-dataset", "--max-per-class", "12", "--mu", "0.5", "--seed", "1", "-o", "other", cwd=tmp_path)
    words = ["other: is not the run's data set", "--other-data"]
    ssfnas.refuses(3, words, "evaluate", world / "retrain", "--data", "other", cwd=tmp_path)
    ssfnas.ok("make-dataset", "--max-per-class", "12", "--image-size", "16", "-o", "larger", cwd=tmp_path)
    words = ["larger: its images have 16 pixels a side", "was trained on 8", "--image-size 8"]
    ssfnas.refuses(3, words, "evaluate", world / "retrain", "--data", "larger", "--other-data", cwd=tmp_path)


def test_a_working_directory_that_is_gone(ssfnas, world, tmp_path):
    (tmp_path / "gone").mkdir()
    command = f"{sys.executable} -P -m ssfnas_cli describe {world}/genotype.json"
    gone = ssfnas.shell(f"cd gone; rmdir ../gone; {command}", tmp_path)
    assert gone.code == 5 and gone.err.endswith("the working directory is gone: go to one that is there (cd)\n")


def test_the_backend_of_a_notebook_does_not_matter_to_pictures(ssfnas, world, tmp_path):
    inline = {"MPLBACKEND": "module://matplotlib_inline.nowhere"}
    drawn = ["plot-genotype", world / "genotype.json", "-o", "cells.png"]
    ssfnas.ok(*drawn, cwd=tmp_path, environ=inline)
    ssfnas.ok("plot", "distribution", world / "data", "-o", "counts.png", cwd=tmp_path, environ=inline)


def test_a_module_of_the_users_with_the_name_of_ours_is_an_import_error(tmp_path):
    (tmp_path / "registry.py").write_text("")
    script = "try: import ssfnas_cli\nexcept ImportError as error: print(error)"
    told = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert "registry.py' shadows the package 'registry' of ssfnas" in told.stdout


def test_a_damaged_data_set(ssfnas, world, tmp_path):
    shutil.copytree(world / "data", tmp_path / "data")
    (shard,) = (tmp_path / "data").glob("train*.safetensors")
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-8])
    argv = ["search", "--data", "data", *ssfnas.tiny, "-o", "run"]
    ssfnas.refuses(3, [shard.name], *argv, cwd=tmp_path)
    shard.write_bytes(whole[:-8] + b"\x01" * 8)
    ssfnas.refuses(3, [shard.name, "damaged"], *argv, cwd=tmp_path)


def test_images_that_cannot_be_read(ssfnas, images, tmp_path):
    argv = ["make-dataset", "--source", "folder", "--root", "images", "--dist", "natural", "-o", "data"]
    ssfnas.refuses(3, ["--root images", "0.png", "on_bad=skip"], *argv, cwd=tmp_path)
    result = ssfnas.ok(*argv, "--set", "on_bad=skip", cwd=tmp_path)
    assert result.json["train_counts"] == [3, 3]
    assert "cat/0.png" in result.err and "3.png" in result.err and "left out 2 images" in result.err
    assert json.loads((tmp_path / "data" / "manifest.json").read_text())["skipped"]["count"] == 2


# Runs and the rest


def test_a_run_that_is_not_finished(ssfnas, world, tmp_path):
    argv = ["retrain", world / "genotype.json", *ssfnas.tiny, "-o", "run"]
    stopped = ssfnas.run(*argv, "--max-time", "0", cwd=tmp_path)
    assert stopped.code == 75 and stopped.out == b""
    assert "--max-time" in stopped.err and "the same command goes on" in stopped.err
    ssfnas.refuses(3, ["run: is stopped, not done", "retrain"], "evaluate", "run", cwd=tmp_path)
    assert ssfnas.ok("runs", ".", cwd=tmp_path).json["runs"][0]["state"] == "stopped"


def test_a_loss_in_the_wrong_place(ssfnas, world, tmp_path):
    argv = ["retrain", world / "genotype.json", *ssfnas.tiny, "-o", "run"]
    ssfnas.refuses(2, ["--loss barlow", "--pretrain"], *argv, "--loss", "barlow", cwd=tmp_path)
    ssfnas.refuses(2, ["--pretrain ce", "self-supervised"], *argv, "--pretrain", "ce", cwd=tmp_path)
    words = ["'barlow' has no option 'lamda'", "Did you mean 'lambda'?"]
    ssfnas.refuses(2, words, "search", "--loss", "barlow", "--set", "loss.lamda=1", cwd=tmp_path)


@pytest.mark.parametrize(
    "words, argv",
    [
        (["--rule", "'dart'", "fairdarts"], ["--rule", "dart"]),
        (["--threshold", "'darts'"], ["--threshold", "0.5"]),
        (["--threshold 2", "would not"], ["--rule", "fairdarts", "--threshold", "2"]),
        (["--epoch 9", "0 to 2"], ["--epoch", "9"]),
    ],
)
def test_what_cannot_be_derived(ssfnas, world, tmp_path, words, argv):
    code = 2 if "--epoch" not in argv and "2" not in argv else 3
    ssfnas.refuses(code, words, "derive", world / "search", *argv, cwd=tmp_path)


def test_evaluation_of_a_split_that_is_not_there(ssfnas, world, tmp_path):
    words = ["--split val", "test_longtail"]
    ssfnas.refuses(2, words, "evaluate", world / "retrain", "--split", "val", cwd=tmp_path)
