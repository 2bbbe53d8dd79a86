import tomllib

import pytest
from settings_support import load

from ssfnas_cli.errors import InputError, UsageError
from ssfnas_cli.settings import (
    PRESETS,
    RECIPES,
    RetrainSettings,
    SearchSettings,
    flatten,
    load_settings,
    read_configs,
    to_toml,
)


def refused(*sets, error=UsageError, **layers):
    with pytest.raises(error) as caught:
        load(*sets, **layers).resolve_plugins()
    assert "\n" not in str(caught.value)
    return str(caught.value)


# Precedence


def test_defaults_are_the_papers():
    search, retrain = load(), load(model=RetrainSettings)
    assert (search.relax.name, search.loss.name, search.order) == ("softmax", "ce", 1)
    assert (search.epochs, search.batch_size, search.channels, search.layers) == (40, 64, 16, 8)
    assert (search.lr, search.lr_min, search.momentum, search.weight_decay, search.clip) == (0.025, 0.001, 0.9, 3e-4, 5)
    assert (retrain.epochs, retrain.channels, retrain.layers) == (150, 36, 20)
    assert (retrain.aux_weight, retrain.drop_path, retrain.cutout) == (0.4, 0.2, 0.5)
    assert load(preset="paper").alpha_lr == 3e-4


def test_each_layer_outranks_the_one_below_it(toml):
    quick = PRESETS[SearchSettings]["quick"]
    assert load(preset="quick").epochs == quick["epochs"] != load().epochs
    config = toml("epochs = 7\nlayers = 5\nbatch_size = 9")
    got = load("layers=6", "batch_size=10", preset="quick", config=config, batch_size=11)
    assert (got.channels, got.epochs, got.layers, got.batch_size) == (quick["channels"], 7, 6, 11)
    assert got.momentum == 0.9, "and the defaults lie below"


def test_flags_that_were_not_given_say_nothing():
    assert load("epochs=3", epochs=None).epochs == 3


def test_of_two_sets_the_later_wins():
    assert load("epochs=3", "epochs=4").epochs == 4


def test_nested_settings_are_merged_key_by_key(toml):
    got = load("views.hue=0.05", preset="quick", config=toml("[views]\nhue = 0.3\nblur = true"))
    assert (got.views.min_scale, got.views.hue, got.views.blur, got.views.contrast) == (0.5, 0.05, True, 0.4)


# Plugins


def test_an_option_beside_its_plugins_flag_reaches_it():
    got = load("relax.zero_one=l2", "loss.lambda=0.005", relax="sigmoid", loss="barlow").resolve_plugins()
    assert got.relax.options() == {
        **{"zero_one": "l2", "zero_one_weight": 10.0, "zero_one_warmup": 0.0, "init_std": 0.0},
    }
    assert got.loss.options()["lambda"] == 0.005


@pytest.mark.parametrize("sets", [("loss=barlow", "loss.lambda=0.5"), ("loss.lambda=0.5", "loss=barlow")])
def test_an_option_reaches_its_plugin_in_either_order_of_sets(sets):
    assert load(*sets).loss.options() == {"lambda": 0.5}


def test_a_name_and_its_options_may_come_from_a_config(toml):
    config = toml('[loss]\nname = "barlow"\nlambda = 0.5\nscale = 0.1\n[relax]\ninit_std = 0.5')
    assert load(config=config).loss.options() == {"lambda": 0.5, "scale": 0.1}
    got = load("loss.scale=0.2", config=config)
    assert got.loss.options() == {"lambda": 0.5, "scale": 0.2}, "a higher layer adds to it"
    assert got.relax.name == "softmax" and got.relax.options() == {"init_std": 0.5}


def test_renaming_a_section_forgets_the_options_of_lower_layers(toml):
    config = toml('[loss]\nname = "barlow"\nlambda = 0.5')
    assert load(config=config, loss="ce").loss.options() == {}
    assert load("loss=ce", config=config).loss.options() == {}
    assert load("loss.label_smoothing=0.1", config=config, loss="ce").loss.options() == {"label_smoothing": 0.1}
    assert load(config=config, loss="barlow").loss.options() == {"lambda": 0.5}, "the same name keeps them"


def test_a_flag_that_renames_what_a_set_names_forgets_its_options():
    assert load("relax=softmax", "relax.init_std=0.5", relax="sigmoid").relax.options() == {}


