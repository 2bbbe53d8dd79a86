"""Real runs whose names would be dangerous in a page that did not escape them, and pages of runs."""

from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from ssfnas_cli.artifacts.run import RunFolder
from ssfnas_cli.commands.report import find_mistakes, gather
from ssfnas_cli.data.build import build_dataset
from ssfnas_cli.engine.adjust import run_adjust
from ssfnas_cli.engine.device import Device
from ssfnas_cli.engine.evaluate import evaluate_run
from ssfnas_cli.engine.retrain import run_retrain
from ssfnas_cli.engine.search import run_search
from ssfnas_cli.plots.report.contents import write
from ssfnas_cli.results.selection import select_every_run
from ssfnas_cli.settings import (
    AdjustSettings,
    MakeDatasetSettings,
    RetrainSettings,
    SearchSettings,
    load_settings,
)

CLASSES = {"<script>": 16, "<img src=x onerror=alert(1)>": 12, "{{ 7*7 }} & \"'": 8}
SMALL = {"channels": 2, "layers": 3, "batch_size": 8, "threads": 1, "kernels": "torch"}
VOID = {"meta", "link", "img", "br", "hr", "input"}  # elements of HTML without an end


@pytest.fixture(scope="session")
def hostile(tmp_path_factory):
    """A folder with `data <b>`, a `search` on it, its retraining `net <i>` and the correction `adjusted`."""
    folder = tmp_path_factory.mktemp("hostile")
    numbers = np.random.default_rng(0)
    for name, count in CLASSES.items():
        (folder / "photos" / name).mkdir(parents=True)
        for number in range(count):
            image = numbers.integers(0, 256, (12, 12, 3), dtype=np.uint8)
            Image.fromarray(image).save(folder / "photos" / name / f"{number}.png")
    source = MakeDatasetSettings(source="folder", root=str(folder / "photos"), image_size=12, test_share=0.25)
    data = str(build_dataset(source, folder / "data <b>", lambda line: None).path)
    flags = {**SMALL, "data": data, "epochs": 2, "ops": ["none", "skip_connect", "max_pool_3x3", "sep_conv_3x3"]}
    run_search(load_settings(SearchSettings, flags=flags), folder / "search", False)
    flags = {**SMALL, "data": data, "epochs": 2, "network": "resnet20", "track_test": True}
    run_retrain(None, load_settings(RetrainSettings, flags=flags), folder / "net <i>", False)
    net = RunFolder.open(folder / "net <i>")
    run_adjust(net, load_settings(AdjustSettings, flags={"threads": 1}), folder / "adjusted", False)
    for run in (net, RunFolder.open(folder / "adjusted")):
        evaluate_run(run, "", [], Device("cpu", 1))
    return folder


def page_of(*paths, split="test", mistakes=0):
    """The text of a report of runs."""
    return write(report_of(*paths, split=split, mistakes=mistakes)).decode()


def report_of(*paths, split="test", mistakes=0):
    """The material of a report of runs."""
    material = gather(select_every_run(paths), split)
    return find_mistakes(material, mistakes, "cpu", 1) if mistakes else material


class Page(HTMLParser):
    """A page as a browser's parser sees it; an element that is not closed, or closes another one, is refused.

    Attributes:
        elements: name and attributes of each.
        text: what is said between them, by the name of the element around it.
    """

    def __init__(self, page):
        super().__init__()
        self.elements, self.text, self._open = [], [], []
        self.feed(page)
        self.close()
        assert not self._open, self._open

    def handle_starttag(self, tag, attrs):
        assert len({name for name, _ in attrs}) == len(attrs), f"{tag} has an attribute twice"
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag, attrs):
        assert "svg" in self._open, f"{tag} is closed as in XML"
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self._open and self._open.pop() == tag, f"{tag} is closed within another one"

    def handle_data(self, data):
        if data.strip() and self._open[-1] != "style":
            self.text.append((self._open[-1], " ".join(data.split())))

    def all(self, tag):
        """The attributes of all elements of a name."""
        return [attributes for name, attributes in self.elements if name == tag]

    def said(self, *tags):
        """The texts in elements of these names."""
        return [text for tag, text in self.text if tag in tags]
