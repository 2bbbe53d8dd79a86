"""`ssfnas rank` through the installed program, on real runs and on figures that are given."""

import json
import shutil
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "results"))
from results_support import make_run, split_of

ACCURACIES = {"a": 30.0, "b": 50.0, "c": 40.0, "d": 60.0, "e": 20.0}


@pytest.fixture(scope="module")
def nets(world, tmp_path_factory):
    """Five genotypes of the search's space, `files/NAME.json`, each with one retraining; `a` has a second one."""
    folder = tmp_path_factory.mktemp("rank")
    sha256 = json.loads((world / "search" / "config.json").read_text())["data"]["sha256"]
    genotype = json.loads((world / "genotype.json").read_text())
    (folder / "files").mkdir()
    for number, (name, top1) in enumerate(ACCURACIES.items()):
        for cell in ("normal", "reduce"):
            for place, edge in enumerate(genotype[cell]["edges"]):
                edge["op"] = "dil_conv_3x3" if (place + number) % 5 < number else "skip_connect"
        named = {**genotype, "name": name, "provenance": {}}
        (folder / "files" / f"{name}.json").write_text(json.dumps(named))
        for seed in (0, 1) if name == "a" else (0,):
            splits = {"test": split_of(top1 + 2 * seed, [top1, top1, 10.0])}
            make_run(folder / "nets" / f"{name}-{seed}", seed=seed, sha256=sha256, genotype=named, splits=splits)
    return folder


def test_a_supernet_is_asked_and_compared_with_the_retrained_networks(ssfnas, world, nets, tmp_path):
    printed = ssfnas.ok("rank", world / "search", nets / "nets", "-o", "scatter.svg", cwd=tmp_path)
    facts = printed.json
    rows = {row["name"]: row for row in facts["genotypes"]}
    assert facts["kind"] == "rank" and facts["num_pairs"] == 5 and rows.keys() == ACCURACIES.keys()
    assert rows["a"]["retrained"] == 31.0 and rows["a"]["retrained_values"] == [30.0, 32.0]
    assert all(0 <= row["supernet"] <= 100 for row in rows.values())
    order = sorted(rows, key=lambda name: rows[name]["supernet"])
    pairs = [(order[i], order[j]) for i in range(5) for j in range(i + 1, 5)]
    distinct = [pair for pair in pairs if rows[pair[0]]["supernet"] != rows[pair[1]]["supernet"]]
    score = sum(1 if rows[low]["retrained"] < rows[high]["retrained"] else -1 for low, high in distinct)
    if facts["kendall_tau"]["value"] is not None:
        assert facts["kendall_tau"]["value"] == pytest.approx(score / (len(distinct) * 10) ** 0.5)
    text = (tmp_path / "scatter.svg").read_text()
    assert "alpha half" in text and ">d</text>" in text.replace("\n", "")
    by_file = ssfnas.ok(
        "rank", world / "search", *sorted((nets / "files").iterdir()), "--nets", nets / "nets", cwd=tmp_path
    )
    strip = lambda found: {row["runs"][0]: (row["supernet"], row["retrained"]) for row in found["genotypes"]}
    assert strip(by_file.json) == strip(facts) and by_file.json["kendall_tau"] == facts["kendall_tau"]


def test_the_report_says_the_same_and_leaves_out_networks_that_are_trained_otherwise(ssfnas, world, nets, tmp_path):
    facts = ssfnas.ok("rank", world / "search", nets / "nets", cwd=tmp_path).json
    genotype = json.loads((nets / "nets" / "b-0" / "config.json").read_text())["genotype"]
    sha256 = json.loads((world / "search" / "config.json").read_text())["data"]["sha256"]
    make_run(tmp_path / "longer", epochs=9, sha256=sha256, genotype=genotype, splits={"test": split_of(99.0)})
    argv = ["report", world / "search", nets / "nets", "longer", "--rank", "--mistakes", "0", "-o", "-"]
    page = ssfnas.ok(*argv, cwd=tmp_path).out.decode()
    tau = facts["kendall_tau"]
    assert (
        "Rank consistency" in page
        and "5 genotypes" in page
        and page.count("Accuracy of retrained networks against") == 1
    )
    assert f"{tau['value']:.3f} (95 % from {tau['low']:.2f} to {tau['high']:.2f}" in page


def test_the_searchs_own_genotype_without_a_retraining_has_its_pruned_accuracy(ssfnas, world, tmp_path):
    facts = ssfnas.ok("rank", world / "search", world / "genotype.json", cwd=tmp_path).json
    last = json.loads((world / "search" / "metrics.jsonl").read_text().splitlines()[-1])
    (row,) = facts["genotypes"]
    assert row["supernet"] == last["pruned_accuracy_alpha_half"] and row["retrained"] is None
    assert facts["kendall_tau"] == {"value": None, "low": None, "high": None, "p": None} and facts["num_pairs"] == 0


@pytest.mark.parametrize(
    ("code", "words", "argv"),
    [
        (2, ["--figure f1", "top1, balanced_accuracy"], ["{nets}/nets", "--figure", "f1"]),
        (2, ["--output x.txt", ".svg"], ["{nets}/nets", "-o", "x.txt"]),
        (2, ["--output -", "name a file"], ["{nets}/nets", "-o", "-"]),
        (2, ["resnet32", "plain network"], ["resnet32"]),
        (3, ["random-1", "did not search"], ["random-1"]),
        (3, ["--split val", "ssfnas evaluate", "--split val"], ["{nets}/nets", "--split", "val"]),
        (3, ["nowhere", "no such"], ["nowhere.json"]),
        (3, ["is a folder without a run"], ["{nets}/files"]),
        (3, ["nothing to draw", "--nets"], ["{nets}/files/a.json", "-o", "scatter.svg"]),
    ],
)
def test_what_cannot_be_ranked_is_one_line(ssfnas, world, nets, tmp_path, code, words, argv):
    ssfnas.refuses(code, words, "rank", world / "search", *(one.format(nets=nets) for one in argv), cwd=tmp_path)


def test_a_search_without_a_checkpoint_or_that_is_none_is_refused(ssfnas, world, nets, tmp_path):
    shutil.copytree(world / "search", tmp_path / "bare")
    shutil.rmtree(tmp_path / "bare" / "checkpoints")
    ssfnas.refuses(
        3, ["bare: has no checkpoint", "search again, with --force"], "rank", "bare", nets / "nets", cwd=tmp_path
    )
    ssfnas.refuses(3, ["is a retrain run"], "rank", world / "retrain", nets / "nets", cwd=tmp_path)
