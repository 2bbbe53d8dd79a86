"""`compare`, `plot` and `runs --watch` through the installed program: formats, pipes, exit codes, no torch."""

import csv
import io
import json
import re
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "results"))
from results_support import lines_of, make_run, split_of

HEAVY = {"torch", "torchvision", "sklearn", "matplotlib"}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two losses of two seeds, one stopped run and one search, in `all`."""
    folder = tmp_path_factory.mktemp("results")
    for loss, accuracies in {"ce": (50.0, 52.0), "ldam": (53.5, 55.0)}.items():
        for seed, top1 in enumerate(accuracies):
            make_run(folder / "all" / f"{loss}-{seed}", "retrain", f"loss={loss}", seed=seed, top1=top1)
    make_run(folder / "all" / "stopped", state="stopped", lines=lines_of("retrain", 1))
    lines = lines_of("search", 3, accuracy_alpha_half=50.0, weights_moved=0.5, genotype_skips=0.1)
    make_run(folder / "all" / "search", "search", epochs=3, lines=lines)
    (folder / "empty").mkdir()
    return folder


def test_off_a_terminal_it_is_json_and_imports_no_torch(ssfnas, runs):
    script = str(Path(sys.executable).with_name("ssfnas"))
    argv = [sys.executable, "-X", "importtime", script, "compare", "all"]
    traced = subprocess.run(argv, cwd=runs, capture_output=True, text=True, env=ssfnas.environ)
    assert traced.returncode == 0, traced.stderr
    modules = {line.rpartition("|")[2].strip().partition(".")[0] for line in traced.stderr.splitlines()}
    assert "ssfnas_cli" in modules and not modules & HEAVY
    facts = json.loads(traced.stdout)
    assert facts["kind"] == "comparison" and [group["label"] for group in facts["groups"]] == ["ce", "ldam"]
    assert [Path(one["path"]).name for one in facts["left_out"]] == ["stopped"]
    assert "left out: all/stopped: is stopped at epoch 1 of 3: ssfnas retrain -o" in traced.stderr


def test_every_format_has_the_figures(ssfnas, runs, tmp_path):
    for suffix in ("txt", "json", "csv", "md", "tex"):
        result = ssfnas.ok("compare", runs / "all", "--baseline", "ce", "-o", f"table.{suffix}", cwd=tmp_path)
        assert result.out == b"" and result.err.splitlines()[-1] == f"table.{suffix}"
    table = {path.suffix: path.read_text() for path in tmp_path.iterdir()}
    for suffix, dash in ((".txt", "±"), (".md", "±"), (".tex", r"$\pm$")):
        assert f"51.00 {dash} 1.41" in table[suffix] and f"54.25 {dash} 1.06" in table[suffix]
        assert "+3.25 [+" in table[suffix] and "p=0.5" in table[suffix] and "cannot be below 0.5" in table[suffix]
    (ce, ldam) = csv.DictReader(io.StringIO(table[".csv"]))
    assert float(ce["top1"]) == 51 and float(ldam["top1_difference"]) == 3.25 and ce["top1_difference"] == ""
    assert ldam["runs"].split() == [str(runs / "all" / f"ldam-{seed}") for seed in (0, 1)]
    assert json.loads(table[".json"])["differences"]["ce"]["ldam"]["top1"]["mean"] == 3.25
    header = table[".md"].splitlines()[2]
    rows = [line for line in table[".md"].splitlines() if line.startswith("|")]
    assert header.startswith("| group | seeds | top-1 |") and {row.count("|") for row in rows[:4]} == {
        header.count("|")
    }
    assert table[".tex"].count(r"\begin{tabular}") == table[".tex"].count(r"\end{tabular}") == 2
    assert max(map(len, table[".txt"].splitlines())) <= 120


def test_on_a_terminal_it_is_a_table_that_fits(ssfnas, runs):
    result, said = ssfnas.on_terminal("compare", "all", cwd=runs, columns=70)
    lines = re.sub(r"\x1b\[[0-9;]*m", "", said).splitlines()
    assert result.code == 0 and "51.00 ± 1.41" in said and "What to mind:" in said
    assert max(map(len, lines)) <= 70, "columns that do not fit stand below"


def test_watch_draws_until_ctrl_c_and_leaves_the_cursor(ssfnas, runs):
    result, said = ssfnas.on_terminal("runs", "--watch", "all", cwd=runs, columns=110, interrupt_at="Ctrl-C leaves")
    assert result.code == 0 and "ldam-1" in said and "stopped" in said and "6 runs, 0 running" in said
    assert said.rindex("\x1b[?25h") > said.rindex("\x1b[?25l"), "the cursor is shown again"
    assert result.err == ""


@pytest.mark.parametrize(
    ("code", "words", "argv"),
    [
        (2, ["--watch", "terminal"], ["runs", "--watch", "all"]),
        (2, ["--format yaml", "text, json, csv, markdown, latex"], ["compare", "all", "--format", "yaml"]),
        (2, ["--output x.doc", ".tex"], ["compare", "all", "-o", "x.doc"]),
        (2, ["--kind net", "search, retrain"], ["compare", "all", "--kind", "net"]),
        (2, ["--baseline none", "'ce', 'ldam'"], ["compare", "all", "--baseline", "none"]),
        (3, ["empty: is a folder without a run"], ["compare", "empty"]),
        (3, ["all/search: is a search", "all/ce-0 a retraining"], ["compare", "all/search", "all/ce-0"]),
        (3, ["--split val", "evaluate all/ce-0 --split val"], ["compare", "all", "--split", "val"]),
        (2, ["--split foo: is no split", "train, val, test, test_longtail"], ["compare", "all", "--split", "foo"]),
        (2, ["--split foo: is no split", "train, val, test"], ["plot", "classes", "all", "--split", "foo"]),
        (2, ["--split: is of classes", "not of curves"], ["plot", "curves", "all", "--split", "test"]),
        (3, ["all/stopped: is stopped at epoch 1 of 3", "ssfnas retrain"], ["compare", "all/stopped"]),
        (2, ["pie: is no kind", "distribution, curves"], ["plot", "pie", "all"]),
        (2, ["--output x.jpg", ".svg, .png, .pdf"], ["plot", "curves", "all", "-o", "x.jpg"]),
        (2, ["--lines", "alphas, not of curves"], ["plot", "curves", "all", "--lines"]),
        (2, ["--against", "tradeoff, not of curves"], ["plot", "curves", "all", "--against", "macs"]),
        (2, ["--against wins", "weights, macs"], ["plot", "tradeoff", "all", "--against", "wins"]),
        (3, ["is a search run, not a retrain run"], ["plot", "classes", "all/search"]),
        (3, ["all/ce-0: is a retrain run, not a search run"], ["plot", "health", "all/ce-0"]),
        (3, ["all/search: has no alphas yet"], ["plot", "alphas", "all/search"]),
        (3, ["--split val: no run is evaluated on it"], ["plot", "confusion", "all/ce-0", "--split", "val"]),
        (3, ["empty: is a folder without a data set or a run"], ["plot", "distribution", "empty"]),
        (3, ["all/ce-0: its data set", "is not there any more: name the folder"], ["plot", "distribution", "all/ce-0"]),
        (3, ["nowhere: no such data set folder"], ["plot", "distribution", "nowhere"]),
    ],
)
def test_bad_input_is_one_line_and_an_exit_code(ssfnas, runs, code, words, argv):
    ssfnas.refuses(code, words, *argv, cwd=runs)


def test_pictures_go_to_files_and_pipes_and_are_not_overwritten(ssfnas, runs, tmp_path):
    result = ssfnas.ok("plot", "curves", runs / "all" / "search", "-o", "-", cwd=tmp_path)
    assert result.out.startswith(b"<?xml") and b"</svg>" in result.out and "no test split was tracked" in result.err
    ssfnas.ok("plot", "curves", runs / "all" / "search", "-q", cwd=tmp_path)
    assert (tmp_path / "curves.svg").read_bytes() == result.out
    ssfnas.refuses(4, ["--output curves.svg", "--force"], "plot", "curves", runs / "all" / "search", cwd=tmp_path)


def test_what_only_val_is_evaluated_of_is_drawn_on_it_as_it_is_compared_on_it(ssfnas, runs, tmp_path):
    net = make_run(tmp_path / "nets" / "a", splits={"val": split_of(60.0)}).path
    assert ssfnas.ok("compare", net, cwd=tmp_path).json["splits"] == ["val"]
    for kind in ("classes", "confusion", "calibration", "tradeoff"):
        ssfnas.ok("plot", kind, net, "-q", cwd=tmp_path)
    assert "weights, val" in "".join(ElementTree.parse(tmp_path / "tradeoff.svg").getroot().itertext())


def test_runs_shows_what_an_evaluation_found_and_asks_for_none_again(ssfnas, tmp_path):
    for name, splits in (("a", None), ("b", {"val": split_of(60.0), "test": split_of(50.0)}), ("c", None)):
        make_run(tmp_path / "nets" / name, splits=splits, top1=None if name == "c" else 50.0)
    tested, _, plain = listed = ssfnas.ok("runs", "nets", cwd=tmp_path).json["runs"]
    assert [one["figures"].get("test_balanced_accuracy") for one in listed] == [50.0, 50.0, None]
    assert (tested["next"], plain["next"]) == ("", "ssfnas evaluate nets/c")
    result, said = ssfnas.on_terminal("runs", "nets", cwd=tmp_path, columns=110)
    assert result.code == 0 and "test_balanced_accuracy 50" in said and said.count("next: ") == 1


def test_real_runs_are_compared_and_drawn(ssfnas, world, tmp_path):
    """The whole way once: what real stages write is what comparisons and pictures read."""
    ssfnas.ok("evaluate", world / "retrain", "--threads", "1", "-q", cwd=tmp_path)
    (group,) = ssfnas.ok("compare", world / "retrain", cwd=tmp_path).json["groups"]
    described = ssfnas.ok("describe", world / "retrain", cwd=tmp_path).json
    assert group["label"] == "softmax, ce" and group["runs"][0]["seeds"] == [0, 0]
    for name in ("num_params", "num_macs"):
        assert group["figures"][name]["mean"] == described[name]
    assert group["figures"]["search_seconds"]["mean"] > 0 and group["figures"]["steps"]["mean"] > 0
    for kind, run in (("alphas", "search"), ("calibration", "retrain"), ("distribution", "data")):
        picture = ssfnas.ok("plot", kind, world / run, "-o", "-", cwd=tmp_path).out
        assert picture.startswith(b"<?xml"), kind
