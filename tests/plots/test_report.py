"""What a report says of runs of every kind and state, and that nothing which strangers named is more than text."""

import itertools
import re
import shutil

import pytest
from report_support import CLASSES, Page, page_of, report_of
from results_support import NAMES, lines_of, make_run, split_of

from ssfnas_cli.errors import InputError
from ssfnas_cli.plots.report.contents import sections, write

SECTIONS = ["Summary", "Data", "Searches", "Networks", "Settings", "Environment", "How to reproduce"]


@pytest.fixture(scope="module")
def whole(hostile):
    """The report of a search, a retraining and its correction, with mistakes."""
    return page_of(hostile / "search", hostile / "net <i>", hostile / "adjusted", mistakes=3)


def test_a_report_of_all_kinds_of_runs_has_every_section_and_every_picture(whole):
    page = Page(whole)
    assert page.said("h2") == SECTIONS
    named = page.said("figcaption")
    for caption in (
        *("The runs of this report", "Training images of each class", "Accuracy over epochs", "The cells"),
        *("Search health over epochs", "Accuracy of each class on test", "What computed the runs"),
        *("Mixing weights over epochs", "Which classes are taken for which on test", "Calibration on test"),
        *("Most confident", "Worst of each class", "Figures on test", "Figures of the last epoch"),
    ):
        assert any(one.startswith(caption) for one in named), caption
    assert "correction (logit)" in page.said("td") and "retraining" in page.said("td")
    commands = page.said("code")
    assert any(line.startswith("ssfnas evaluate '") and line.endswith("net <i>'") for line in commands)
    assert any("--source folder --root ORIGINALS --dist natural" in line for line in commands)
    assert len(commands) == len(set(commands)), "each command once"


def test_names_of_strangers_are_text_and_nothing_else(whole):
    page = Page(whole)
    tags = {tag for tag, _ in page.elements}
    assert not tags & {"script", "i", "b", "iframe", "object", "foreignObject", "a:link"}
    assert {name for _, attributes in page.elements for name in attributes if name.startswith("on")} == set()
    for name in CLASSES:
        assert " ".join(name.split()) in page.said("th"), "the name is read as it is"
    assert any("data <b>" in text for text in page.said("h3")) and any("net <i>" in text for text in page.said("h3"))
    assert "49 &" not in whole, "names are no templates either"


def test_it_asks_for_nothing_from_outside(whole):
    page = Page(whole)
    (policy,) = [one["content"] for one in page.all("meta") if one.get("http-equiv") == "Content-Security-Policy"]
    assert policy.startswith("default-src 'none'") and "script" not in policy
    for _, attributes in page.elements:
        for name in ("src", "href", "xlink:href", "srcset", "data", "action"):
            assert attributes.get(name, "#").startswith(("#", "data:")), attributes
    (sheet,) = re.findall(r"<style>(.*?)</style>", whole, re.DOTALL)
    assert "url(" not in sheet and "@import" not in sheet
    assert "http:" not in whole.replace("http-equiv", "") and "https:" not in whole


def test_ids_are_unique_and_what_refers_to_one_finds_it(whole):
    page = Page(whole)
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    used = set(re.findall(r'url\(#([^)"]+)\)', whole)) | {one["href"][1:] for one in page.all("use")}
    used |= {one["href"][1:] for one in page.all("a")} | set(re.findall(r'aria-labelledby="([^"]+)"', whole))
    assert used and used <= set(ids)


def test_every_picture_has_a_text_and_every_table_headers(whole):
    page = Page(whole)
    pictures = page.all("svg")
    assert len(pictures) >= 9 and all(one["role"] == "img" and len(one["aria-label"]) > 40 for one in pictures)
    assert len(page.all("img")) >= 6 and all(one["alt"].startswith("image ") for one in page.all("img"))
    assert all("aria-labelledby" in one for one in page.all("figure"))
    assert page.all("table") and all(one["scope"] in ("row", "col") for one in page.all("th"))
    levels = [int(tag[1]) for tag, _ in page.elements if re.fullmatch(r"h\d", tag)]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(later <= before + 1 for before, later in itertools.pairwise(levels))


def test_the_same_runs_give_the_same_bytes(hostile, whole):
    again = page_of(hostile / "search", hostile / "net <i>", hostile / "adjusted", mistakes=3)
    assert again == whole


