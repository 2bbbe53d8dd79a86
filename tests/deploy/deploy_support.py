"""Photos of many kinds in class folders, the data set that they make, and a network that was trained on it."""

import numpy as np
import pytest
from PIL import Image

from ssfnas_cli.artifacts.genotype import Cell, Edge, Genotype
from ssfnas_cli.artifacts.model import DerivedNetwork, ModelCard, Part
from ssfnas_cli.artifacts.run import RunFolder
from ssfnas_cli.data.build import build_dataset
from ssfnas_cli.engine.network import build_model
from ssfnas_cli.engine.retrain import run_retrain
from ssfnas_cli.settings import MakeDatasetSettings, RetrainSettings, load_settings

CLASSES = {"ant": 8, "bee": 6, "cat": 4}
CELL = Cell(
    edges=(Edge(op="sep_conv_3x3", source=0, target=2), Edge(op="skip_connect", source=1, target=2)), concat=(2,)
)
GENOTYPE = Genotype(normal=CELL, reduce=CELL)


def pixels(seed, height, width, channels=3):
    return np.random.default_rng(seed).integers(0, 256, (height, width, channels), dtype=np.uint8)


def save_photo(path, number):
    """Wide and high ones, and by turns plain, turned by its EXIF tag, grey, transparent, a JPEG and 16 bits deep."""
    height, width = 17 + 3 * (number % 5), 23 - 2 * (number % 4)
    array = pixels(number, height, width)
    kind = number % 6
    if kind == 1:
        exif = Image.Exif()
        exif[0x0112] = 6
        Image.fromarray(array).save(path.with_suffix(".png"), exif=exif)
    elif kind == 4:
        Image.fromarray(array).save(path.with_suffix(".jpg"))
    else:
        grey = array[:, :, 0]
        image = {2: grey, 3: pixels(number, height, width, 4), 5: grey.astype(np.uint16) * 250}.get(kind, array)
        Image.fromarray(image).save(path.with_suffix(".png"))


@pytest.fixture(scope="session")
def photos(tmp_path_factory):
    """A folder of photos, in a folder a class."""
    root = tmp_path_factory.mktemp("photos")
    for label, (name, count) in enumerate(CLASSES.items()):
        (root / name).mkdir()
        for number in range(count):
            save_photo(root / name / f"IMG_{number}", 7 * label + number)
    return root


@pytest.fixture(scope="session")
def photo_data(photos, tmp_path_factory):
    """The data set of the photos, 16x16 in colour, with a third of them for the test."""
    settings = MakeDatasetSettings(source="folder", root=str(photos), image_size=16, test_share=0.3)
    return build_dataset(settings, tmp_path_factory.mktemp("data") / "photos", lambda line: None)


@pytest.fixture(scope="session")
def run(photo_data, tmp_path_factory):
    """A finished retraining on the photos."""
    flags = {"data": str(photo_data.path), "channels": 4, "layers": 3, "batch_size": 4, "epochs": 1, "threads": 1}
    settings = load_settings(RetrainSettings, sets=["kernels=torch"], flags=flags)
    path = tmp_path_factory.mktemp("runs") / "net"
    run_retrain(GENOTYPE, settings, path, False)
    return RunFolder.open(path, "retrain")


def card(network, size=16, channels=3, aux=False, **facts):
    """A card of three classes; `network` is a genotype or the name of a plain network."""
    derived = {"channels": 4, "layers": 3, "stem": facts.pop("stem", "cifar")}
    of = Part(name=network) if isinstance(network, str) else DerivedNetwork(genotype=network, **derived)
    usual = {
        "loss": Part(name="ce"),
        "head": Part(name="linear"),
        "class_names": list(CLASSES),
        "train_counts": [8, 6, 4],
        "mean": [0.4] * channels,
        "std": [0.2] * channels,
        "data": "nowhere",
        "data_sha256": "0" * 64,
        "seed": 0,
    }
    return ModelCard(network=of, aux=aux, in_channels=channels, image_size=size, **usual | facts)


def trained(of_card):
    """The network of a card with weights and statistics as different as after a training."""
    import torch

    torch.manual_seed(1)
    net = build_model(of_card)
    for module in net.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
            if module.affine:
                module.weight.data.uniform_(0.5, 1.5)
                module.bias.data.normal_()
    return net
