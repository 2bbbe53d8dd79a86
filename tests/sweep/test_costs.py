"""What a dry run measures, and how it adds up. The measured processes are a stand-in script."""

import json
from pathlib import Path

import pytest

from ssfnas_cli.sweep import costs
from ssfnas_cli.sweep.state import missing

STUB = """
echo "$*" >>words
case $1 in
    make-dataset)
        while [ "$1" != -o ]; do shift; done
        mkdir "$2" && printf 1234567 >"$2/shard" ;;
    search) printf '{"total_seconds": 100.5, "disk_bytes": 1000, "peak_memory_bytes": 7, "of": "search"}' ;;
    retrain)
        if [ "$2" = resnet20 ]; then echo 'ssfnas: no room' >&2; exit 5; fi
        printf '{"total_seconds": 10, "disk_bytes": 100, "peak_memory_bytes": 9}' ;;
esac
"""
PLAN = """
seeds = [0, 1, 2]
[data]
mu = [0.5]
[search.arms]
darts = {}
fairdarts = { relax = "sigmoid" }
[networks]
resnet20 = {}
[retrain]
[adjust]
"""


@pytest.fixture
def predict(cells_of, tmp_path, monkeypatch):
    """`predict(text, jobs, threads)`, and the words of the commands that were run for it."""
    (tmp_path / "stub.sh").write_text(STUB)
    monkeypatch.setattr(costs, "PROGRAM", ("bash", "stub.sh"))
    monkeypatch.setattr(costs, "START", ("sleep", "0.3"))

    def run(text, jobs=1, threads=0):
        facts = costs.predict(missing(cells_of(text)), jobs, threads)
        return facts, Path("words").read_text().splitlines()

    return run


def test_each_kind_of_run_is_measured_once_and_every_run_counts(predict):
    facts, words = predict(PLAN, jobs=2, threads=3)
    kinds = [line.split(" --data ")[0] for line in words[1:]]
    assert kinds == ["search", "retrain random-0", "search", "retrain resnet20"], "one of both searches' genotypes"
    assert sum("--relax sigmoid" in line for line in words) == 1
    assert all(line.endswith("--threads 3 --dry-run --json") for line in words[1:])
    data = words[0].split()[-1]
    assert all(f"--data {data} " in line for line in words[1:]) and not Path(data).exists(), "made for it, and gone"
    assert facts["data_bytes"] == 7 and facts["failed"] == 3 and len(facts["cells"]) == 3 * (2 + 2 + 1)
    assert facts["total_seconds"] == 6 * 100.5 + 6 * 10 and facts["disk_bytes"] == 6 * 1000 + 6 * 100 + 7
    assert facts["elapsed_seconds"] == facts["total_seconds"] / 2 and facts["peak_memory_bytes"] == 9
    assert facts["counted"] == {"search": 6, "retrain": 6}
    assert facts["not_counted"] == {"data": 1, "retrain": 3, "adjust": 9, "evaluate": 18} and facts["starts"] == 43
    failed = [cell for cell in facts["cells"] if "error" in cell]
    assert {cell["error"] for cell in failed} == {"no room"} and {cell["stage"] for cell in failed} == {"retrain"}


def test_more_at_a_time_than_runs_take_as_long_as_the_longest(predict):
    facts, _ = predict("[search]\n[retrain]", jobs=10)
    assert facts["total_seconds"] == 110.5 and facts["elapsed_seconds"] == 100.5


def test_a_genotype_that_is_there_is_measured_itself(predict, tmp_path):
    folder = tmp_path / "runs" / "sweep" / "search-seed0"
    folder.mkdir(parents=True)
    (folder / "genotype.json").write_text("{}")
    _, words = predict("seeds = [0, 1, 2]\n[search]\n[retrain]")
    trained = [line.split()[1] for line in words if line.startswith("retrain")]
    assert trained == ["runs/sweep/search-seed0/genotype.json", "random-0"]


def test_one_random_genotype_is_measured_for_all_of_them_and_for_those_to_come(predict):
    networks = '[networks]\nrandom = { network = "random-{seed}" }'
    facts, words = predict(f"seeds = [3, 4]\n[search]\n{networks}\n[retrain]")
    assert [line.split()[1] for line in words if line.startswith("retrain")] == ["random-0"]
    assert facts["total_seconds"] == 2 * (100.5 + 2 * 10)


def test_what_prints_no_prediction_is_an_error(predict, monkeypatch):
    monkeypatch.setattr(costs, "PROGRAM", ("bash", "-c", 'echo "$@" >>words; echo what', "sh"))
    facts, _ = predict("[search]")
    assert facts["cells"] == [{"name": "search-seed0", "stage": "search", "error": "it printed no prediction"}]
    assert json.dumps(facts) and facts["total_seconds"] == 0


def test_the_text_says_what_is_in_the_time_and_what_is_not(predict):
    from ssfnas_cli.commands.sweep import _what_is_counted

    facts = predict(PLAN)[0]
    assert 0.3 <= facts["start_seconds"] < 30
    told = _what_is_counted(facts | {"start_seconds": 2.0})
    assert told == (
        "the time is that of the steps of 6 searches and 6 retrainings; not in it: 1 data set, 3 retrainings, "
        "9 corrections, 18 evaluations, and the start of 43 processes (2.0 s each)"
    )
