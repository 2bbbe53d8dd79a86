"""Pictures of runs: what stands in them, that all of it can be told apart, and stable bytes."""

import itertools
import os
import re
import subprocess
import sys
from dataclasses import replace
from xml.etree import ElementTree

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from PIL import Image
from results_support import NAMES, lines_of, make_run, split_of

from ssfnas_cli.errors import InputError
from ssfnas_cli.plots import alphas, calibration, classes, confusion, curves, distribution, figure, health, tradeoff
from ssfnas_cli.plots.distribution import Distribution
from ssfnas_cli.plots.evaluations import calibration as pooled
from ssfnas_cli.plots.evaluations import confusion as confusion_of
from ssfnas_cli.plots.figure import FORMATS, new_figure, series_looks, shown_name, to_bytes
from ssfnas_cli.results.facts import read_facts
from ssfnas_cli.results.grouping import group_runs

HOSTILE = ["<script>", "$x_1^$ & %", "ünï\ncode"]
FIGURES = {"weights_moved": 0.5, "weights_entropy": 0.9, "genotype_skips": 0.25, "genotype_pools": 0.5}
FIGURES |= {"expected_cost": 3e8, "genotype_cost": 2.5e8}


def groups_of(*runs):
    return group_runs([read_facts(run) for run in runs])


@pytest.fixture
def nets(tmp_path):
    """Two losses, one of two seeds."""
    lines = lambda value: [
        {**line, "accuracy_test": value + line["epoch"], "accuracy_test_longtail": value}
        for line in lines_of("retrain", 3)
    ]
    return groups_of(
        make_run(tmp_path / "a", lines=lines(40.0), splits={"test": split_of(60.0, [90.0, 60.0, 30.0])}),
        make_run(tmp_path / "b", seed=1, lines=lines(50.0), splits={"test": split_of(60.0, [80.0, 60.0, 10.0])}),
        make_run(tmp_path / "c", "retrain", "loss=ldam", lines=lines(30.0)),
    )


@pytest.fixture
def searches(tmp_path):
    lines = lines_of("search", 3, accuracy_alpha_half=50.0, genotype_changes=2, **FIGURES)
    lines[-1]["pruned_accuracy_alpha_half"] = 20.0
    return groups_of(make_run(tmp_path / "search", "search", epochs=3, lines=lines))


def record(num_epochs=3):
    numbers = np.random.default_rng(0)
    weights = {kind: numbers.random((num_epochs + 1, 14, 3)) for kind in ("normal", "reduce")}
    return alphas.Record("mine", ("none", "skip_connect", "sep_conv_3x3"), weights)


def record_with_edges():
    numbers, plain = np.random.default_rng(1), record()
    own = {name: numbers.random((4, 14)) for name in ("normal_edges", "reduce_edges")}
    return plain._replace(weights={**plain.weights, **own})


def texts_of(svg):
    nodes = [node for node in ElementTree.fromstring(svg).iter() if node.tag.endswith("text")]
    return {" ".join("".join(node.itertext()).split()) for node in nodes}


def drawers(nets, searches):
    return {
        "curves": lambda: curves.draw(nets),
        "classes": lambda: classes.draw(nets, "test"),
        "confusion": lambda: confusion.draw(nets, "test"),
        "calibration": lambda: calibration.draw(nets, "test"),
        "tradeoff": lambda: tradeoff.draw(nets, "test", "time"),
        "health": lambda: health.draw(searches),
        "heat": lambda: alphas.draw_heat(record()),
        "lines": lambda: alphas.draw_lines(record()),
        "heat of edges": lambda: alphas.draw_heat(record_with_edges()),
        "lines of edges": lambda: alphas.draw_lines(record_with_edges()),
        "distribution": lambda: distribution.draw([Distribution("mine", NAMES, [200, 50, 10])]),
    }


