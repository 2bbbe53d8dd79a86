import importlib.metadata
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from pydantic import Field

from registry import LOSSES, OPS, REGISTRIES, RELAXATIONS, Options, PluginError, Registry
from registry.core import OpFacts, did_you_mean

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def bring(monkeypatch, tmp_path):
    """Pretend that distributions bring entry points: `bring(("name", "module:attr", "dist"), ...)`."""

    def install(*points, group="ssfnas.ops", **modules):
        for name, source in modules.items():
            (tmp_path / f"{name}.py").write_text(textwrap.dedent(source))
            monkeypatch.delitem(sys.modules, name, raising=False)
        monkeypatch.syspath_prepend(tmp_path)
        made = []
        for name, value, dist in points:
            (folder := tmp_path / f"{dist}-1.2.dist-info").mkdir(exist_ok=True)
            (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {dist}\nVersion: 1.2\n")
            point = importlib.metadata.EntryPoint(name, value, group)
            made.append(point._for(importlib.metadata.PathDistribution(folder)))
        monkeypatch.setattr(importlib.metadata, "entry_points", lambda: importlib.metadata.EntryPoints(made))

    return install


@pytest.fixture
def ops(monkeypatch):
    """The registry of ops, whose third-party plugins are forgotten afterwards."""
    monkeypatch.setattr(OPS, "_plugins", dict(OPS._plugins))
    return OPS


GOOD = """
    from torch import nn
    from registry import OPS, Options

    @OPS.register("{name}")
    def build(channels, stride, affine, options: Options):
        '''A made-up op.'''
        return nn.Identity()
"""


def test_every_builtin_name_loads_and_has_an_origin_and_a_summary():
    for registry in REGISTRIES.values():
        for name in registry.names():
            plugin = registry.get(name)
            if plugin.origin == "builtin":
                assert plugin.name == name and plugin.summary.endswith(".")


def test_builtin_names_are_the_papers_and_come_first():
    assert OPS.names()[:8] == [
        *("none", "max_pool_3x3", "avg_pool_3x3", "skip_connect"),
        *("sep_conv_3x3", "sep_conv_5x5", "dil_conv_3x3", "dil_conv_5x5"),
    ]
    assert LOSSES.names()[:2] == ["ce", "barlow"] and RELAXATIONS.names()[:2] == ["softmax", "sigmoid"]


def test_an_unknown_name_gets_a_suggestion_and_the_list():
    with pytest.raises(PluginError) as error:
        LOSSES.get("barlo")
    text = str(error.value)
    assert text.startswith("unknown loss 'barlo'. Did you mean 'barlow'? Available: ce, barlow")
    assert text.endswith("See 'ssfnas plugins'.") and "\n" not in text


def test_a_name_unlike_any_gets_no_suggestion():
    with pytest.raises(PluginError, match=r"unknown op 'zzz'\. Available: none, "):
        OPS.get("zzz")
    assert did_you_mean("zzz", ["abc"]) == ""


def test_listing_names_imports_no_torch():
    code = (
        "import sys, registry\n"
        "names = [n for r in registry.REGISTRIES.values() for n in r.names()]\n"
        "import ssfnas_cli.settings\n"
        "assert 'sigmoid' in names and 'torch' not in sys.modules, 'torch was imported'\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr


def test_the_registry_imports_nothing_of_ssfnas_cli():
    code = (
        "import sys, registry.ops, registry.losses, registry.relaxations\n"
        "assert not [m for m in sys.modules if m.startswith('ssfnas_cli')]\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr


# Options


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"lamda": 1}, r"^'barlow' has no option 'lamda'\. Did you mean 'lambda'\? Its options: centred, lambda, "),
        ({"lambda": -1}, r"^option 'lambda' of 'barlow': .*greater than or equal to 0 \(got -1\)$"),
        ({"lambda": float("nan")}, r"^option 'lambda' of 'barlow': .*finite"),
        ({"lambda": float("inf")}, r"^option 'lambda' of 'barlow': .*finite"),
        ({"projector_dim": 1}, r"^option 'projector_dim' of 'barlow'"),
        ({"centred": "perhaps"}, r"^option 'centred' of 'barlow'"),
    ],
)
def test_a_wrong_option_is_named_with_its_plugin(values, message):
    with pytest.raises(PluginError, match=message):
        LOSSES.get("barlow").parse_options(values)


def test_an_op_without_options_takes_none():
    with pytest.raises(PluginError, match=r"'skip_connect' has no option 'kernel'\. Its options: none"):
        OPS.get("skip_connect").parse_options({"kernel": 3})


def test_options_have_defaults_and_do_not_change():
    options = LOSSES.get("barlow").parse_options({"lambda": 0.5})
    assert (options.lambda_, options.centred) == (0.5, True)
    with pytest.raises(ValueError, match="frozen"):
        options.lambda_ = 1.0