def test_resolving_spells_out_every_option_with_its_default():
    got = load(loss="barlow").resolve_plugins()
    assert got.loss.options() == {"lambda": 0.0051, "projector_dim": 128, "centred": True, "scale": 1.0}
    assert got.alpha_loss.name == "none" and got.alpha_loss.options() == {}


@pytest.mark.parametrize(
    ("sets", "flags", "message"),
    [
        (["loss=barlo"], {}, "Did you mean 'barlow'?"),
        ([], {"loss": "barlo"}, "--loss: unknown loss 'barlo'. Did you mean 'barlow'? Available: ce, barlow"),
        ([], {"relax": "sigmod"}, "--relax: unknown relaxation 'sigmod'. Did you mean 'sigmoid'?"),
        (
            ["loss.lamda=1"],
            {"loss": "barlow"},
            "setting 'loss.lamda': 'barlow' has no option 'lamda'. Did you mean 'lambda'?",
        ),
        (["loss.lambda=1"], {"loss": "ce"}, "'ce' has no option 'lambda'"),
        (["loss.lambda=nan"], {"loss": "barlow"}, "option 'lambda' of 'barlow'"),
        (["relax.zero_one=l3"], {"relax": "sigmoid"}, "option 'zero_one' of 'sigmoid'"),
        ([], {"loss": "none"}, "unknown loss 'none'"),
        (["alpha_loss.lambda=1"], {}, "options without a plugin"),
    ],
)
def test_wrong_plugins_and_options_are_named(sets, flags, message):
    assert message in refused(*sets, error=ValueError, **flags)


# Wrong keys and values


@pytest.mark.parametrize(
    ("key", "suggestion"), [("epoch", "epochs"), ("batchsize", "batch_size"), ("view", "views"), ("lambda", "")]
)
def test_an_unknown_setting_gets_a_suggestion(key, suggestion, toml):
    file = toml(f"{key} = 1")
    in_file = refused(config=file)
    assert in_file.startswith(f"--config {file}: ")
    for text in (refused(f"{key}=1"), in_file.removeprefix(f"--config {file}: "), refused(f"{key}.x=1")):
        assert text.startswith(f"unknown setting '{key}'.")
        assert ("Did you mean" in text) == bool(suggestion) and suggestion in text


def test_what_is_wrong_in_a_config_names_the_file(toml):
    file = toml("epochs = 7\nlr = -1")
    assert refused(config=file).startswith(f"--config {file}: setting 'lr': ")
    assert refused("lr=-2", config=file).startswith("setting 'lr': ")
    assert "write it without quotes, or in the table [loss]" in refused(config=toml('"loss.lambda" = 1'))


@pytest.mark.parametrize("text", ["lr=true", "epochs=true", "alpha_betas=[true,0.9]", "drop_path=true"])
def test_true_is_no_number(text):
    model = RetrainSettings if "drop_path" in text else SearchSettings
    assert "should be no true or false" in refused(text, model=model)
    assert "should be no true or false" in refused("loss.gamma=true", loss="focal", error=ValueError)
    assert load("stop_when_collapsed=true").stop_when_collapsed


def test_a_later_config_lies_over_an_earlier_one(toml, tmp_path):
    (tmp_path / "other.toml").write_text('epochs = 9\n[loss]\nname = "focal"\ngamma = 1')
    files = read_configs([toml('epochs = 7\nlayers = 5\nloss = "focal"'), tmp_path / "other.toml"])
    got = load_settings(SearchSettings, configs=files)
    assert (got.epochs, got.layers, got.loss.name, got.loss.options()) == (9, 5, "focal", {"gamma": 1})


def test_an_unknown_setting_within_another_is_named_whole():
    assert refused("views.hu=1") == "unknown setting 'views.hu'"


@pytest.mark.parametrize("number", ["nan", "inf", "-inf"])
@pytest.mark.parametrize("key", ["lr", "momentum", "alpha_lr", "views.hue", "max_time", "save_minutes"])
def test_numbers_that_are_not_finite_are_refused(key, number):
    assert f"'{key}'" in refused(f"{key}={number}")


