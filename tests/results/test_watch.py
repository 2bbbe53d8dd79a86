"""The rows of `runs --watch`, and what `runs` says of a run that gave up."""

from results_support import lines_of, make_run
from rich.console import Console

from ssfnas_cli.artifacts.files import write_sealed_json
from ssfnas_cli.artifacts.lock import FolderLock
from ssfnas_cli.artifacts.run_list import shown_state
from ssfnas_cli.commands.runs import _entry
from ssfnas_cli.commands.watch import Row, draw, rows_of


def test_what_needs_attention_comes_first_and_the_time_left_is_that_of_the_phase(tmp_path):
    make_run(tmp_path / "a-done")
    lines = [{"phase": "pretrain", "epoch": 1, "elapsed_seconds": 100.0, "steps": 1}]
    lines += [{**line, "elapsed_seconds": 100.0 + 10 * line["epoch"]} for line in lines_of("retrain", 2)]
    running = make_run(tmp_path / "b-running", state="running", lines=lines, epochs=8)
    status = {"state": "running", "phase": "train", "epoch": 2, "epochs": 8, "last": {"train_accuracy": 12.34567}}
    write_sealed_json(running.path / "status.json", status)
    make_run(tmp_path / "c-dead", state="running")
    (make_run(tmp_path / "d-damaged").path / "status.json").write_text("{")
    lock = FolderLock(running.path)
    lock.acquire()
    try:
        rows = rows_of([tmp_path])
    finally:
        lock.release()
    assert [(row.name, row.state) for row in rows] == [
        ("b-running", "running"),
        ("c-dead", "interrupted"),
        ("d-damaged", "damaged"),
        ("a-done", "done"),
    ]
    assert (rows[0].progress, rows[0].left, rows[0].figure) == ("train 2/8", "1:00", "train_accuracy 12.35")
    assert rows[1].left == "", "nobody works on it"


def test_the_table_is_cut_to_the_terminal_and_says_so(tmp_path):
    for number in range(9):
        make_run(tmp_path / f"run-{number}")
    console = Console(width=90, height=10, record=True)
    console.print(draw(rows_of([tmp_path]), console))
    said = console.export_text()
    assert said.count("done") == 4 and "9 runs, 0 running; 5 more not shown; Ctrl-C leaves" in said
    assert rows_of([tmp_path / "gone"]) == []


def test_runs_of_several_folders_are_told_apart(tmp_path):
    for folder in ("one", "other"):
        make_run(tmp_path / folder / "run")
    folders = [tmp_path / "one", tmp_path / "other"]
    assert {row.name for row in rows_of(folders)} == {str(folder / "run") for folder in folders}


def test_a_run_that_gave_up_says_why_and_how_to_go_on(tmp_path):
    run = make_run(tmp_path / "run", "search", state="stopped")
    assert _entry(run)["state"] == "stopped" and _entry(run)["next"] == f"ssfnas search -o {run.path}"
    write_sealed_json(run.path / "status.json", {"state": "stopped", "reason": "since epoch 2 …"})
    entry = _entry(run)
    assert entry["state"] == shown_state(run, run.status()) == "given up" and entry["reason"].startswith(
        "since epoch 2"
    )
    assert entry["next"] == f"ssfnas search -o {run.path} --set stop_when_collapsed=false"


def test_eighty_columns_keep_every_value_and_age_and_the_seeds():
    """Only names are cut: those of runs in their middle, those of figures at their end."""
    name = "search-a-rather-long-arm-of-a-sweep-mu0.1-seed{}"
    figure = "probe_accuracy_alpha_half 34.56"
    rows = [Row(name.format(seed), "running", "search 12/40", "1:02:03", figure, 55_500.0) for seed in (0, 1)]
    console = Console(width=80, height=20, record=True)
    console.print(draw(rows, console))
    lines = console.export_text().splitlines()
    assert all(len(line) <= 80 for line in lines)
    told = [line for line in lines if "running" in line and "34.56" in line]
    assert len(told) == 2 and all("1:02:03" in line and "search 12/40" in line and "15 h ago" in line for line in told)
    assert "…" in told[0] and "d0 " in told[0] and "d1 " in told[1]
    wide = Console(width=140, height=20, record=True)
    wide.print(draw(rows, wide))
    assert name.format(1) in (said := wide.export_text()) and figure in said
