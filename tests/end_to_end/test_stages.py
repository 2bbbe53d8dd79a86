"""Every stage alone on paths: what it prints, what it writes, and that asking again changes nothing."""

import json
import re
import shutil

import pytest

from ssfnas_cli.artifacts.files import write_sealed_json

DARTS_V2 = """DARTS_V2 = Genotype(
    normal=[('sep_conv_3x3', 0), ('sep_conv_3x3', 1), ('sep_conv_3x3', 0), ('sep_conv_3x3', 1),
            ('sep_conv_3x3', 1), ('skip_connect', 0), ('skip_connect', 0), ('dil_conv_3x3', 2)],
    normal_concat=[2, 3, 4, 5],
    reduce=[('max_pool_3x3', 0), ('max_pool_3x3', 1), ('skip_connect', 2), ('max_pool_3x3', 1),
            ('max_pool_3x3', 0), ('skip_connect', 2), ('skip_connect', 2), ('max_pool_3x3', 1)],
    reduce_concat=range(2, 6))"""
# FairDARTS's form; no edge leads into node 3 of the normal cell, so the edge from it to node 4 is dead as well
SPARSE = """Genotype(normal=[('sep_conv_3x3', 2, 0), ('skip_connect', 4, 3), ('max_pool_3x3', 5, 2)],
    normal_concat=range(2, 6), reduce=[('max_pool_3x3', 2, 0), ('skip_connect', 3, 1)], reduce_concat=range(2, 4))"""


def test_make_dataset(world):
    printed = json.loads((world / "data.stdout").read_text())
    assert set(printed) == {
        "kind",
        "path",
        "sha256",
        "classes",
        "train_counts",
        "val_counts",
        "test_counts",
        "test_longtail_counts",
        "dist",
        "mu",
        "image_size",
    }
    assert (printed["kind"], printed["path"], printed["dist"], printed["mu"]) == ("dataset", "data", "exp", 0.5)
    assert printed["classes"] == [str(digit) for digit in range(10)]
    assert printed["train_counts"] == [int(12 * 0.5 ** (c / 9)) for c in range(10)]
    assert (world / "data" / "manifest.json").exists()


def test_make_dataset_twice_is_the_same_byte_for_byte(ssfnas, world, tmp_path):
    ssfnas.ok("make-dataset", "--max-per-class", "12", "--mu", "0.5", "-o", "again", cwd=tmp_path)
    names = sorted(path.name for path in (world / "data").iterdir())
    assert names == sorted(path.name for path in (tmp_path / "again").iterdir())
    assert all((world / "data" / name).read_bytes() == (tmp_path / "again" / name).read_bytes() for name in names)


def test_search(world):
    printed = json.loads((world / "search.stdout").read_text())
    assert (printed["kind"], printed["path"], printed["state"]) == ("search-run", "search", "done")
    assert (printed["relax"], printed["loss"], printed["epochs"]) == ("softmax", "ce", 2)
    run = world / "search"
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [1, 2]
    assert {"step_seconds", "peak_memory_bytes", "lr", "alpha_lr", "accuracy_alpha_half"} <= set(lines[0])
    assert json.loads((run / "config.json").read_text())["settings"]["ops"][1] == "max_pool_3x3"
    assert {"alphas.safetensors", "checkpoints", "genotype.json", "log.txt"} <= {path.name for path in run.iterdir()}
    assert (run / "genotype.json").read_bytes() == (world / "genotype.json").read_bytes()
    assert re.search(r"split of 'train' \(seed 0, per class\): \d+ images", (run / "log.txt").read_text())


def test_derive(ssfnas, world, tmp_path):
    genotype = json.loads((world / "genotype.json").read_text())
    assert genotype["schema"] == "ssfnas.genotype/1"
    provenance = genotype["provenance"]
    assert (provenance["epoch"], provenance["rule"], provenance["seed"]) == (2, "darts", 0)
    assert provenance["run"] == str(world / "search") and provenance["data"] == str(world / "data")
    assert set(provenance["versions"]) == {"ssfnas", "torch", "python"}
    first = ssfnas.ok("derive", world / "search", "--epoch", "0", "--rule", "argmax", "-o", "first.json", cwd=tmp_path)
    assert first.out == b"" and first.err.splitlines()[-1] == "next: ssfnas retrain first.json"
    initial = json.loads((tmp_path / "first.json").read_text())["provenance"]
    assert (initial["epoch"], initial["rule"]) == (0, "argmax")
    assert initial["alphas_sha256"] != provenance["alphas_sha256"]


