"""`report` through the installed program: files, pipes, exit codes, and what real stages leave."""

import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "results"))
from results_support import lines_of, make_run


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A retraining, a stopped one and a search, in `all`; and an empty folder."""
    folder = tmp_path_factory.mktemp("runs")
    make_run(folder / "all" / "net")
    make_run(folder / "all" / "stopped", state="stopped", lines=lines_of("retrain", 1), top1=None)
    make_run(folder / "all" / "search", "search", lines=lines_of("search", 3, accuracy_alpha_half=50.0))
    (folder / "empty").mkdir()
    (folder / "there.html").write_text("mine")
    return folder


def test_a_report_goes_to_a_file_or_a_pipe_and_overwrites_nothing(ssfnas, runs, tmp_path):
    net = runs / "all" / "net"
    result = ssfnas.ok("report", net, "--mistakes", "0", cwd=tmp_path)
    assert result.out == b"" and result.err.splitlines()[-1] == "report.html"
    page = (tmp_path / "report.html").read_bytes()
    assert page.startswith(b"<!doctype html>") and page.rstrip().endswith(b"</html>")
    piped = ssfnas.ok("report", net, "--mistakes", "0", "-o", "-", "-q", cwd=tmp_path)
    assert piped.out == page and piped.err == ""
    ssfnas.refuses(4, ["--output report.html", "--force"], "report", net, cwd=tmp_path)
    again = ssfnas.ok("report", net, "--mistakes", "0", "--force", cwd=tmp_path)
    assert "report.html.old-1" in again.err and (tmp_path / "report.html.old-1").read_bytes() == page


def test_real_stages_give_a_report_with_mistakes(ssfnas, world, tmp_path):
    facts = ssfnas.ok("evaluate", world / "retrain", "--threads", "1", "-q", cwd=tmp_path).json["splits"]["test"]
    wrong = facts["num_images"] - sum(facts["confusion"][c][c] for c in range(10))
    result = ssfnas.ok("report", world / "search", world / "retrain", "--threads", "1", "-o", "-", cwd=tmp_path)
    page = result.out.decode()
    assert f"mistakes of {world / 'retrain'} on test: {facts['num_images']} images" in result.err
    assert f"{wrong} of the {facts['num_images']} images of test are taken for another class." in page
    assert page.count("data:image/png;base64,") > 4 and page.count("<svg") >= 9
    commands = [json.loads((world / name / "config.json").read_text())["command"] for name in ("search", "retrain")]
    assert all(command.replace("&", "&amp;") in page for command in commands)
    assert f"ssfnas derive {world / 'search'} --rule darts --epoch 2" in page


@pytest.mark.parametrize(
    ("code", "words", "argv"),
    [
        (2, ["--split tst", "val, test, test_longtail"], ["all", "--split", "tst"]),
        (2, ["--output x.pdf", ".html"], ["all", "-o", "x.pdf"]),
        (2, ["--mistakes"], ["all", "--mistakes", "-1"]),
        (2, ["RUN..."], []),
        (3, ["empty: is a folder without a run"], ["empty"]),
        (3, ["nowhere: no such run folder"], ["nowhere"]),
        (3, ["there.html: is a file; a run folder is expected"], ["there.html"]),
        (4, ["--output there.html", "--force"], ["all", "-o", "there.html"]),
    ],
)
def test_bad_input_is_one_line_and_an_exit_code(ssfnas, runs, code, words, argv):
    ssfnas.refuses(code, words, "report", *argv, cwd=runs)