NAMED = {  # what must be read in each kind of picture
    "curves": {"ce (2 seeds)", "ldam", "Network, balanced test split", "Network, long-tailed test split"},
    "classes": {"ce", "ldam", "class, and its training images", "Accuracy by class, test"},
    "confusion": {*NAMES, "predicted class", "ce (2 seeds)", "ldam", "percent of the true class"},
    "calibration": {"confidence", "accuracy", "too sure", "Calibration, test"},
    "tradeoff": {"ce", "ldam", "balanced accuracy in percent", "Accuracy against seconds of training, test"},
    "health": {
        "Entropy of the weights",
        "Skips in the genotype",
        "New edges in the genotype",
        "Cost of the genotype",
        "300M",
    },
    "heat": {"skip_connect", "0 → 2", "4 → 5", "mixing weight"},
    "lines": {"skip_connect", "Normal cell", "Reduction cell", "4 → 5"},
    "heat of edges": {"skip_connect", "whole edge, to 1", "4 → 5", "mixing weight"},
    "lines of edges": {"skip_connect", "whole edge", "4 → 5"},
    "distribution": {"200", "50", "10", *NAMES, "260 images, imbalance factor 0.05 (200 to 10)"},
}


@pytest.mark.parametrize("kind", NAMED)
def test_what_is_drawn_is_named_and_the_same_runs_give_the_same_bytes(kind, nets, searches):
    draw = drawers(nets, searches)[kind]
    svg = to_bytes(draw, "svg", chart=True)
    assert texts_of(svg) >= NAMED[kind]
    assert "Decided weights" not in texts_of(svg), "a softmax has none"
    assert svg == to_bytes(draw, "svg", chart=True)
    assert not re.search(rb"\d{4}-\d\d-\d\d|Matplotlib v", svg), "a date or a version would change with the machine"


@pytest.mark.parametrize("fmt", [fmt for fmt in FORMATS if fmt != "svg"])
def test_other_formats_are_stable_too(fmt, nets):
    draw = lambda: calibration.draw(nets, "test")
    assert to_bytes(draw, fmt, chart=True) == to_bytes(draw, fmt, chart=True)


def test_series_differ_in_grey_and_without_their_colours():
    looks = [series_looks(number) for number in range(12)]
    styles = [(one["linestyle"], one["marker"]) for one in looks]
    assert len(set(styles)) == 12, "line and marker alone tell twelve series"
    for one, other in itertools.pairwise(looks[:8]):
        grey = [Image.new("RGB", (1, 1), look["color"]).convert("L").getpixel((0, 0)) for look in (one, other)]
        assert abs(grey[0] - grey[1]) >= 15, "neighbours differ in grey"


def test_a_point_of_the_tradeoff_is_the_mean_of_the_seeds_between_their_least_and_most(nets):
    (axes,) = to_figure(lambda: tradeoff.draw(nets, "test", "time")).axes
    point = next(line for line in axes.lines if line.get_label().startswith("ce"))
    assert point.get_xdata()[0] == 6.0 and point.get_ydata()[0] == pytest.approx(55.0)
    bar = axes.collections[0].get_segments()[0]
    assert [y for _, y in bar] == pytest.approx([50.0, 60.0])


def test_of_crossed_arms_the_colour_tells_the_first_and_the_marker_the_second(tmp_path):
    splits = {"test": split_of(60.0, [90.0, 60.0, 30.0])}
    groups = []
    for number, arm in enumerate(itertools.product(("darts", "random"), ("all",), ("ce", "ldam", "focal"))):
        (group,) = groups_of(make_run(tmp_path / str(number), seed=number, lines=lines_of("retrain", 3), splits=splits))
        groups.append(replace(group, runs=[replace(run, arm=arm) for run in group.runs]))
    (axes,) = to_figure(lambda: tradeoff.draw(groups, "test", "time")).axes
    looks = [(line.get_color(), line.get_marker()) for line in axes.lines]
    assert len(set(looks)) == 6
    assert len({colour for colour, _ in looks[:3]}) == 1 and looks[0][0] != looks[3][0]
    assert [marker for _, marker in looks[:3]] == [marker for _, marker in looks[3:]]


def test_a_cost_that_no_run_has_recorded_is_refused(nets):
    with pytest.raises(InputError, match=r"--against search-time: none of these runs has recorded it"):
        tradeoff.draw(nets, "test", "search-time")


def test_a_curve_is_the_mean_of_the_seeds_between_their_least_and_most(nets):
    figure = to_figure(lambda: curves.draw(nets))
    (test, _) = figure.axes
    line = next(line for line in test.lines if line.get_label().startswith("ce"))
    assert line.get_xdata().tolist() == [1, 2, 3] and line.get_ydata().tolist() == [46.0, 47.0, 48.0]
    (band,) = test.collections
    heights = band.get_paths()[0].vertices[:, 1]
    assert (heights.min(), heights.max()) == (41.0, 53.0)