def test_a_search_that_collapsed_into_skips_and_pools_is_said_and_described(ssfnas, world, tmp_path):
    argv = ["search", "--data", world / "data", *ssfnas.tiny, "--set", "ops=skip_connect,max_pool_3x3", "-o", "run"]
    ssfnas.ok(*argv, cwd=tmp_path)
    derived = ssfnas.ok("derive", "run", cwd=tmp_path)
    (line,) = derived.err.splitlines()
    assert line.startswith("ssfnas: warning: ") and "have no weights: the search may have collapsed" in line
    described = ssfnas.ok("describe", "-", stdin=derived.out, cwd=tmp_path).json
    for kind in ("normal", "reduce"):
        ops = described[kind]["ops"]
        assert set(ops) <= {"skip_connect", "max_pool_3x3"} and sum(ops.values()) == described[kind]["edges"] == 8
        assert all(f"{name} {count}" in line for name, count in ops.items())


def test_a_cell_with_weights_is_no_collapse(ssfnas, world, tmp_path):
    argv = ["search", "--data", world / "data", *ssfnas.tiny, "--set", "ops=none,sep_conv_3x3", "-o", "run"]
    ssfnas.ok(*argv, cwd=tmp_path)
    assert ssfnas.ok("derive", "run", cwd=tmp_path).err == ""


def test_retrain(world):
    printed = json.loads((world / "retrain.stdout").read_text())
    assert (printed["kind"], printed["path"], printed["state"]) == ("retrain-run", "retrain", "done")
    assert (printed["loss"], printed["pretrain"]) == ("ce", "none")
    assert printed["data"] == str(world / "data"), "the data set is the genotype's"
    assert (world / "retrain" / "model.safetensors").exists()
    assert (world / "retrain" / "genotype.json").read_bytes() == (world / "genotype.json").read_bytes()


def test_evaluate(ssfnas, world, tmp_path):
    metrics = ssfnas.ok("evaluate", world / "retrain", "--threads", "1", cwd=tmp_path).json
    assert metrics["kind"] == "metrics" and set(metrics["splits"]) == {"test", "test_longtail"}
    counts = json.loads((world / "data.stdout").read_text())["test_counts"]
    split = metrics["splits"]["test"]
    assert {"num_images", "top1", "balanced_accuracy", "macro_f1", "ece", "per_class", "confusion"} <= set(split)
    assert [sum(row) for row in split["confusion"]] == counts
    right = sum(split["confusion"][c][c] for c in range(10))
    assert split["top1"] == pytest.approx(100 * right / sum(counts))
    assert split["balanced_accuracy"] == pytest.approx(sum(split["per_class"].values()) / 10)
    assert sum(len(group["classes"]) for group in split["groups_by_thirds"].values()) == 10
    assert sum(len(group["classes"]) for group in split["groups_by_count"].values()) == 10

    argv = ["evaluate", world / "retrain", "--split", "test", "--threads", "1", "-o", "metrics.json"]
    assert ssfnas.ok(*argv, cwd=tmp_path).out == b""
    assert json.loads((tmp_path / "metrics.json").read_text())["splits"] == {"test": split}


@pytest.mark.parametrize(
    "suffix, starts", [("svg", b"<?xml"), ("png", b"\x89PNG"), ("pdf", b"%PDF"), ("dot", b"digraph")]
)
def test_plot_genotype(ssfnas, world, tmp_path, suffix, starts):
    result = ssfnas.ok("plot-genotype", world / "genotype.json", "-o", f"cells.{suffix}", cwd=tmp_path)
    assert result.out == b"" and result.err == f"cells.{suffix}\n"
    assert (tmp_path / f"cells.{suffix}").read_bytes().startswith(starts)


def test_force_moves_the_old_output_aside(ssfnas, world, tmp_path):
    (tmp_path / "cells.dot").write_text("precious")
    result = ssfnas.ok("plot-genotype", world / "genotype.json", "-o", "cells.dot", "--force", cwd=tmp_path)
    assert "ssfnas: warning: --force: what was cells.dot is now cells.dot.old-1" in result.err
    assert (tmp_path / "cells.dot.old-1").read_text() == "precious"
    assert (tmp_path / "cells.dot").read_bytes().startswith(b"digraph")


def test_a_genotype_is_drawn_by_the_names_that_describe_and_retrain_take(ssfnas, tmp_path):
    for name in ("DARTS_V2", "random-3"):
        assert b"</svg>" in ssfnas.ok("plot-genotype", name, "-o", "-", cwd=tmp_path).out
    refused = lambda name, *words: ssfnas.refuses(2, words, "plot-genotype", name, "-o", "x.svg", cwd=tmp_path)
    refused("DARTS_V3", "DARTS_V3: no such file, and no network has that name", "Did you mean 'DARTS_V2'")
    refused("resnet32", "resnet32: is a plain network, which has no genotype")
    refused("random-x", "random-x: a random genotype is named by its seed")