@pytest.mark.parametrize(
    ("sets", "message"),
    [
        ("epochs=0", "setting 'epochs': Input should be greater than or equal to 1 (got 0)"),
        ("epochs=2.5", "setting 'epochs': Input should be a valid integer"),
        ("epochs=many", "setting 'epochs': Input should be a valid integer"),
        ("batch_size=1", "setting 'batch_size': Input should be greater than or equal to 2 (got 1)"),
        ("channels=3", "setting 'channels': Input should be a multiple of 2 (got 3)"),
        ("layers=2", "setting 'layers'"),
        ("order=3", "setting 'order': Input should be 1 or 2 (got 3)"),
        ("lr=0", "setting 'lr'"),
        ("momentum=1", "setting 'momentum'"),
        ("seed=-1", "setting 'seed'"),
        ("seed=9223372036854775808", "setting 'seed'"),
        ("alpha_betas=[0.5,1.5]", "setting 'alpha_betas"),
        ("alpha_lr=-1", "setting 'alpha_lr': "),
        ("max_time=-5", "setting 'max_time': "),
        ("ops=none", "'none' alone leaves nothing to search"),
        ("ops=none,skip_connect,none", "an op is named twice"),
        ("ops=sep_conv3x3", "unknown op 'sep_conv3x3'. Did you mean 'sep_conv_3x3'?"),
        ("precision=fp16", "setting 'precision': Input should be 'fp32' or 'bf16' (got 'fp16')"),
        ("loss=3", "setting 'loss': "),
        ("loss=true", "setting 'loss': "),
        ("views=3", "setting 'views': "),
        ("lr.x=3", "setting 'lr'"),
        ("epochs", "--set epochs: should look like key=value"),
        ("=3", "--set =3: should look like key=value"),
    ],
)
def test_a_wrong_value_is_told_with_its_setting(sets, message):
    assert message in refused(sets)


def test_a_wrong_value_of_a_flag_is_told_by_the_flag():
    assert refused(batch_size=1).startswith("--batch-size: ") and refused(epochs=0).startswith("--epochs: ")
    assert refused("batch_size=1", epochs=3).startswith("setting 'batch_size'")


def test_presets_that_do_not_exist_are_told(toml):
    assert (
        refused(preset="quik")
        == "--preset: unknown preset 'quik'. Did you mean 'quick'? Available: quick, standard, paper"
    )


def test_every_preset_is_valid():
    for model, presets in PRESETS.items():
        for name in presets:
            load(model=model, preset=name).resolve_plugins()


# Recipes


def test_a_recipe_lies_over_any_preset_and_keeps_its_budget():
    for name, budget in PRESETS[RetrainSettings].items():
        plain = flatten(load(model=RetrainSettings, preset=name).model_dump())
        for given in ([name, "strong"], ["strong", name], ["strong", name, "strong"]):
            ours = flatten(load(model=RetrainSettings, preset=given).resolve_plugins().model_dump())
            changed = {key for key, value in plain.items() if ours[key] != value}
            assert changed <= set(flatten(RECIPES[RetrainSettings]["strong"])) and "nesterov" in changed
        assert all(ours[key] == value for key, value in budget.items() if key != "views")


def test_what_is_given_beside_a_recipe_wins_over_it(toml):
    retrain = lambda *sets, **more: load(*sets, model=RetrainSettings, preset=["standard", "strong"], **more)
    assert retrain().lr_warmup_epochs == 2 and retrain("lr_warmup_epochs=0").lr_warmup_epochs == 0
    assert retrain(config=toml("nesterov = false")).nesterov is False
    assert retrain().loss.options() == {"label_smoothing": 0.1} == retrain(loss="ce").loss.options()
    assert retrain(loss="logit_adjusted").loss.options() == {}, "another loss forgets it"


def test_two_budgets_and_recipes_of_another_command_are_refused():
    assert refused(model=RetrainSettings, preset=["strong", "quick", "paper"]) == (
        "--preset: 'quick' and 'paper' each set the whole budget: give one of them"
    )
    known = "Available: quick, standard, paper"
    assert refused(preset=["strong"]) == f"--preset: unknown preset 'strong'. {known}"
    told = refused(model=RetrainSettings, preset=["stron"])
    assert told == f"--preset: unknown preset 'stron'. Did you mean 'strong'? {known}, strong"