def test_a_single_epoch_shows_the_least_and_the_most_and_who_is_missing_is_told(tmp_path):
    lines = lambda value: [{**line, "accuracy_test": value} for line in lines_of("retrain", 1)]
    groups = groups_of(
        make_run(tmp_path / "a", lines=lines(40.0)),
        make_run(tmp_path / "b", seed=1, lines=lines(50.0)),
        make_run(tmp_path / "c", "retrain", "loss=ldam", lines=lines_of("retrain", 1)),
    )
    (axes,) = to_figure(lambda: curves.draw(groups)).axes
    ((bar,),) = [one.get_segments() for one in axes.collections if hasattr(one, "get_segments")]
    assert bar.tolist() == [[1.0, 40.0], [1.0, 50.0]]
    assert curves.untracked(groups) == ["ldam"] and curves.untracked(groups[:1]) == []


def to_figure(draw):
    kept = []

    def draw_and_keep():
        kept.append(draw())
        return kept[0]

    to_bytes(draw_and_keep, "svg", chart=True)
    return kept[0]


def test_classes_stand_by_size_with_their_mean(nets):
    axes = to_figure(lambda: classes.draw(nets, "test")).axes[0]
    line = next(line for line in axes.lines if line.get_label() == "ce")
    assert line.get_ydata().tolist() == [85.0, 60.0, 20.0]
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["cat\n200", "dog\n50", "owl\n10"]


def test_a_confusion_matrix_adds_up_the_seeds_and_reads_a_large_one_from_its_file(nets, tmp_path):
    (group, _) = nets
    matrix = confusion_of(group, "test", NAMES)
    assert matrix[0].tolist() == [170, 30, 0] and matrix[2].tolist() == [100, 80, 20]
    run = group.runs[0]
    facts = run.evaluation["splits"]["test"]
    rows = facts.pop("confusion")
    facts["confusion_file"] = "moved/evaluation-confusion-test.csv"
    table = "\n".join(
        ",".join(map(str, row)) for row in [["", *NAMES], *([n, *r] for n, r in zip(NAMES, rows, strict=True))]
    )
    (run.path / "evaluation-confusion-test.csv").write_text(table)
    assert (confusion_of(group, "test", NAMES) == matrix).all()
    (run.path / "evaluation-confusion-test.csv").write_text("a,b\nc,x\n")
    with pytest.raises(InputError, match=r"evaluation-confusion-test.csv: is damaged .*ssfnas evaluate"):
        confusion_of(group, "test", NAMES)


def test_calibration_pools_the_images_of_the_seeds(nets):
    first, second = (run.evaluation["splits"]["test"]["calibration"] for run in nets[0].runs)
    second |= {"num_images": [10, 300, 0], "confidence": [0.2, 0.6, None], "accuracy": [0.1, 0.8, None]}
    bins = pooled(nets[0], "test")
    assert bins["num_images"].tolist() == [10, 400, 200]
    assert bins["accuracy"] == pytest.approx([0.1, (100 * 0.4 + 300 * 0.8) / 400, 0.8])
    assert bins["confidence"] == pytest.approx([0.2, (100 * 0.5 + 300 * 0.6) / 400, 0.9])
    assert first["num_images"] == [0, 100, 200]


@pytest.mark.parametrize("num_classes", [2, 21, 100])
def test_any_number_of_classes_is_drawn(num_classes, tmp_path):
    counts = [max(1, 300 - 3 * c) for c in range(num_classes)]
    names = [f"a class of the number {c}" for c in range(num_classes)]
    (group,) = groups_of(make_run(tmp_path / "run"))
    values = {name: float(c % 100) for c, name in enumerate(names)}
    matrix = np.eye(num_classes, dtype=int).tolist()
    split = {"per_class": values, "confusion": matrix}
    group.runs[0].evaluation.update(class_names=names, train_counts=counts, splits={"test": split})
    for draw in (
        lambda: classes.draw([group], "test"),
        lambda: confusion.draw([group], "test"),
        lambda: distribution.draw([Distribution("x", names, counts)]),
    ):
        figure = to_figure(draw)
        width, height = figure.get_size_inches()
        box = figure.get_tightbbox()
        assert box.x0 > -0.05 and box.y0 > -0.05 and box.x1 < width + 0.05 and box.y1 < height + 0.05, "nothing is cut"


