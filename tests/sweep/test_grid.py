"""From a file to cells: how many, what they are called, what they run, what they need."""

import re
import shlex
from pathlib import Path

import pytest

from ssfnas_cli.errors import UsageError
from ssfnas_cli.sweep.cells import select
from ssfnas_cli.sweep.grid import build_cells
from ssfnas_cli.sweep.plan_file import read_plan
from ssfnas_cli.sweep.state import parse_words

EXPERIMENTS = Path(__file__).parents[2] / "experiments"

WHOLE = """
output = "out"
seeds = [0, 1]
[data]
mu = [0.1, 0.01]
[search]
preset = "quick"
[search.arms]
darts = { relax = "softmax" }
ssf = { relax = "sigmoid", loss = "barlow" }
[networks]
random = { network = "random-{seed}" }
resnet20 = { lr = 0.1 }
[retrain]
channels = 8
epochs = 2
[retrain.arms]
ce = {}
ldam = { loss.name = "ldam", loss.defer = 0.8 }
[adjust.arms]
post-hoc = { method = "logit", of = "ce" }
"""


def names(cells, stage):
    return [cell.name for cell in cells if cell.stage == stage]


def test_every_combination_is_there_once_and_shared_stages_are_made_once(cells_of):
    cells = cells_of(WHOLE)
    count = {stage: len(names(cells, stage)) for stage in ("data", "search", "derive", "retrain", "adjust", "evaluate")}
    # 2 data sets; 2 arms, 2 seeds; (2 arms + 2 networks) x 2 losses x 2 seeds x 2 data sets; of those with ce
    assert count == {"data": 2, "search": 8, "derive": 0, "retrain": 32, "adjust": 16, "evaluate": 48}
    assert len({cell.name for cell in cells}) == len(cells) == len({cell.output for cell in cells})
    by_name = {cell.name: cell for cell in cells}
    for place, cell in enumerate(cells):
        assert all(cells.index(by_name[name]) < place for name in cell.needs), "behind what it needs"
    of_one_search = [cell for cell in cells if "search-darts-mu0.1-seed0" in cell.needs]
    assert [cell.name for cell in of_one_search] == ["darts-mu0.1-ce-seed0", "darts-mu0.1-ldam-seed0"]


def test_commands_are_those_that_one_would_type(cells_of):
    by_name = {cell.name: cell for cell in cells_of(WHOLE)}
    (data,) = [name for name in by_name if name.startswith("data-mu0.01-")]
    assert by_name[data].command == f"ssfnas make-dataset --mu 0.01 -o out/{data}"
    search = f"ssfnas search --data out/{data} --preset quick --relax sigmoid --loss barlow --seed 1"
    assert by_name["search-ssf-mu0.01-seed1"].command == f"{search} -o out/search-ssf-mu0.01-seed1"
    run = by_name["resnet20-mu0.01-ldam-seed1"]
    flags = "--loss ldam --set loss.defer=0.8 --epochs 2 --set lr=0.1 --seed 1"
    assert run.command == f"ssfnas retrain resnet20 --data out/{data} {flags} -o out/resnet20-mu0.01-ldam-seed1"
    assert run.needs == (data,), "channels are for networks of cells"
    random = by_name["random-mu0.01-ce-seed1"]
    assert random.argv[1] == "random-1" and "--channels 8" in random.command
    assert by_name["ssf-mu0.01-ce-seed1"].argv[1] == "out/search-ssf-mu0.01-seed1/genotype.json"
    corrected = by_name["ssf-mu0.01-ce+post-hoc-seed1"]
    assert corrected.argv[:2] == ("adjust", "out/ssf-mu0.01-ce-seed1") and corrected.needs == ("ssf-mu0.01-ce-seed1",)
    evaluated = by_name["evaluate-ssf-mu0.01-ce+post-hoc-seed1"]
    assert evaluated.argv == ("evaluate", "out/ssf-mu0.01-ce+post-hoc-seed1") and evaluated.needs == (corrected.name,)


def test_lists_are_axes_at_any_depth_and_their_values_name_the_cells(cells_of):
    grid = """
        [search]
        relax = ["softmax", "sigmoid"]
        alpha_lr = [0.03]
        views.min_scale = [0.2, 0.5]
        track_test = [true]
        alpha_betas = [[0.5, 0.999]]
        "loss.label_smoothing" = [0.1]
    """
    cells = cells_of(grid)
    value = "alpha_lr0.03-min_scale{}-track_test-true-alpha_betas0.5+0.999-label_smoothing0.1-seed0"
    expected = [f"search-{r}-{value.format(s)}" for r in ("softmax", "sigmoid") for s in (0.2, 0.5)]
    assert names(cells, "search") == expected
    assert "'alpha_betas=[0.5, 0.999]'" in cells[0].command and "--set views.min_scale=0.2" in cells[0].command
    assert "--data" not in cells[0].argv, "without [data] it is the embedded one"