@pytest.mark.parametrize(
    ("sets", "message"),
    [
        (["mixup=0"], "setting 'mixup': Input should be 'none' or should be greater than 0 (got 0)"),
        (["mixup=-1"], "setting 'mixup': "),
        (["cutmix=-0.5"], "setting 'cutmix': Input should be 'none' or should be greater than 0 (got -0.5)"),
        (["cutmix=2000"], "or should be less than or equal to 1000 (got 2000)"),
        (["ema=1"], "setting 'ema': Input should be 'none' or should be less than 1 (got 1)"),
        (["ema=-0.1"], "setting 'ema': Input should be 'none' or should be greater than or equal to 0 (got -0.1)"),
        (["lr_warmup_epochs=8", "epochs=8"], "'lr_warmup_epochs': leaves none of the 8 epochs to train in"),
        (["lr_warmup_epochs=-1"], "setting 'lr_warmup_epochs': Input should be greater than or equal to 0"),
        (["nesterov=true", "momentum=0"], "setting 'nesterov': needs momentum, and momentum is 0"),
        (["augment=trivail"], "setting 'augment': Input should be 'none', 'trivial' or 'rand' (got 'trivail')"),
        (["augment=trivial", "rand_ops=3"], "'rand_ops': is RandAugment's, and augment is 'trivial': set augment=rand"),
        (["rand_magnitude=5"], "'rand_magnitude': is RandAugment's, and augment is 'none': set augment=rand"),
        (["augment=rand", "rand_magnitude=31"], "setting 'rand_magnitude': Input should be less than or equal to 30"),
        (["augment=rand", "rand_ops=0"], "setting 'rand_ops'"),
        (["mixup=nan"], "setting 'mixup': "),
        (["decay_bn=maybe"], "setting 'decay_bn': "),
    ],
)
def test_a_wrong_value_of_a_recipe_is_told(sets, message):
    assert message in refused(*sets, model=RetrainSettings)


def test_a_deferred_sampler_that_would_never_begin_is_refused():
    deferred = ["sampler=class_balanced", "sampler.defer=0.8"]
    told = "setting 'sampler': defer=0.8 leaves none of the 4 epochs to sample otherwise: take at most 0.75"
    for model in (RetrainSettings, SearchSettings):
        assert told in refused(*deferred, "epochs=4", model=model)
        assert load(*deferred, "epochs=5", model=model).epochs == 5
    assert "setting 'alpha_sampler': " in refused("alpha_sampler=under", "alpha_sampler.defer=0.8", "epochs=4")


def test_a_warm_up_of_all_epochs_is_refused_in_a_search():
    assert "'warmup_epochs': leaves none of the 3 epochs for the alphas" in refused("warmup_epochs=3", "epochs=3")
    assert load("warmup_epochs=2", "epochs=3").warmup_epochs == 2


def test_a_warm_up_shorter_than_the_training_and_options_of_rand_are_taken():
    assert load("lr_warmup_epochs=7", "epochs=8", model=RetrainSettings).lr_warmup_epochs == 7
    assert load("augment=rand", "rand_ops=3", model=RetrainSettings).rand_ops == 3
    assert not load(model=RetrainSettings).mixes and load("cutmix=1", model=RetrainSettings).mixes
    settings = load(model=RetrainSettings, preset=["paper", "strong"]).resolve_plugins()
    assert RetrainSettings.model_validate(tomllib.loads(to_toml(settings))) == settings


def test_a_config_that_cannot_be_read_is_told(tmp_path, toml):
    assert "no such file" in refused(config=tmp_path / "missing.toml", error=InputError)
    assert "is not TOML" in refused(config=toml("epochs = = 3"), error=InputError)
    (tmp_path / "bytes.toml").write_bytes(b"\xff\x00")
    assert "cannot be read" in refused(config=tmp_path / "bytes.toml", error=InputError)
    assert "is a folder: name a TOML file" in refused(config=tmp_path, error=InputError)


# Values


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        *(("3:50:00", 13800.0), ("03:50:00", 13800.0), ("50:00", 3000.0), ("90", 90.0), ("1.5", 1.5)),
        *(("0:00:30", 30.0), ("72:00:00", 259200.0), ("none", "none"), ("12:30:00", 45000.0)),
    ],
)
def test_a_time_limit_is_hours_minutes_seconds_or_seconds(text, seconds):
    assert load(max_time=text).max_time == seconds
    assert load(f"max_time={text}").max_time == seconds


