"""A plain network goes where a genotype goes."""

import json
from pathlib import Path

from ssfnas_cli.artifacts.files import read_sealed_json

SHORT = ["--epochs", "1", "--batch-size", "32", "--threads", "1", "--set", "kernels=torch"]


def test_a_plain_network_is_trained_found_done_and_evaluated_by_its_name(ssfnas, world, tmp_path):
    argv = ["retrain", "resnet32", "--data", world / "data", *SHORT]
    first = ssfnas.ok(*argv, cwd=tmp_path).json
    assert (first["kind"], first["network"], first["state"]) == ("retrain-run", "resnet32", "done")
    assert first["num_params"] == 464_154 - 288  # one input channel instead of three
    assert "resnet32" in first["path"]
    assert ssfnas.ok(*argv, cwd=tmp_path).json == first, "the same command finds it done"
    metrics = ssfnas.ok("evaluate", first["path"], cwd=tmp_path).json
    assert set(metrics["splits"]) == {"test", "test_longtail"}
    kept = read_sealed_json(tmp_path / first["path"] / "evaluation.json")
    assert metrics.pop("kept_in") == str(Path(first["path"]) / "evaluation.json") and kept == metrics


def test_without_data_a_plain_network_trains_on_the_embedded_digits(ssfnas, tmp_path):
    facts = ssfnas.ok("retrain", "resnet32", "--dry-run", *SHORT, cwd=tmp_path).json
    assert "digits" in facts["data"] and facts["network"] == "resnet32" and not (tmp_path / "runs").exists()


def test_width_and_depth_of_a_plain_network_cannot_be_given(ssfnas, world, tmp_path):
    for flags, named in (
        (["--channels", "8"], "--channels"),
        (["--layers", "8"], "--layers"),
        (["--set", "layers=8"], "setting 'layers'"),
        (["--stem", "cifar"], "--stem"),
    ):
        words = [named, "'resnet32' has its own"]
        ssfnas.refuses(2, words, "retrain", "resnet32", "--data", world / "data", *flags, cwd=tmp_path)


def test_the_settings_of_a_plain_network_are_shown_without_those_that_it_has_of_its_own(ssfnas, world, tmp_path):
    argv = ["retrain", "resnet32", "--data", world / "data"]
    shown = ssfnas.ok(*argv, "--show-settings", cwd=tmp_path).out
    assert not [line for line in shown.splitlines() if line.startswith((b"channels", b"layers", b"stem"))]
    (tmp_path / "settings.toml").write_bytes(shown)
    assert ssfnas.ok(*argv, "--config", "settings.toml", "--show-settings", cwd=tmp_path).out == shown


def test_an_argument_that_is_neither_a_file_nor_a_network_is_refused(ssfnas, tmp_path):
    ssfnas.refuses(2, ["resnett32", "Did you mean 'resnet32'?"], "retrain", "resnett32", cwd=tmp_path)
    ssfnas.refuses(3, ["nowhere.json", "no such file"], "retrain", "nowhere.json", cwd=tmp_path)


def test_published_random_and_plain_networks_are_described_by_their_names(ssfnas, tmp_path):
    assert ssfnas.ok("describe", "DARTS_V2", cwd=tmp_path).json["num_params"] == 3_349_342
    assert ssfnas.ok("describe", "random-3", cwd=tmp_path).json["normal"]["edges"] == 8
    facts = ssfnas.ok("describe", "resnet20", cwd=tmp_path).json
    assert (facts["num_params"], facts["num_macs"], facts["network"]) == (269_722, 40_551_040, "resnet20")
    ssfnas.refuses(2, ["--layers", "'resnet20' has its own"], "describe", "resnet20", "--layers", "3", cwd=tmp_path)
    ssfnas.refuses(2, ["--stem", "'resnet20' has its own"], "describe", "resnet20", "--stem", "auto", cwd=tmp_path)
    ssfnas.refuses(2, ["--aux", "no auxiliary head"], "describe", "resnet20", "--aux", cwd=tmp_path)
    ssfnas.refuses(2, ["squeezenet1_1", "linear layer"], "describe", "squeezenet1_1", cwd=tmp_path)
    ssfnas.refuses(2, ["random-x", "seed"], "describe", "random-x", cwd=tmp_path)