def test_a_name_does_not_depend_on_axes_of_one_value_that_grow(cells_of):
    one = cells_of('[data]\nmu = [0.1]\n[search]\nrelax = ["softmax"]')
    more = cells_of('seeds = [0, 1]\n[data]\nmu = [0.1, 0.01]\n[search]\nrelax = ["softmax", "sigmoid"]')
    assert {cell.command for cell in one} < {cell.command for cell in more}


def test_other_settings_of_a_data_set_are_another_folder(cells_of):
    first, second, same = (cells_of(f"[data]\n{text}\n[search]")[0].output for text in ("", "seed = 1", "mu = 0.1"))
    assert first != second and first == same, "0.1 is the default"


def test_costs_and_sizes_are_flags_of_searches_and_derivations(cells_of):
    text = """
        output = "out"
        [search]
        cost = "macs"
        cost_target = ["300M", 2e8]
        cost_weight = 5
        [derive]
        max_macs = "250M"
        cost_layers = 8
    """
    cells = cells_of(text)
    commands = [cell.command for cell in cells if cell.stage in ("search", "derive")]
    for target in ("300M", "200000000.0"):
        (search,) = [one for one in commands if f"--cost-target {target}" in one]
        assert "--cost macs" in search and "--set cost_weight=5" in search
    assert sum("--max-macs 250M" in one and "--cost-layers 8" in one for one in commands) == 2
    for wrong in ('cost_target = "many"', "cost_layers = 0", 'cost = "flops"'):
        with pytest.raises(UsageError, match=wrong.partition(" ")[0]):
            cells_of(f'output = "out"\n[search]\n{wrong}\n')


def test_derivations_come_between_search_and_retraining(cells_of):
    cells = cells_of('[search]\n[derive]\nrule = ["darts", "argmax"]\nepoch = [1]\n[retrain]')
    derive = next(cell for cell in cells if cell.stage == "derive")
    words = "derive runs/sweep/search-seed0 --rule darts --epoch 1 -o runs/sweep/genotype-seed0-darts-epoch1.json"
    assert derive.argv == tuple(words.split()) and derive.needs == ("search-seed0",)
    run = next(cell for cell in cells if cell.stage == "retrain")
    assert run.name == "darts-epoch1-seed0" and run.argv[1] == str(derive.output) and run.needs == (derive.name,)


@pytest.mark.parametrize(
    ("text", "searches", "runs"),
    [
        ("[search]\n[retrain]", ["search-seed0", "search-seed1"], ["searched-seed0", "searched-seed1"]),
        ("[search]\nseed = 5\n[retrain]", ["search-seed5"], ["seed5-seed0", "seed5-seed1"]),
        ("[search]\nseed = [5, 6]", ["search-seed5", "search-seed6"], []),
        (
            "[search]\n[retrain]\nseed = [5, 6]",
            ["search-seed0", "search-seed1"],
            ["seed0-seed5", "seed0-seed6", "seed1-seed5", "seed1-seed6"],
        ),
    ],
)
def test_seeds_are_of_search_and_retraining_together_unless_one_has_its_own(cells_of, text, searches, runs):
    cells = cells_of(f"seeds = [0, 1]\n{text}")
    assert names(cells, "search") == searches and names(cells, "retrain") == runs
    for cell in cells:
        if cell.stage in ("search", "retrain"):
            assert cell.argv[cell.argv.index("--seed") + 1] == cell.name[-1]


def test_an_arm_of_another_plugin_forgets_the_options_of_the_table(cells_of):
    cells = cells_of(
        '[networks]\nresnet20 = {}\n[retrain]\nloss = { name = "ldam", defer = 0.8, scale = 20 }\n'
        '[retrain.arms]\nsame = { "loss.scale" = 12 }\nce = { loss = "ce" }'
    )
    same, ce = (cell.command for cell in cells if cell.stage == "retrain")
    assert "--loss ldam --set loss.defer=0.8 --set loss.scale=12" in same and "loss" not in ce


def test_presets_of_an_arm_lie_over_those_of_the_table(cells_of):
    text = '[networks]\nresnet20={}\n[retrain]\npreset="paper"\n[retrain.arms]\nstrong={preset="strong", mixup="none"}'
    run = next(cell for cell in cells_of(text) if cell.stage == "retrain")
    assert "--preset paper --preset strong --set mixup=none" in run.command