def test_plot_genotype_to_stdout(ssfnas, world, tmp_path):
    both = ssfnas.ok("plot-genotype", world / "genotype.json", "-o", "-", cwd=tmp_path)
    normal = ssfnas.ok(
        "plot-genotype",
        "-",
        "--cell",
        "normal",
        "-o",
        "-",
        "-q",
        stdin=(world / "genotype.json").read_bytes(),
        cwd=tmp_path,
    )
    assert both.err == normal.err == "" and list(tmp_path.iterdir()) == []
    assert both.out.rstrip().endswith(b"</svg>") and len(normal.out) < len(both.out)


def test_import_and_describe_a_published_genotype(ssfnas, tmp_path):
    (tmp_path / "genotypes.py").write_text(f"from x import y\n{DARTS_V2}\nOTHER = {SPARSE}\n")
    genotype = ssfnas.ok("import-genotype", "genotypes.py", "--name", "DARTS_V2", cwd=tmp_path).out
    assert json.loads(genotype)["name"] == "DARTS_V2"
    plain = ssfnas.ok("describe", "-", stdin=genotype, cwd=tmp_path).json
    with_aux = ssfnas.ok("describe", "-", "--aux", stdin=genotype, cwd=tmp_path).json
    assert (plain["num_params"], plain["num_macs"]) == (3_349_342, 528_359_040)
    assert with_aux["num_params"] == 3_825_768


def test_describe_of_a_run_is_of_its_own_network(ssfnas, world, tmp_path):
    """Its width, depth, classes and image size, not those of the papers; a flag wins."""
    trained = ssfnas.ok("describe", world / "retrain", cwd=tmp_path)
    assert trained.err == ""
    facts = trained.json
    assert facts["run"] == str(world / "retrain")
    assert {"channels": 2, "layers": 3, "num_classes": 10, "image_size": 8, "in_channels": 1}.items() <= facts.items()
    said = (world / "retrain" / "log.txt").read_text()
    assert f"network: {facts['num_params']:,} weights" in said
    for argument, how in ((world / "search", {}), ("-", {"stdin": (world / "retrain.stdout").read_bytes()})):
        facts = ssfnas.ok("describe", argument, "--layers", "6", cwd=world, **how).json
        assert (facts["channels"], facts["layers"], facts["in_channels"]) == (2, 6, 1)
    plain = ssfnas.ok("describe", world / "genotype.json", cwd=tmp_path).json
    assert (plain["channels"], plain["layers"], plain["num_classes"], plain["image_size"]) == (36, 20, 10, 32)


def test_a_run_whose_data_set_has_gone_is_described_with_a_word(ssfnas, world, tmp_path):
    shutil.copytree(world / "search", tmp_path / "search")
    (tmp_path / "data").mkdir()
    config = json.loads((tmp_path / "search" / "config.json").read_text())
    config.pop("sha256")
    config["data"]["path"] = str(tmp_path / "gone")
    write_sealed_json(tmp_path / "search" / "config.json", config)
    result = ssfnas.ok("describe", "search", "--num-classes", "7", cwd=tmp_path)
    assert "gone: no such data set" in result.err and "counting with --image-size 32, --in-channels 3" in result.err
    assert (result.json["channels"], result.json["num_classes"]) == (2, 7)


def test_plot_of_a_run_is_that_of_its_genotype(ssfnas, world, tmp_path):
    expected = ssfnas.ok("plot-genotype", world / "genotype.json", "-o", "-", cwd=tmp_path).out
    for argument, how in {
        world / "search": {},
        world / "retrain": {},
        "-": {"stdin": (world / "search.stdout").read_bytes()},
    }.items():
        assert ssfnas.ok("plot-genotype", argument, "-o", "-", cwd=world, **how).out == expected


def test_a_run_without_a_genotype_names_derive(ssfnas, world, tmp_path):
    ssfnas.run(
        "search", "--data", world / "data", *ssfnas.tiny, *ssfnas.ops, "--max-time", "0", "-o", "run", cwd=tmp_path
    )
    for command in (["describe", "run"], ["plot-genotype", "run", "-o", "x.svg"]):
        ssfnas.refuses(3, ["run: has no genotype yet", "'ssfnas derive run'"], *command, cwd=tmp_path)


def test_sparse_imported_genotype_is_pretrained_retrained_and_drawn(ssfnas, world, tmp_path):
    genotype = ssfnas.ok("import-genotype", "-", stdin=SPARSE.encode(), cwd=tmp_path).out
    assert json.loads(genotype)["normal"]["concat"] == [2, 5], "nodes without input leave the concat"
    assert json.loads(genotype)["drop_path"] == "node"
    (tmp_path / "sparse.json").write_bytes(genotype)
    argv = [
        "retrain",
        "sparse.json",
        "--data",
        world / "data",
        *ssfnas.tiny,
        "--pretrain",
        "barlow",
        "--pretrain-epochs",
        "1",
        "-o",
        "run",
    ]
    printed = ssfnas.ok(*argv, cwd=tmp_path).json
    assert (printed["loss"], printed["pretrain"]) == ("ce", "barlow")
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["phase"] for line in lines] == ["pretrain", "train"]
    assert b"</svg>" in ssfnas.ok("plot-genotype", "sparse.json", "-o", "-", cwd=tmp_path).out


