"""The benchmarks run: at a tiny shape, where the sides must give the same losses, and go on from a file."""

import json
from pathlib import Path

import pytest

from ssfnas_cli.native.library import compiler

ROOT = Path(__file__).parents[2]
needs_compiler = pytest.mark.skipif(compiler() is None, reason="no C++ compiler")


@pytest.fixture
def run(zygote, tmp_path):
    """`run(script, argument, ...)`: standard output of a benchmark in a fork that has imported torch already."""

    def in_a_fork(script, *arguments, **faults):
        faults = {"script": str(ROOT / "benchmarks" / script), **faults}
        done = zygote.run(["--quick", *map(str, arguments)], tmp_path, faults, environ={"PYTHONPATH": str(ROOT)})
        assert done.code == 0, done.err
        return done.out

    return in_a_fork


@pytest.mark.slow
@pytest.mark.parametrize(
    ("script", "case"),
    [
        pytest.param("search_step.py", "softmax-ce-1", marks=needs_compiler),
        pytest.param("retrain_step.py", "FairDARTS_b-16x8", marks=needs_compiler),
        pytest.param("retrain_step.py", "DARTS_V2-16x8-pretraining", marks=needs_compiler),
        pytest.param("digits.py", "barlow-32", marks=needs_compiler),
    ],
)
def test_a_case_is_measured_once_and_rendered(run, tmp_path, script, case):
    out = tmp_path / "rounds.jsonl"
    arguments = ["--only", case, "--pairs", 1, "--out", out]
    page = (ROOT / "docs" / "performance.md").read_bytes()
    table = run(script, *arguments)
    (line,) = [json.loads(text) for text in out.read_text().splitlines()]
    assert line["case"] == case and set(line["sides"]) == {"direct", "ssfnas"}
    for side in line["sides"].values():
        assert side["seconds"] > 0 and 0 <= side["others_share"] < 2 and side["peak_bytes"] > side["base_bytes"] > 0
    assert len([row for row in table.splitlines() if "| direct |" in row]) >= 1
    if script == "search_step.py":
        assert run(script, *arguments) == table, "measured again"
        assert len(out.read_text().splitlines()) == 1
    assert (ROOT / "docs" / "performance.md").read_bytes() == page, "a quick run writes no docs"


@pytest.mark.slow
@needs_compiler
def test_both_precisions_are_measured_beside_each_other_and_against_float64(run, tmp_path):
    cases = ("softmax-ce-1", "DARTS_V2-16x8", "distances")
    table = run("bf16.py", "--only", *cases, "--pairs", 1, "--out", tmp_path / "rounds.jsonl")
    assert table.count("| bf16 |") == 2 and table.count("kernels | 0.0") == 2


@pytest.mark.slow
def test_the_relaxations_are_measured_beside_each_other(run, tmp_path):
    out = tmp_path / "rounds.jsonl"
    table = run("relaxations.py", "--only", "torch", "--pairs", 1, "--out", out)
    (line,) = [json.loads(text) for text in out.read_text().splitlines()]
    assert set(line["sides"]) == {"softmax", "dirichlet", "gumbel"}
    assert len([row for row in table.splitlines() if "| torch |" in row]) == 3


@pytest.mark.slow
@needs_compiler
def test_a_shared_machine_is_measured_on_one_thread_and_on_two(run, tmp_path):
    out = tmp_path / "rounds.jsonl"
    page = (ROOT / "docs" / "performance.md").read_bytes()
    table = run("shared_machine.py", "--pairs", 1, "--kernels", "compiled", "--out", out)
    rows = [json.loads(text) for text in out.read_text().splitlines()]
    measured = [(row["neighbour"], row["threads"]) for row in rows]
    assert measured == [(place, n) for place in ("idle machine", "beside a busy process") for n in (1, 2)]
    assert all(row["seconds"] > 0 for row in rows)
    assert len([row for row in table.splitlines() if row.startswith("| compiled |")]) == 2
    assert (ROOT / "docs" / "performance.md").read_bytes() == page, "a quick run writes no docs"