# Third parties


def test_a_third_party_op_is_listed_loaded_and_credited(bring, ops):
    bring(("blur", "good_mod", "acme"), good_mod=GOOD.format(name="blur"))
    assert ops.names()[-1] == "blur" and "good_mod" not in sys.modules
    plugin = ops.get("blur")
    assert plugin.origin == "acme 1.2" and plugin.summary == "A made-up op." and plugin.facts == OpFacts()


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("import no_such_thing", r"op 'bad' of acme 1\.2 cannot be loaded: ModuleNotFoundError: .*no_such_thing"),
        ("1 / 0", r"op 'bad' of acme 1\.2 cannot be loaded: ZeroDivisionError"),
        ("", r"acme 1\.2 promises the op 'bad', but bad_mod registers none"),
        (GOOD.format(name="bad") + "\n    1 / 0\n", r"op 'bad' of acme 1\.2 cannot be loaded: ZeroDivisionError"),
    ],
)
def test_a_broken_plugin_breaks_only_its_own_name_and_every_time(bring, ops, source, message):
    bring(("bad", "bad_mod", "acme"), ("fine", "good_mod", "acme"), bad_mod=source, good_mod=GOOD.format(name="fine"))
    for _ in range(2):
        with pytest.raises(PluginError, match=message):
            ops.get("bad")
    assert ops.get("fine").origin == "acme 1.2"
    assert ops.get("sep_conv_3x3").origin == "builtin"
    assert {"bad", "fine", "none"} <= set(ops.names())


def test_a_plugin_that_takes_a_builtin_name_changes_nothing_and_is_reported(bring, ops):
    bring(("skip_connect", "thief", "acme"), thief=GOOD.format(name="skip_connect"))
    assert ops.get("skip_connect").origin == "builtin"
    assert ops.names().count("skip_connect") == 1
    assert ops.clashes() == {
        "skip_connect": "acme 1.2 also brings the built-in op 'skip_connect'; the built-in is used"
    }


def test_a_module_that_registers_a_builtin_name_breaks_its_own_plugin_only(bring, ops):
    bring(("mine", "thief", "acme"), thief=GOOD.format(name="skip_connect"))
    builtin = ops.get("skip_connect").factory
    with pytest.raises(PluginError, match=r"acme 1\.2 promises the op 'mine', but thief registers none"):
        ops.get("mine")
    assert ops.get("skip_connect").factory is builtin


def test_a_module_one_of_whose_names_became_a_builtin_keeps_its_other_plugins(bring, ops):
    both = GOOD.format(name="skip_connect") + GOOD.format(name="mine")
    bring(("mine", "older", "acme"), ("skip_connect", "older", "acme"), older=both)
    builtin = ops.get("skip_connect")
    assert builtin.origin == "builtin" and ops.get("mine").origin == "acme 1.2"
    assert ops.get("skip_connect") is builtin and set(ops.clashes()) == {"skip_connect"}


def test_one_name_from_two_distributions_names_both(bring, ops):
    bring(
        ("blur", "mod_a", "acme"),
        ("blur", "mod_b", "zenith"),
        mod_a=GOOD.format(name="blur"),
        mod_b=GOOD.format(name="blur"),
    )
    with pytest.raises(PluginError, match=r"op 'blur' is brought by acme 1\.2 and zenith 1\.2: uninstall one"):
        ops.get("blur")
    assert ops.names().count("blur") == 1


def test_registering_a_taken_name_from_another_module_is_refused():
    registry = Registry("gadget", "ssfnas.gadgets", {})

    def first():
        """One."""

    def second():
        """Two."""

    second.__module__ = "elsewhere"
    registry.register("g")(first)
    with pytest.raises(PluginError, match="gadget 'g' of elsewhere clashes with that of"):
        registry.register("g")(second)
    assert registry.get("g").factory is first


def test_an_option_without_a_default_is_refused_where_it_is_registered():
    class Demands(Options):
        must: float

    with pytest.raises(PluginError, match="option 'must' of the op 'demands' has no default: give it one"):
        Registry("op", "ssfnas.none", {}).register("demands", options=Demands)(lambda: None)


def test_facts_and_options_travel_with_the_plugin():
    class Knobs(Options):
        size: int = Field(3, ge=1)

    registry = Registry("gadget", "ssfnas.gadgets", {}, default_facts="plain")

    @registry.register("g", options=Knobs, facts="special")
    def build(options):
        """Build it."""
        return options.size

    @registry.register("h")
    def other(options):
        """Build that."""

    plugin = registry.get("g")
    assert plugin.factory(plugin.parse_options({"size": 5})) == 5
    assert plugin.facts == "special" and registry.get("h").facts == "plain"