@pytest.mark.parametrize("text", ["1:2:3:4", "soon", "1:", ":", "-5", "1:-2", "", "1h"])
def test_other_time_limits_are_refused(text):
    assert refused(max_time=text).startswith("--max-time: ")


def test_values_of_sets_are_toml_or_bare_words():
    got = load("ops=none, skip_connect", "track_test=true", "lr=1e-2", "data=some folder/x", 'relax="sigmoid"')
    assert got.ops == ("none", "skip_connect") and got.track_test is True and got.lr == 0.01
    assert got.data == "some folder/x" and got.relax.name == "sigmoid"
    assert load('ops=["skip_connect", "none"]').ops == ("skip_connect", "none")
    assert load("data=a=b").data == "a=b"


# Sections, samplers and names that became built-in


def test_a_loss_within_a_section_is_a_plugin_like_the_others(toml):
    for sets in (("ssl.loss=barlow", "ssl.loss.lambda=0.1"), ("ssl.loss.lambda=0.1", "ssl.loss=barlow")):
        settings = load(*sets, "ssl.weight=0.5").resolve_plugins()
        assert settings.ssl.weight == 0.5 and settings.ssl.loss.options()["lambda"] == 0.1
        assert load(config=toml(to_toml(settings))).resolve_plugins() == settings
    assert settings.changed_identity() == {"ssl.loss.name": "barlow", "ssl.loss.lambda": 0.1, "ssl.weight": 0.5}
    assert load(config=toml('[ssl]\nloss = "barlow"\n'), ssl={"loss": "vicreg"}).ssl.loss.name == "vicreg"
    forgotten = load("ssl.loss=vicreg", config=toml('[ssl.loss]\nname = "barlow"\nlambda = 0.1\n'))
    assert forgotten.ssl.loss.options() == {}, "another plugin's options are forgotten"


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("ssl.loss=barlo", "setting 'ssl.loss': unknown loss 'barlo'. Did you mean 'barlow'"),
        ("ssl.loss.lambda=1", "options without a plugin: name one with '--set ssl.loss=NAME'"),
        ("ssl.weight=0.5", "'ssl.weight' without a loss"),
        ("ssl.weight=0", "setting 'ssl.weight'"),
        ("alpha_sampler=undr", "Did you mean 'under'"),
    ],
)
def test_wrong_settings_of_a_mix_and_of_samplers_are_told(given, words):
    with pytest.raises(UsageError, match=words):
        load(given)


def test_a_plugin_whose_name_became_a_builtins_is_a_warning_when_that_name_is_used(monkeypatch, caplog):
    from ssfnas_cli.settings import base

    base._warn_of_clash.cache_clear()
    clash = {"class_balanced": "acme 1.2 also brings the built-in loss 'class_balanced'; the built-in is used"}
    monkeypatch.setattr(base.REGISTRIES["loss"], "clashes", lambda: clash)
    with caplog.at_level("WARNING", logger="ssfnas"):
        load(loss="ce").resolve_plugins()
        assert not caplog.messages
        for _ in range(2):
            load(loss="class_balanced").resolve_plugins()
    assert caplog.messages == [clash["class_balanced"]]
    base._warn_of_clash.cache_clear()


def test_track_every_needs_something_to_track():
    assert load("track_test=true", "track_every=5").track_every == 5
    with pytest.raises(UsageError, match="set track_test=true, too"):
        load("track_every=5")


def test_what_means_nothing_beside_the_others_is_shown_and_is_no_part_of_an_identity():
    from ssfnas_cli.settings import to_toml

    plain = load_settings(RetrainSettings, preset="quick")
    idle = {"pretrain_epochs", "pretrain_lr", "pretrain_optimizer", "rand_ops", "rand_magnitude", "ssl.weight"}
    assert plain.unused() == idle and not idle & plain.identity().keys()
    assert plain.identity() == load_settings(RetrainSettings, preset="quick", sets=["pretrain_lr=0.3"]).identity()
    assert "pretrain_epochs = 6" in to_toml(plain), "it is what a pretraining would take"
    used = load_settings(RetrainSettings, preset="quick", sets=["pretrain=barlow", "augment=rand", "ssl.loss=simsiam"])
    assert not used.unused() and idle <= used.identity().keys()
    network = load_settings(RetrainSettings, sets=["network=resnet20"])
    assert network.refused() == RetrainSettings.OF_CELLS < network.unused() and "channels" not in to_toml(network)