@pytest.mark.slow
@needs_compiler
def test_two_searches_are_measured_beside_each_other(run, tmp_path):
    table = run("two_searches.py", "--only", "C=8, 4 cells", "--pairs", 1, "--out", tmp_path / "rounds.jsonl")
    (row,) = [line.split("|")[1:-1] for line in table.splitlines() if line.startswith("| C=8")]
    alone, beside, ratio = (float(cell.split()[0]) for cell in row[1:])
    assert alone > 0 and beside > 0 and ratio > 0


@pytest.mark.slow
def test_ranks_are_measured_beside_one_process_and_more_are_projected(run, tmp_path):
    table = run("ranks.py", "--only", "retrain-global", "--pairs", 1, "--out", tmp_path / "rounds.jsonl")
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines() if line.startswith("| ret")]
    sides, projected = rows[:4], rows[4:]
    assert [row[2] for row in sides] == [
        "one process, one thread",
        "one process, two threads",
        "two ranks, one thread each",
        "two processes, half the batch each",
    ]
    assert int(sides[2][6]) > 20, "messages for the statistics of batch normalisation"
    assert sides[3][6] == "", "these two send each other nothing"
    for row in projected:  # more ranks wait longer for each other
        efficiencies = [float(cell.split()[0]) for cell in row[3:]]
        assert efficiencies == sorted(efficiencies, reverse=True) and 0 <= efficiencies[-1] < efficiencies[0] < 1
    assert len(projected) == 2


@pytest.mark.slow
@needs_compiler
def test_kernels_are_held_against_a_matrix_product_and_a_copy(run):
    page = (ROOT / "docs" / "performance.md").read_bytes()
    rows = [line.split("|")[1:-1] for line in run("kernel_floor.py").splitlines() if line.startswith("| ")]
    parts, widths = rows[2:6], rows[8:]
    assert len(parts) == 4 and all(float(row[2]) > 0 and float(row[6]) > 0 for row in parts)
    assert [int(row[0]) for row in widths] == [16, 24, 32, 36, 40, 48] and float(widths[0][2]) == 1.0
    assert (ROOT / "docs" / "performance.md").read_bytes() == page, "a quick run writes no docs"


@pytest.mark.slow
def test_every_part_of_a_recipe_is_measured(run):
    page = (ROOT / "docs" / "performance.md").read_bytes()
    rows = [line.split("|")[1:3] for line in run("recipe.py").splitlines() if line.startswith("| ")][2:]
    assert len(rows) == 7 and all(float(rate.split()[0]) > 0 for _, rate in rows)
    assert (ROOT / "docs" / "performance.md").read_bytes() == page, "a quick run writes no docs"


@pytest.mark.slow
def test_prediction_is_measured_with_its_parts_and_its_memory(run):
    page = (ROOT / "docs" / "performance.md").read_bytes()
    table = run("predict.py")
    rows = [line.split("|")[3:6] for line in table.splitlines() if line.startswith("| ")][2:]
    assert len(rows) == 4 and all(float(cell.split()[0]) > 0 for row in rows for cell in row)
    assert "MB after 64 images" in table and (ROOT / "docs" / "performance.md").read_bytes() == page


@pytest.mark.slow
def test_many_images_are_made_and_evaluated_number_by_number(run, zygote, tmp_path):
    beside_the_stand_in = zygote.open_door(tmp_path).with_name("python")
    told = run("many_images.py", executable=str(beside_the_stand_in))
    rows = [line for line in told.splitlines() if line.startswith("| ") and "images" not in line]
    assert [row.split("|")[1].strip() for row in rows[1:]] == ["200", "400"]


@pytest.mark.slow
def test_a_data_set_of_every_source_is_made_and_trained_on_and_its_memory_is_seen(run):
    """What is measured are commands in processes of their own, whose memory is theirs alone."""
    table = run("large_data.py", "--workers", 0)
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines() if line.startswith("| ")]
    peaks = {row[0]: float(row[4].replace(",", "")) for row in rows[2:]}
    made = {name: peak for name, peak in peaks.items() if name.startswith("make-dataset")}
    assert list(made) == [f"make-dataset --source {source}" for source in ("npz", "idx", "list")]
    trained = [peak for name, peak in peaks.items() if name.startswith("an epoch")]
    assert len(trained) == 2 and min(trained) > 100 > min(made.values()) > 20, "torch alone takes more than 100 MB"
