"""What `derive --rule perturbation`, `search --init-from` and `retrain --init-from` refuse, and how they say it."""


def test_a_flag_that_the_rule_has_no_use_for_is_refused(ssfnas, world, tmp_path):
    perturb = ["--rule", "perturbation"]
    for code, words, argv in (
        (2, ["--epochs-between", "is for --rule perturbation"], ["--epochs-between", "3"]),
        (2, ["--max-time", "is for --rule perturbation"], ["--rule", "darts", "--max-time", "9"]),
        (2, ["--set", "is for --rule perturbation"], ["--set", "criterion=loss"]),
        (2, ["--epoch", "is for the other rules"], [*perturb, "--epoch", "1"]),
        (2, ["--threshold", "is for the other rules"], [*perturb, "--threshold", "0.5"]),
        (2, ["--criterion", "'accuracy', 'balanced_accuracy' or 'loss'"], [*perturb, "--criterion", "f1"]),
        (2, ["--epochs-between", "greater than or equal to 0"], [*perturb, "--epochs-between", "-1"]),
        (2, ["--output -", "is a run folder"], [*perturb, "-o", "-"]),
        (2, ["unknown rule 'best'", "perturbation"], ["--rule", "best"]),
        (2, ["is the search that is derived from"], [*perturb, "-o", world / "search", "--force"]),
        (4, ["holds a retrain run"], [*perturb, "-o", world / "retrain"]),
        (3, ["nowhere: no such data set"], [*perturb, "--data", "nowhere"]),
    ):
        ssfnas.refuses(code, words, "derive", world / "search", *argv, cwd=tmp_path)
    ssfnas.refuses(3, ["is a retrain run, not a search run"], "derive", world / "retrain", *perturb, cwd=tmp_path)
    assert not (tmp_path / "runs").exists()


def test_settings_of_a_derivation_are_shown_and_read_back(ssfnas, world, tmp_path):
    derive = ["derive", world / "search", "--rule", "perturbation", "--show-settings"]
    shown = ssfnas.ok(*derive, "--criterion", "balanced_accuracy", cwd=tmp_path).out.decode()
    assert 'criterion = "balanced_accuracy"' in shown and "epochs_between = 5" in shown
    (tmp_path / "mine.toml").write_text(shown)
    assert ssfnas.ok(*derive, "--config", "mine.toml", cwd=tmp_path).out.decode() == shown


def test_a_start_that_is_none_or_does_not_fit_is_refused(ssfnas, world, tmp_path):
    search = ["search", "--data", world / "data", *ssfnas.tiny, *ssfnas.ops]
    retrain = ["retrain", world / "genotype.json", *ssfnas.tiny]
    begin = ["--init-from", world / "search"]
    for code, words, argv in (
        (3, ["--init-from nowhere: no such run folder"], [*search, "--init-from", "nowhere"]),
        (3, ["is a retrain run, not a search run"], [*search, "--init-from", world / "retrain"]),
        (2, ["--adapt", "name one with --init-from"], [*search, "--adapt", "head"]),
        (2, ["--adapt", "'all', 'head' or 'none'"], [*search, *begin, "--adapt", "tail"]),
        (2, ["--init-from", "channels 2", "give --channels 2"], [*search, *begin, "--channels", "4"]),
        (2, ["--order 2", "--adapt none"], [*search, *begin, "--adapt", "none", "--order", "2"]),
        (2, ["is the search that --init-from names"], [*search, *begin, "-o", world / "search", "--force"]),
        (3, ["--init-from nowhere: no such run folder"], [*retrain, "--init-from", "nowhere"]),
        (2, ["--init-from", "give --channels 2"], [*retrain, *begin, "--channels", "6"]),
        (2, ["--init-from", "no weights for 'resnet20'"], ["retrain", "resnet20", "--data", world / "data", *begin]),
    ):
        ssfnas.refuses(code, words, *argv, cwd=tmp_path)
    assert not (tmp_path / "runs").exists()