def test_names_of_strangers_are_text_and_nothing_else(tmp_path):
    (group,) = groups_of(make_run(tmp_path / "run"))
    split = {"per_class": dict.fromkeys(HOSTILE, 50.0), "confusion": np.eye(3, dtype=int).tolist()}
    group.runs[0].evaluation.update(class_names=HOSTILE, splits={"test": split})
    said = texts_of(to_bytes(lambda: confusion.draw([group], "test"), "svg", chart=True))
    assert {"<script>", "$x_1^$ & %", "ünï code"} <= said
    assert b"<script" not in to_bytes(lambda: classes.draw([group], "test"), "svg", chart=True)


def test_a_users_matplotlibrc_changes_no_byte(tmp_path):
    code = (
        "import sys; from ssfnas_cli.plots.figure import to_bytes; from ssfnas_cli.plots.distribution import *;"
        "sys.stdout.buffer.write(to_bytes(lambda: draw([Distribution('x', ['a', 'b'], [5, 2])]), 'svg', chart=True))"
    )
    (tmp_path / "matplotlibrc").write_text("font.size: 30\naxes.facecolor: red\nsvg.hashsalt: other\n")
    plain, odd = (
        subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, env=os.environ | extra).stdout
        for extra in ({}, {"MATPLOTLIBRC": str(tmp_path)})
    )
    assert plain == odd and plain.startswith(b"<?xml")


# What a run cannot give


def test_what_is_missing_is_named_with_the_command(nets, searches, tmp_path):
    with pytest.raises(InputError, match=r"val: .*a is not evaluated on it \(evaluated: test\): ssfnas evaluate"):
        classes.draw(nets, "val")
    del nets[0].runs[0].evaluation["splits"]["test"]["calibration"]
    with pytest.raises(InputError, match=r"no calibration bins, since an earlier ssfnas made it: ssfnas evaluate"):
        calibration.draw(nets, "test")
    nets[1].runs[0].evaluation["class_names"] = ["cat", "dog", "emu"]
    with pytest.raises(InputError, match=r"c: its classes are not those of .*a: draw them one by one"):
        confusion.draw(nets, "test")
    old = groups_of(make_run(tmp_path / "old", "search", lines=lines_of("search", 3, accuracy_alpha_half=5.0)))
    with pytest.raises(InputError, match="old: recorded no search health"):
        health.draw(old)
    bare = groups_of(make_run(tmp_path / "bare", lines=[{"phase": "pretrain", "epoch": 1, "loss": 3.0}]))
    with pytest.raises(InputError, match="bare: has no accuracy of an epoch yet"):
        curves.draw(bare)


def test_the_health_of_several_seeds_is_their_mean(tmp_path):
    def run(seed, skips, pruned):
        lines = lines_of("search", 3, accuracy_alpha_half=50.0, genotype_skips=skips)
        lines[-1]["pruned_accuracy_alpha_half"] = pruned
        return make_run(tmp_path / f"search{seed}", "search", lines=lines, epochs=3, seed=seed)

    figure = health.draw(groups_of(run(0, 0.25, 10.0), run(1, 0.75, 30.0)))
    skips, accuracy = figure.axes[-2:]
    (line,) = skips.get_lines()
    assert list(line.get_ydata()) == [0.5] * 3 and line.get_label().endswith("(2 seeds)")
    assert [list(one.get_ydata()) for one in accuracy.get_lines()] == [[50.0] * 3, [50.0, 20.0]]


def test_curves_without_a_tracked_split_say_what_they_are(searches):
    assert not curves.is_tracked(searches)
    said = texts_of(to_bytes(lambda: curves.draw(searches), "svg", chart=True))
    assert "Supernet, alpha half (no test split was tracked)" in said


def test_searches_that_are_judged_by_a_probe_have_a_panel_beside_the_others(tmp_path):
    ce = make_run(tmp_path / "ce", "search", lines=lines_of("search", 3, accuracy_alpha_half=50.0))
    probed = lines_of("search", 3, probe_accuracy_alpha_half=40.0)
    barlow = make_run(tmp_path / "barlow", "search", "loss=barlow", lines=probed)
    shown = [name for name, _ in curves.shown_figures(groups_of(ce, barlow))]
    assert shown == ["accuracy_alpha_half", "probe_accuracy_alpha_half"]