def test_a_published_genotype_is_trained_and_evaluated_by_its_name_with_a_long_tailed_loss_and_a_mix(
    ssfnas, world, tmp_path
):
    shape = ["--channels", "4", "--layers", "3", "--set", "sampler=class_balanced", "--set", "ssl.loss=barlow"]
    argv = ["retrain", "DARTS_V1", "--data", world / "data", "--loss", "ldam", *shape, *SHORT, "-o", "run"]
    first = ssfnas.ok(*argv, cwd=tmp_path).json
    assert (first["state"], first["loss"]) == ("done", "ldam")
    assert ssfnas.ok(*argv, cwd=tmp_path).json == first, "the same command finds it done"
    assert set(ssfnas.ok("evaluate", "run", cwd=tmp_path).json["splits"]) == {"test", "test_longtail"}
    assert json.loads((tmp_path / "run" / "genotype.json").read_text())["name"] == "DARTS_V1"


def test_losses_heads_and_samplers_that_do_not_fit_are_refused_in_one_line(ssfnas, world, tmp_path):
    for words, flags in (
        (["'tau'", "greater than or equal to 0"], ["--loss", "logit_adjusted", "--set", "loss.tau=-1"]),
        (["'beta'", "less than 1"], ["--loss", "class_balanced", "--set", "loss.beta=1"]),
        (["head=linear", "cosine or etf"], ["--loss", "ldam", "--set", "head=linear"]),
        (["ssl.loss=ce", "is supervised"], ["--set", "ssl.loss=ce"]),
    ):
        argv = ["retrain", world / "genotype.json", "--data", world / "data", *flags, *SHORT, "-o", "run"]
        ssfnas.refuses(2, words, *argv, cwd=tmp_path)
    assert not (tmp_path / "run").exists()


def test_a_file_of_a_networks_name_is_taken_for_a_file(ssfnas, world, tmp_path):
    (tmp_path / "resnet32").write_bytes((world / "genotype.json").read_bytes())
    facts = ssfnas.ok("retrain", "resnet32", "--dry-run", "--layers", "3", *SHORT, cwd=tmp_path).json
    assert facts["network"] == "none" and facts["layers"] == 3


def test_a_dry_run_of_a_retraining_counts_its_pretraining_and_writes_nothing(ssfnas, world, tmp_path):
    flags = ["--pretrain", "barlow", "--pretrain-epochs", "2", "--channels", "2", "--layers", "3"]
    genotype = world / "genotype.json"
    facts = ssfnas.ok("retrain", genotype, "--dry-run", *flags, *SHORT, cwd=tmp_path).json
    assert [(part["phase"], part["epochs"]) for part in facts["phases"]] == [("pretrain", 2), ("train", 1)]
    assert facts["total_seconds"] > facts["epoch_seconds"] and facts["peak_memory_bytes"] > 0
    assert list(tmp_path.iterdir()) == []
    run = ssfnas.ok("retrain", genotype, *flags, *SHORT, "-o", "run", cwd=tmp_path).json
    assert run["num_params"] == facts["num_params"] - facts["num_aux_params"]
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["recipe"] >= 1


def test_evaluating_in_parts_keeps_every_split(ssfnas, world, tmp_path):
    import shutil

    shutil.copytree(world / "retrain", tmp_path / "run")
    for split in ("test", "test_longtail"):
        ssfnas.ok("evaluate", "run", "--data", world / "data", "--split", split, cwd=tmp_path)
    kept = read_sealed_json(tmp_path / "run" / "evaluation.json")
    assert set(kept["splits"]) == {"test", "test_longtail"}
