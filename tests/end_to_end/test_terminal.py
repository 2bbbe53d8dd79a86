"""What a terminal gets: tables in an ASCII locale, names that are no markup, lines that fit."""

import shutil

from PIL import Image

ASCII = {"LC_ALL": "C", "PYTHONIOENCODING": "ascii", "NO_COLOR": "1"}


def shown_on_terminal(ssfnas, cwd, *argv, columns=100):
    """What `ssfnas ARGV` prints on a terminal in an ASCII locale; it must succeed."""
    result, shown = ssfnas.on_terminal(*argv, cwd=cwd, columns=columns, environ=ASCII)
    assert result.code == 0, result.err
    assert shown.isascii()
    return shown


def test_tables_in_an_ascii_locale(ssfnas, world, images, tmp_path):
    assert "sep_conv_3x3" in shown_on_terminal(ssfnas, tmp_path, "plugins")
    assert "balanced accuracy" in shown_on_terminal(ssfnas, tmp_path, "evaluate", world / "retrain", "--threads", "1")
    argv = ["make-dataset", "--source", "folder", "--root", "images", "--dist", "natural", "--set", "on_bad=skip"]
    assert "training profile" in shown_on_terminal(ssfnas, tmp_path, *argv, "-o", "data")


def test_names_on_a_terminal_are_no_markup_and_do_not_reach_it_raw(ssfnas, world, tmp_path):
    """Class names and paths in brackets are shown as they are; what a terminal would obey is escaped."""
    names = ["[red]cat", "dog [b]", ":car:"]
    for split in ("train", "test"):
        for number, name in enumerate(names):
            folder = tmp_path / "images" / split / name
            folder.mkdir(parents=True)
            for index in range(4):
                Image.new("L", (9, 9), 50 * number + index).save(folder / f"{index}.png")
    argv = ["make-dataset", "--source", "folder", "--root", "images", "--dist", "natural", "-o", "x[/y]"]
    shown = shown_on_terminal(ssfnas, tmp_path, *argv)
    assert all(name in shown for name in ("[red]cat", "dog [b]", ":car:", "x[/y]"))
    argv = ["search", "--data", "x[/y]", *ssfnas.tiny, *ssfnas.ops, "--batch-size", "4", "-o", "r[/un]"]
    assert "r[/un] (not written)" in shown_on_terminal(ssfnas, tmp_path, *argv, "--dry-run")
    ssfnas.ok(*argv, cwd=tmp_path)
    shown = shown_on_terminal(ssfnas, tmp_path, "runs", "r[")
    assert "r[/un]" in shown and "ssfnas derive 'r[/un]'" in shown


def test_an_error_does_not_reach_the_terminal_raw(ssfnas, tmp_path):
    result = ssfnas.run("derive", "no\x1b]0;title\x07\u202ewhere", cwd=tmp_path)
    assert result.err == "ssfnas: no\\x1b]0;title\\x07\\u202ewhere: no such run folder\n"


def test_runs_fit_80_columns_and_commands_stay_whole(ssfnas, world, tmp_path):
    for run in ("search", "retrain"):  # other tests may have evaluated the world's
        shutil.copytree(world / run, tmp_path / run, ignore=shutil.ignore_patterns("evaluation*"))
    shown = shown_on_terminal(ssfnas, tmp_path, "runs", ".", columns=80)
    assert "    next: ssfnas evaluate retrain" in shown and "    next: ssfnas derive search" in shown
    assert max(map(len, shown.splitlines())) <= 80 and "2 runs" in shown


def test_errors_in_an_ascii_locale(ssfnas, tmp_path):
    ssfnas.refuses(3, ["no such run folder"], "derive", "Größe", cwd=tmp_path, environ=ASCII)
    ssfnas.refuses(2, ["unknown setting"], "search", "--set", "größe=1", cwd=tmp_path, environ=ASCII)
