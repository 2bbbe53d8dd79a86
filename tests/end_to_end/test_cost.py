"""Costs as a user meets them: flags and their words, the pipe from a search to a genotype that fits, latencies."""

import json

import pytest

SIZE = ["--cost-channels", "4", "--cost-layers", "5"]
NETWORK = ["--channels", "4", "--layers", "5", "--num-classes", "10", "--image-size", "8", "--in-channels", "1"]


def test_a_search_minds_a_cost_and_derive_fits_what_it_found(ssfnas, world, tmp_path):
    data = ["--data", world / "data", *ssfnas.tiny, "--set", "ops=sep_conv_3x3,dil_conv_3x3"]
    cost = ["--cost", "macs", "--cost-target", "0.0002G", *SIZE, "--set", "cost_weight=5"]
    searched = ssfnas.ok("search", *data, *cost, "-o", "run", cwd=tmp_path)
    assert searched.json["cost"] == "macs" and 150_000 < searched.json["expected_cost"] < 230_000
    assert "cost: macs of the network with 4 channels and 5 cells" in searched.err and "target 200k" in searched.err
    macs = searched.json["genotype_cost"]
    counted = ssfnas.ok("describe", "run", *NETWORK, cwd=tmp_path).json
    assert counted["num_macs"] == macs
    limit = ["--max-macs", f"{0.9 * macs / 1000:.3f}k", "--max-params", "1M"]
    fitted = ssfnas.ok("derive", "-", *limit, "-o", "small.json", cwd=tmp_path, stdin=searched.out)
    assert "multiply-adds" in fitted.err and "became" in fitted.err and "->" in fitted.err
    small = ssfnas.ok("describe", "small.json", *NETWORK, cwd=tmp_path).json
    assert small["num_macs"] <= 0.9 * macs
    recorded = json.loads((tmp_path / "small.json").read_text())["provenance"]["limits"]
    assert recorded["max_params"] == 1e6 and recorded["channels"] == 4, "as the search was told"
    assert searched.out == ssfnas.ok("search", *data, *cost, "-o", "run", cwd=tmp_path).out


@pytest.mark.parametrize(
    "words, flags",
    [
        (["--cost:", "'params', 'macs' or 'latency'"], ["--cost", "flops"]),
        (["--cost-target: is of a cost", "--cost params, macs or latency"], ["--cost-target", "300M"]),
        (["--cost-target: ", "300M, 0.3G, 3e8"], ["--cost", "macs", "--cost-target", "300X"]),
        (
            ["--cost-target 300M multiply-adds", "4 channels and 5 cells"],
            ["--cost", "macs", "--cost-target", "3e8", *SIZE],
        ),
        (["cost_weight", "is of a cost"], ["--set", "cost_weight=2"]),
        (["--cost-table", "is of latencies"], ["--cost", "macs", "--cost-table", "x.json"]),
    ],
    ids=lambda value: " ".join(value) if value[0].startswith("--") and len(value) > 1 else "",
)
def test_wrong_costs_of_a_search(ssfnas, world, tmp_path, words, flags):
    ssfnas.refuses(2, words, "search", "--data", world / "data", *ssfnas.tiny, *flags, "-q", cwd=tmp_path)


@pytest.mark.parametrize(
    "code, words, flags",
    [
        (2, ["--max-macs 0", "above 0"], ["--max-macs", "0"]),
        (2, ["--max-params many", "300M"], ["--max-params", "many"]),
        (2, ["--max-params 5ms", "is a time"], ["--max-params", "5ms"]),
        (2, ["--cost-channels 3", "even"], ["--max-params", "1M", "--cost-channels", "3"]),
        (2, ["--cost-layers", "--max-params and --max-macs"], ["--cost-layers", "4"]),
        (2, ["--max-macs", "other rules"], ["--rule", "perturbation", "--max-macs", "1M"]),
        (2, ["--candidate", "'gradient' judges none"], ["--candidate", "0"]),
        (3, ["--max-params 100", "the least is", "5 cells"], ["--max-params", "100", *SIZE]),
    ],
)
def test_wrong_limits_of_a_derivation(ssfnas, world, tmp_path, code, words, flags):
    ssfnas.refuses(code, words, "derive", world / "search", *flags, cwd=tmp_path)


def test_latencies_are_measured_once_kept_and_predicted_from(ssfnas, world, tmp_path):
    ops = ["--ops", ssfnas.ops[1].removeprefix("ops="), "--threads", "1"]
    size = ["--channels", "4", "--layers", "5", "--data", world / "data"]
    first = ssfnas.ok("latency", *size, *ops, "--repeats", "1", "-o", "mine.json", cwd=tmp_path)
    assert first.json["measured"] == len(first.json["parts"]) > 10 and first.json["known"] == 0
    assert ssfnas.ok("latency", *size, *ops, cwd=tmp_path).json["measured"] == 0
    table = json.loads((tmp_path / "mine.json").read_text())
    assert table["schema"] == "ssfnas.latency/1" and len(table["entries"]) == first.json["measured"]
    told = ssfnas.ok("describe", world / "genotype.json", *NETWORK, "--latency", "--threads", "1", cwd=tmp_path)
    assert "measuring" not in told.err, "the table has all parts of this genotype"
    assert told.json["predicted_ms"] > 0 and told.json["measured_ms"] > 0
    for entry in table["entries"]:
        entry["ms"] = 2.0
    (tmp_path / "mine.json").write_text(json.dumps(table))
    named = ["--latency", "--table", "mine.json", "--threads", "1"]
    told = ssfnas.ok("describe", world / "genotype.json", *NETWORK, *named, cwd=tmp_path).json
    assert told["predicted_ms"] == 2.0 * (2 + 3 * 5 + 5 * 8) and told["predicted_by"] == "mine.json"
    words = ["mine.json: lacks", "ssfnas latency --channels 36"]
    ssfnas.refuses(3, words, "describe", world / "genotype.json", *named, cwd=tmp_path)
    ssfnas.refuses(2, ["--batch", "--latency"], "describe", world / "genotype.json", "--batch", "2", cwd=tmp_path)
    by_table = ["--cost", "latency", "--cost-table", "mine.json", *SIZE, "--cost-target", "200ms", *ssfnas.ops]
    data = ["search", "--data", world / "data", *ssfnas.tiny]
    refused = ssfnas.refuses(2, ["--cost-target 200 ms", "cost 114 to 114 ms"], *data, *by_table, cwd=tmp_path)
    assert "--cost-channels" in refused