def test_no_text_of_a_confusion_matrix_is_cut_off_by_long_names(tmp_path):
    """Labels and titles of two matrices lie within the picture, and the titles beside each other."""
    names = [f"{name} {80 * 'm'}" for name in NAMES]
    sets = ("loss=ldam", "loss.max_margin=0.37", "lr=0.0317", "momentum=0.91", "weight_decay=0.00031")
    split = {"test_longtail": split_of(60.0)}
    runs = [
        make_run(tmp_path / f"{len(kind)}{seed}", "retrain", *kind, seed=seed, splits=split, class_names=names)
        for kind in (sets, ("cutout=0.3",))
        for seed in (0, 1)
    ]
    drawn = []
    to_bytes(lambda: drawn.append(confusion.draw(groups_of(*runs), "test_longtail")) or drawn[0], "png", chart=True)
    (picture,) = drawn
    renderer = FigureCanvasAgg(picture).get_renderer()
    extent = lambda text: text.get_window_extent(renderer)
    left, right = picture.axes[:2]
    for axes in (left, right):
        for text in (axes.yaxis.label, axes.xaxis.label, axes._left_title, *axes.get_xticklabels()):
            box = extent(text)
            assert box.x0 >= 0 and box.y0 >= 0 and box.x1 <= picture.bbox.x1 and box.y1 <= picture.bbox.y1, text
    assert extent(left._left_title).x1 < extent(right._left_title).x0
    assert any(axes.get_title("left").endswith("… (2 seeds)") for axes in (left, right))


def test_letters_that_no_font_has_are_one_warning_with_the_remedy(monkeypatch, caplog):
    """An SVG needs none: its viewer has fonts. A font that is there and has them is taken."""
    draw = lambda: distribution.draw([Distribution("d", ["猫", "犬"], [3, 2])])
    monkeypatch.setattr(figure, "FALLBACK_FONTS", ())
    to_bytes(draw, "svg", chart=True)
    assert not caplog.messages
    to_bytes(draw, "png", chart=True)
    assert caplog.messages == [
        "no font here has the letters '猫犬', so boxes stand for them: install a font that has them, such as "
        "Noto Sans CJK, or name an .svg with -o"
    ]
    caplog.clear()
    rare = lambda: new_figure(1, 1).text(0.5, 0.5, "\ue153").figure  # which only a font of matplotlib's own has
    monkeypatch.setattr(figure, "FALLBACK_FONTS", ("No Such Font", "STIXNonUnicode"))
    to_bytes(rare, "png")
    assert not caplog.messages


def test_wide_letters_count_twice_where_names_are_cut():
    assert shown_name("abcdef", 6) == "abcdef" and shown_name("abcdefg", 6) == "abcde…"
    assert shown_name("大熊猫", 6) == "大熊猫" and shown_name("大熊猫a", 6) == "大熊…"


@pytest.mark.parametrize("kind", ["calibration", "heat"])
def test_long_labels_of_groups_are_cut_to_the_picture(tmp_path, kind):
    """In a narrow picture, too: the text ends within it, and what stands behind a name in a legend stays."""
    sets = ("loss=ldam", "loss.max_margin=0.37", "lr=0.0317", "momentum=0.91", "weight_decay=0.00031")
    nets = groups_of(make_run(tmp_path / "a", "retrain", *sets), make_run(tmp_path / "b", "retrain", "cutout=0.3"))
    drawers = {
        "calibration": lambda: calibration.draw(nets, "test"),
        "heat": lambda: alphas.draw_heat(record()._replace(label=nets[0].label)),
    }
    picture = to_figure(drawers[kind])
    assert len(nets[0].label) > 60
    texts = picture.legends[0].get_texts() if kind == "calibration" else [picture._suptitle]
    renderer = FigureCanvasAgg(picture).get_renderer()
    assert all(text.get_window_extent(renderer).x0 >= 0 for text in texts)
    assert all(text.get_window_extent(renderer).x1 <= picture.bbox.x1 for text in texts)
    shown = texts[0].get_text()
    assert "…" in shown and (shown.endswith("(error 0.100)") or kind == "heat")