def test_only_takes_what_a_cell_needs_and_its_evaluation(cells_of):
    cells = cells_of(WHOLE)
    chosen = [cell.name for cell in select(cells, ["ssf-mu0.1-ldam-seed1"])]
    data = next(cell.name for cell in cells if cell.stage == "data")
    assert chosen == [
        data,
        "search-ssf-mu0.1-seed1",
        "ssf-mu0.1-ldam-seed1",
        "evaluate-ssf-mu0.1-ldam-seed1",
    ]
    with pytest.raises(UsageError, match="--only nothing: matches none of 106 cells"):
        select(cells, ["*", "nothing"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "has neither [search] nor [retrain]"),
        ("[serach]", "unknown key 'serach'. Did you mean 'search'?"),
        ("search = 3", "search: should be a table: [search]"),
        ("seeds = []\n[search]", "seeds: is empty"),
        ("seeds = [0, 0]\n[search]", "seeds: names a seed twice"),
        ("seeds = [0, true]\n[search]", "seeds: True is no seed"),
        ("output = 3\n[search]", "output: should be the name of a folder"),
        ("[search]\nepoch = 3", "[search]: unknown setting 'epoch'. Did you mean 'epochs'?"),
        ("[search]\nepochs = 0", "[search]: setting 'epochs': Input should be greater than or equal to 1 (got 0)"),
        ("[search]\nepochs = [3, 0]", "[search]: setting 'epochs': Input should be greater than or equal to 1 (got 0)"),
        ("[search]\nrelax = []", "[search] relax: is an axis over nothing"),
        ("[search]\nloss.gamma = []", "[search] loss.gamma: is an axis over nothing"),
        ("[search.arms]", "[search.arms]: is empty"),
        ("[search.arms]\na = 3", "[search.arms]: should hold a table of settings for each arm"),
        ('[search.arms]\n"a b" = {}', "[search.arms]: 'a b' is no name of a folder"),
        ('[search.arms]\n"../x" = {}', "[search.arms]: '../x' is no name of a folder"),
        ("[search]\nepochs = [3, 3]", "[search]: two cells would be called 'epochs3'"),
        ("[search.arms]\na = {}\nA = { epochs = 3 }", "two cells would be called 'search-A-seed0'"),
        ("[search.arms]\nresnet20 = {}\n[retrain]\n[networks]\nresnet20 = {}", "be called 'resnet20-seed0'"),
        ("[search]\nloss = [{name = \"ldam\"}]", "[search] loss: a value that is a table has no name: make it an arm"),
        ('[search]\nrelax = ["softmx"]', "[search]: setting 'relax'"),
        ('[search]\npreset = "fast"', "[search]: --preset: unknown preset 'fast'"),
        ("[search]\npreset = 3", "[search]: preset: 3 is no name of a preset"),
        ('[search]\ndata = "x"', "[search]: data: [data] names the data set"),
        ("[search]\nmax_time = 3", "[search]: max_time: the sweep has --max-time"),
        ('[retrain]\nnetwork = "resnet20"', "[retrain]: there is nothing to train"),
        ('[search]\n[retrain]\nnetwork = "resnet20"', "[retrain]: network: networks are named in [networks]"),
        ("[search]\n[networks]\nx = {}", "[networks]: there is no [retrain]"),
        ("[search]\n[retrain]\n[networks]\nresnet = {}", "[networks.resnet]: no file, network or genotype"),
        ('[search]\n[retrain]\n[networks]\nx = { network = "random-x" }', "[networks.x]: random-x: a random genotype"),
        ("[search]\n[retrain]\n[networks]\nresnet20 = 3", "[networks.resnet20]: should be a table"),
        (
            "[search]\n[retrain]\n[networks]\nresnet20 = { channels = 8 }",
            "[retrain] of [networks.resnet20]: setting 'channels': 'resnet20' has its own",
        ),
        ('[search]\n[derive]\nrule = "perturbation"', "[derive]: rule: 'perturbation' is a run of its own"),
        ('[search]\n[derive]\nrule = "drats"', "[derive]: rule: unknown rule 'drats'. Known: darts"),
        ("[search]\n[derive]\nepochs = 3", "[derive]: unknown setting 'epochs'"),
        ("[search]\n[adjust]", "[adjust]: there is no [retrain]"),
        ('[search]\n[retrain.arms]\nce = {}\n[adjust]\nof = "cee"', "[adjust] of: 'cee' is no arm of [retrain.arms]."),
        ('[search]\n[retrain]\n[adjust]\nmethod = "logits"', "[adjust]: setting 'method'"),
        ("[search]\n[retrain]\n[adjust]\nlr = 0.1", "[adjust]: --lr: is for --method crt and lws"),
        ('[search]\n[retrain]\n[evaluate]\nsplit = ["tests"]', "[evaluate]: setting 'split'"),
        ("[search]\n[retrain]\n[evaluate]\nthreads = [1, 2]", "[evaluate]: is no grid"),
        ("[data]\nmu = 2\n[search]", "[data]: setting 'mu': Input should be less than or equal to 1"),
        ("[data]\npath = 'x'\nmu = 0.1\n[search]", "[data]: path is a data set that is there, and 'mu'"),
        ("[search]\nloss.gama = 2\nloss.name = 'focal'", "[search]: setting 'loss.gama': 'focal' has no option 'gama'"),
        ("[data]\nsource.nonsense = 2\n[search]", "[data]: "),
        ("[search.arms]\n" + 300 * "a" + " = {}", "aaa…' has 300 characters, and a name at most 200: give a shorter"),
        ('[search]\n[retrain]\n[evaluate]\nsplits = ["val"]', "[evaluate]: unknown setting 'splits'. Did you mean"),
        ("threads = 1\n[search]", "key 'threads'. It is a setting of [search], [retrain], [adjust], [evaluate]: write"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_with_the_file_and_the_key(cells_of, text, message):
    with pytest.raises((UsageError, ValueError)) as error:
        cells_of(text)
    said = str(error.value)
    assert said.startswith("sweep.toml: ") and message in said and "\n" not in said


def test_an_existing_data_set_is_taken_as_it_is(cells_of, tmp_path):
    with pytest.raises(ValueError, match=r"\[data\] path: mine is no data set"):
        cells_of('[data]\npath = "mine"\n[search]')
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "manifest.json").write_text("{}")
    (search,) = cells_of('[data]\npath = ["mine"]\n[search]')
    assert search.name == "search-mine-seed0" and search.argv[1:3] == ("--data", "mine") and not search.needs


def test_a_genotype_that_the_file_names_may_be_of_other_data(cells_of, tmp_path):
    (tmp_path / "mine.json").write_text("{}")
    cells = cells_of('[data]\n[retrain]\n[networks]\nfound = { network = "mine.json" }\nDARTS_V2 = {}')
    found, published = (cell for cell in cells if cell.stage == "retrain")
    assert found.name == "found-seed0" and found.argv[1] == "mine.json" and str(found.source) == "mine.json"
    assert "--other-data" in found.argv and "--other-data" not in published.argv


def test_values_of_the_command_line_win_over_the_file(cells_of):
    cells = cells_of("seeds=[0]\n[search]\nepochs=3", "seeds=[4]", "search.epochs=5", 'search.relax=["sigmoid"]')
    assert [cell.name for cell in cells] == ["search-sigmoid-seed4"] and "--epochs 5" in cells[0].command


@pytest.mark.parametrize("value", ["a b", "it's", '"', "1", "true", "$HOME `id`", "é", "a=b", "", "x\\y", "nan", "1e3"])
def test_text_reaches_the_command_as_it_was(cells_of, value):
    """The words of the command, parsed by the command's own code, give the text of the file."""
    text = value.replace("\\", "\\\\").replace('"', '\\"')
    run = next(
        cell
        for cell in cells_of(f'[networks]\nresnet20 = {{}}\n[retrain]\ndevice = "{text}"\n[retrain.arms]\na = {{}}')
        if cell.stage == "retrain"
    )
    words = shlex.split(run.command)
    assert words[words.index("--device") + 1] == value
    root = next(cell for cell in cells_of(f'[data]\nroot = "{text}"\n[search]') if cell.stage == "data").argv
    assert not value or root[root.index("--root") + 1] == value


@pytest.mark.parametrize(
    "value", ["a b", "it's", '"', "1", "true", "$HOME `id`", "é", "a=b", "x\\y", "nan", "03:50:00"]
)
def test_text_in_set_is_read_as_text(value):
    from ssfnas_cli.settings import parse_set
    from ssfnas_cli.sweep.stages import toml_value

    assert parse_set(f"key={toml_value(value, 'key')}") == {"key": value}
    assert parse_set(f"key={toml_value([value, 1, 0.5, True], 'key')}") == {"key": [value, 1, 0.5, True]}


@pytest.mark.parametrize("name", ["cifar", "retina"])
def test_the_tour_compares_two_searches_and_a_plain_network(name):
    cells = build_cells(read_plan(EXPERIMENTS / "tour" / f"{name}.toml", ["seeds=[0]"]))
    names = [cell.name for cell in cells if cell.stage in ("search", "retrain", "adjust")]
    assert {"search-darts-seed0", "search-ssf-nas-seed0", "resnet32-ce-seed0", "ssf-nas-ce+post-hoc-seed0"} < set(names)
    assert len(names) == 2 + 3 + 3


def test_the_example_of_the_documentation_is_a_sweep(cells_of):
    text = (EXPERIMENTS.parent / "docs" / "sweeps.md").read_text()
    cells = cells_of(text.partition("```toml\n")[2].partition("```")[0])
    # 2 data sets; 2 searches; 4 networks x 2 losses; a correction of one of them; all of the last two evaluated
    assert len(cells) == 2 + 3 * 2 * (2 + 8 + 4 + 12)
    assert "ssf-nas-mu0.01-ce+post-hoc-seed2" in [cell.name for cell in cells]


def test_the_long_tails_file_is_a_grid_of_methods_with_their_corrections():
    plan = read_plan(EXPERIMENTS / "longtail" / "longtail.toml", ["data.mu=[0.1]", "seeds=[3]"])
    cells = build_cells(plan)
    names = [cell.name for cell in cells if cell.stage == "retrain"]
    assert len(names) == 20 and names[0] == "resnet32-mu0.1-ce-seed3"
    assert [cell.name for cell in cells if cell.stage == "adjust"] == [
        "resnet32-mu0.1-ce+post-hoc-seed3",
        "resnet32-mu0.1-ce+crt-seed3",
        "resnet32-mu0.1-barlow-pretraining+post-hoc-seed3",
    ]
    genotype = build_cells(read_plan(plan.path, ["networks.DARTS_V2={}"]))
    mine = next(cell for cell in genotype if cell.name == "DARTS_V2-mu0.01-ce-seed0")
    assert "--channels 16 --layers 8" in mine.command and "lr=" not in mine.command


@pytest.mark.parametrize(
    ("name", "searches", "retrainings"),
    [
        ("table1/paper", 12, 54),
        ("table1/matched", 24, 30),
        ("figures/figures", 4, 4),
        ("causes/search", 18, 18),
        ("causes/derive", 6, 24),
        ("causes/pretraining", 0, 32),
    ],
)
def test_the_files_of_the_results_are_sweeps(name, searches, retrainings):
    stages = [cell.stage for cell in build_cells(read_plan(EXPERIMENTS / f"{name}.toml"))]
    assert (stages.count("search"), stages.count("retrain")) == (searches, retrainings)


@pytest.mark.parametrize(("name", "stage", "place"), [("search", "search", 0), ("pretraining", "retrain", -1)])
def test_the_arms_of_a_file_of_causes_differ_from_its_base_in_one_factor(name, stage, place):
    settings = {}
    for cell in build_cells(read_plan(EXPERIMENTS / "causes" / f"{name}.toml")):
        if cell.stage == stage:
            pairs = parse_words(cell.argv, ("-o", "--data", "--threads"))[1]
            named = {value.partition("=")[0] if flag == "--set" else flag: value for flag, value in pairs}
            settings[cell.arm[place]] = named
    base = settings.pop("base")
    differing = {
        arm: {key for key in own.keys() | base if own.get(key) != base.get(key)} for arm, own in settings.items()
    }
    lrs = {"--batch-size", "lr", "pretrain_lr"}  # a larger batch goes with larger rates
    assert differing.pop("batch-128") <= lrs
    if stage == "retrain":
        without = {"--pretrain", "--pretrain-epochs"}
        assert differing.pop("adamw") == {"pretrain_optimizer", "pretrain_lr"}  # which wants a rate of its own
        assert (differing.pop("ce"), differing.pop("ce-longer")) == (without, {*without, "--epochs"})
    assert {len(keys) for keys in differing.values()} == {1}, differing


def test_networks_of_equal_size_are_of_the_same_searches_as_those_of_the_table():
    small, matched = (build_cells(read_plan(EXPERIMENTS / "table1" / f"{name}.toml")) for name in ("small", "matched"))
    searches = lambda cells: {cell.command for cell in cells if cell.stage in ("data", "search")}
    assert searches(small) == searches(matched)
    assert not {cell.name for cell in small} & {cell.name for cell in matched if cell.stage == "retrain"}


def test_a_name_with_a_dot_but_without_quotes_is_explained(cells_of):
    with pytest.raises(UsageError, match=re.escape('[search.arms]: a name with a dot stands in quotes: "lr-0.1" = ')):
        cells_of("[search.arms]\nlr-0.1 = { lr = 0.1 }\n")