def test_mistakes_are_those_of_the_evaluation(hostile):
    (shown,) = report_of(hostile / "net <i>", mistakes=50).mistakes.values()
    (run,) = report_of(hostile / "net <i>").runs
    facts = run.evaluation["splits"]["test"]
    right = sum(facts["confusion"][c][c] for c in range(3))
    assert (shown.mistakes.num_images, shown.mistakes.num_wrong) == (facts["num_images"], facts["num_images"] - right)
    assert set(shown.images) == {one.row for one in (*shown.mistakes.confident, *shown.mistakes.worst)}


# What is missing


def test_an_unfinished_run_shows_what_it_has_and_how_to_go_on(tmp_path):
    make_run(tmp_path / "stopped", state="stopped", lines=lines_of("retrain", 2, train_accuracy=40.0), top1=None)
    make_run(tmp_path / "begun", "search", state="stopped", lines=[])
    page = Page(page_of(tmp_path))
    said = page.said("p")
    assert any("stopped: is stopped at epoch 2 of 3" in text for text in said)
    assert any("begun: has no alphas yet" in text for text in said)
    assert f"ssfnas retrain -o {tmp_path}/stopped" in page.said("code")
    assert f"ssfnas derive {tmp_path}/begun" in page.said("code")
    assert "No network is evaluated on test, so there are no figures by class." in said
    assert "accuracy 40.0 % on the training images" in page.said("td")
    assert any(text.startswith("Accuracy over epochs") for text in page.said("figcaption")), "it has epochs"


def test_a_run_that_is_not_evaluated_on_the_split_names_the_command(tmp_path):
    make_run(tmp_path / "net", splits={"val": split_of(40.0)})
    page = Page(page_of(tmp_path / "net"))
    assert f"ssfnas evaluate {tmp_path}/net --split test" in page.said("code")
    assert any(text.startswith("Figures on val") for text in page.said("figcaption"))
    assert "Accuracy of each class on val" in Page(page_of(tmp_path / "net", split="val")).said("figcaption")


def test_a_data_set_that_is_gone_leaves_what_the_evaluation_knows(hostile, tmp_path):
    make_run(tmp_path / "net")
    page = Page(page_of(tmp_path / "net", mistakes=3))
    assert any("The data set cannot be shown" in text and "make-dataset" in text for text in page.said("p"))
    assert any("Its mistakes cannot be shown" in text for text in page.said("p"))
    assert any(text.startswith("260 images, imbalance factor") for text in page.said("text"))


def test_a_damaged_run_is_named_and_the_others_are_shown(tmp_path):
    make_run(tmp_path / "all" / "sound")
    damaged = make_run(tmp_path / "all" / "torn").path
    (damaged / "evaluation.json").write_text("{")
    page = Page(page_of(tmp_path / "all"))
    assert any(f"{damaged}: is damaged" in text for text in page.said("p"))
    assert any(text.startswith("sound") for text in page.said("h3"))
    shutil.rmtree(tmp_path / "all" / "sound")
    with pytest.raises(InputError, match=r"no run can be used: .*torn: is damaged"):
        page_of(tmp_path / "all")


def test_runs_of_other_classes_are_not_put_together(tmp_path):
    make_run(tmp_path / "a")
    make_run(tmp_path / "b", class_names=NAMES[:2])
    with pytest.raises(InputError, match=r"3 classes, and .* 2: their accuracies do not mean the same"):
        page_of(tmp_path)


def test_control_characters_and_marks_of_direction_in_names_are_escaped(tmp_path):
    make_run(tmp_path / "a\x1b[31m\u202eb")
    page = page_of(tmp_path)
    assert "a\\x1b[31m\\u202eb" in page and "\x1b" not in page and "\u202e" not in page


def test_seeds_are_one_series_and_their_settings_are_compared(tmp_path):
    for seed in (0, 1):
        make_run(tmp_path / f"ce-{seed}", seed=seed, top1=50.0 + seed)
    make_run(tmp_path / "ldam", "retrain", "loss=ldam", top1=60.0)
    material = report_of(tmp_path)
    assert [section.title for section in sections(material)] == [name for name in SECTIONS if name != "Searches"]
    page = Page(write(material).decode())
    assert "50.50 ± 0.71" in page.said("td") and "Settings in which the networks differ" in page.said("figcaption")
    assert any("one seed only" in text for text in page.said("li"))