@pytest.mark.parametrize(
    "relax, loss, order", [("softmax", "barlow", "2"), ("sigmoid", "ce", "2"), ("sigmoid", "barlow", "1")]
)
def test_the_other_arms_and_the_second_order(ssfnas, world, tmp_path, relax, loss, order):
    argv = [
        "search",
        "--data",
        world / "data",
        *ssfnas.tiny,
        *ssfnas.ops,
        "--relax",
        relax,
        "--loss",
        loss,
        "--order",
        order,
        "-o",
        "run",
    ]
    printed = ssfnas.ok(*argv, cwd=tmp_path).json
    assert (printed["relax"], printed["loss"]) == (relax, loss)
    assert ("probe_accuracy_alpha_half" if loss == "barlow" else "accuracy_alpha_half") in printed
    rule = json.loads((tmp_path / "run" / "genotype.json").read_text())["provenance"]["rule"]
    assert rule == {"softmax": "darts", "sigmoid": "fairdarts"}[relax]


@pytest.mark.parametrize(
    "stage, argv",
    [
        ("search", ["search", "--data", "data", "--epochs", "2", "-o", "search"]),
        ("retrain", ["retrain", "genotype.json", "-o", "retrain"]),
    ],
)
def test_done_is_done(ssfnas, world, stage, argv):
    """The same command on the same folder: the same bytes at once, and no file changes."""
    flags = [*ssfnas.tiny, *ssfnas.ops] if stage == "search" else ssfnas.tiny
    before = {path: path.stat().st_mtime_ns for path in (world / stage).rglob("*")}
    again = ssfnas.ok(argv[0], *flags, *argv[1:], cwd=world)
    assert again.out == (world / f"{stage}.stdout").read_bytes()
    assert "is done; nothing to do" in again.err
    assert {path: path.stat().st_mtime_ns for path in (world / stage).rglob("*")} == before


def test_runs(ssfnas, world):
    listed = ssfnas.ok("runs", ".", cwd=world).json["runs"]
    assert [(run["path"], run["kind"], run["state"]) for run in listed] == [
        ("retrain", "retrain", "done"),
        ("search", "search", "done"),
    ]
    is_evaluated = (world / "retrain" / "evaluation.json").exists()  # by another test of this session
    assert [run["next"] for run in listed] == [
        "" if is_evaluated else "ssfnas evaluate retrain",
        "ssfnas derive search",
    ]


def test_runs_counts_the_damaged_and_shows_the_whole_command(ssfnas, world, tmp_path):
    argv = ["search", "--data", world / "data", *ssfnas.tiny, *ssfnas.ops, "--max-time", "0", "-o", "my run"]
    assert ssfnas.run(*argv, cwd=tmp_path).code == 75
    shutil.copytree(world / "retrain", tmp_path / "broken")
    with (tmp_path / "broken" / "config.json").open("a") as stream:
        stream.write("x")
    config = json.loads((tmp_path / "my run" / "config.json").read_text())
    config.pop("sha256")
    config["command"] = "ssfnas search -o 'my run'"
    write_sealed_json(tmp_path / "my run" / "config.json", config)
    listed = ssfnas.ok("runs", ".", cwd=tmp_path)
    assert listed.json["damaged"] == ["broken"]
    broken, run = listed.json["runs"]
    assert broken["state"] == "damaged" and "broken/config.json" in broken["next"]
    assert (run["state"], run["command"], run["next"]) == ("stopped", config["command"], config["command"])


def test_a_fork_says_and_does_what_the_installed_program_does(ssfnas, world, tmp_path):
    """Most tests take forks, which start sooner."""
    ends = []
    for name, program in (("fork", ssfnas), ("installed", ssfnas.installed)):
        folder = tmp_path / name
        folder.mkdir()
        argv = ["retrain", world / "genotype.json", "--data", world / "data", *ssfnas.tiny, "-o", "run"]
        results = [
            program.ok(*argv, cwd=folder),
            program.ok("evaluate", "run", "--threads", "1", cwd=folder),
            program.run("derive", "run", cwd=folder),
            program.run("describe", "-", cwd=folder, stdin=(world / "genotype.json").read_bytes()),
        ]
        assert [result.code for result in results] == [0, 0, 3, 0]
        printed = [re.sub(rb'"elapsed_seconds": [0-9.]+', b"", result.out) for result in results]
        said = [result.err for result in results[1:]]
        ends.append((printed, said, (folder / "run" / "model.safetensors").read_bytes()))
    assert ends[0] == ends[1]
