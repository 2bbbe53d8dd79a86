"""A trained network as an object: from images to class names and probabilities, in three lines of Python."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar, overload

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from registry import PluginError
from ssfnas_cli.artifacts.model import ModelCard, load_model
from ssfnas_cli.artifacts.run import RunFolder
from ssfnas_cli.console import printable
from ssfnas_cli.data.augment import Normalise, to_float
from ssfnas_cli.data.images import BadImage
from ssfnas_cli.deploy.prepare import AnyImage, is_file_content, prepare
from ssfnas_cli.engine.corrections import Floats, change_of_prior
from ssfnas_cli.engine.device import Device
from ssfnas_cli.engine.network import load_classifier, load_finished
from ssfnas_cli.engine.priors import find_prior, read_prior
from ssfnas_cli.errors import InputError, UsageError
from ssfnas_cli.nets.evaluation import Evaluated
from ssfnas_cli.nets.heads import Classifier
from ssfnas_cli.settings import RetrainSettings

BATCH_SIZE = 64
T = TypeVar("T")
Prior = str | os.PathLike[str] | ArrayLike | Mapping[str, float]


@dataclass(frozen=True)
class Prediction:
    """What a network says of an image.

    Attributes:
        class_name: the most probable class.
        probability: its probability.
        probabilities: that of every class by name, in the order of `Model.class_names`.
    """

    class_name: str
    probability: float
    probabilities: dict[str, float]

    def top(self, num: int) -> list[tuple[str, float]]:
        """The `num` most probable classes and their probabilities, the most probable one first.

        Raises:
            UsageError: the number is negative.
        """
        if num < 0:
            raise UsageError(f"top: should be given how many classes, 0 or more, not {num}")
        return sorted(self.probabilities.items(), key=lambda pair: -pair[1])[:num]


class Model:
    """A trained network and all that is needed to use it; `ssfnas_cli.load` makes it.

    An image is a path, the bytes of an image file, such a file opened for reading bytes, a PIL image, or an array
    [H, W], [H, W, 1], [H, W, 3] (RGB) or [H, W, 4] (RGBA) of uint8, of uint16 (grey only), or of floats from 0 to 1. It
    is prepared as the images of the data set were.

    Attributes:
        module: the network, which maps standardised images [N, C, S, S] to logits [N, num_classes].
        card: what it was trained on, and how images are prepared.
        class_names: the classes in the order of the logits.
        prior: the class prior [num_classes] that the softmax of the logits holds, or None if it is not known.
    """

    def __init__(
        self, module: Classifier, card: ModelCard, prior: Floats | None, device: torch.device, reduced: bool = False
    ):
        """Use `ssfnas_cli.load` instead."""
        module.encoder.compile_with(None)
        self.module = module.to(device).to(memory_format=torch.channels_last).eval()
        self.card, self.prior, self.device = card, prior, device
        self.class_names = list(card.class_names)
        self.normalise = Normalise(tuple(card.mean), tuple(card.std))
        self._reduced = reduced
        self._ready: tuple[object, Evaluated] | None = None

    def __repr__(self) -> str:
        """What it is, in a line: the modules of the network would fill a screen, and are in `module`."""
        first = ", ".join(map(printable, self.class_names[:3]))
        more = ", …" if len(self.class_names) > 3 else ""
        of = f"{len(self.class_names)} classes ({first}{more})"
        return f"<Model: {of}, images of {self.card.image_size} pixels, on {self.device}>"

    def __getstate__(self) -> dict[str, Any]:
        """What copies and pickles hold; what is prepared for this processor cannot be copied, and is made again."""
        return self.__dict__ | {"_ready": None}

    def transform(self, image: AnyImage) -> Tensor:
        """A standardised image [C, S, S] in float32, to be stacked into a batch for `module`.

        Raises:
            InputError: the image cannot be read.
        """
        return self.normalise(to_float(np.stack([self._prepare(image)])))[0]

    @overload
    def predict(  # type: ignore[overload-overlap]  # a path is an iterable of texts, too
        self, images: AnyImage, prior: Prior | None = None
    ) -> Prediction: ...
    @overload
    def predict(self, images: Iterable[AnyImage], prior: Prior | None = None) -> list[Prediction]: ...

    def predict(
        self, images: AnyImage | Iterable[AnyImage], prior: Prior | None = None
    ) -> Prediction | list[Prediction]:
        """Class names and probabilities.

        Args:
            images: an image, or several in a list or another iterable; an array [N, H, W, C] is N images.
            prior: the class prior that the probabilities are to hold: `uniform`, `train`, a file of counts, or a number
                for each class, in their order or by name. None leaves the one that the training gave them, usually that
                of the long tail.

        Returns:
            A prediction, or a list of them if `images` are several.

        Raises:
            InputError: an image cannot be read.
            UsageError: `prior` is given, and the one that the outputs hold is not known.
        """
        shift = self.shift_to(prior)
        found = [
            prediction
            for batch in _batches(map(self._prepare, _several(images)))
            for prediction in self._predictions(self.logits(np.stack(batch)), shift)
        ]
        return found[0] if _is_image(images) else found

    def features(self, images: AnyImage | Iterable[AnyImage]) -> Tensor:
        """What the classifier gets [N, F] in float32; of a single image [F]."""
        parts = []
        with torch.no_grad():
            for batch in _batches(map(self._prepare, _several(images))):
                views = self._views(np.stack(batch))
                parts.append(self._evaluated(views).network.encoder(views).features.float().cpu())
        found = torch.cat(parts) if parts else torch.empty(0, self.module.encoder.num_features)
        return found[0] if _is_image(images) else found

    @torch.no_grad()
    def logits(self, arrays: NDArray[np.uint8]) -> Tensor:
        """The logits [N, num_classes] in float32 of prepared images, uint8 [N, S, S, C]."""
        views = self._views(arrays)
        return self._evaluated(views)(views).cpu()

    def shift_to(self, prior: Prior | None, flag: str = "prior") -> Floats:
        """What is added to the logits so that their softmax holds another prior [num_classes]; see `predict`.

        Args:
            prior: the other prior.
            flag: what messages call it.
        """
        if prior is None:
            return np.zeros(len(self.class_names))
        if self.prior is None:
            raise UsageError(
                f"after the loss '{self.card.loss.name}' it is not known which class prior the outputs hold, so they "
                "cannot be shifted to another one"
            )
        given = read_prior(os.fspath(prior), self.card, flag) if isinstance(prior, str | os.PathLike) else prior
        if isinstance(given, Mapping):
            given = [given[name] for name in self.class_names] if set(given) == set(self.class_names) else []
        try:
            wanted = np.asarray(given, dtype=np.float64)
            with np.errstate(all="ignore"):
                wanted = wanted / wanted.max(initial=0.0)  # a sum of large numbers would be infinite
        except (TypeError, ValueError, OverflowError):
            wanted = np.zeros(0)
        if wanted.shape != (len(self.class_names),) or not (wanted > 0).all() or not np.isfinite(wanted).all():
            raise UsageError(
                f"{flag}: should be a positive number for each of the {len(self.class_names)} classes, in their order "
                "or by name"
            )
        return change_of_prior(self.prior, wanted / wanted.sum())

    def _prepare(self, image: AnyImage) -> NDArray[np.uint8]:
        try:
            return prepare(image, self.card)
        except BadImage as bad:
            raise InputError(str(bad)) from bad

    def _evaluated(self, views: Tensor) -> Evaluated:
        """`module` for evaluation; a new one if somebody has changed its weights."""
        state = [*self.module.parameters(), *self.module.buffers()]
        seen = [(tensor.data_ptr(), tensor._version) for tensor in state]
        if self._ready is None or self._ready[0] != seen:
            self._ready = seen, Evaluated(self.module, views[:2], self._reduced)
        return self._ready[1]

    def _views(self, arrays: NDArray[np.uint8]) -> Tensor:
        return self.normalise(to_float(arrays)).to(self.device, memory_format=torch.channels_last)

    def _predictions(self, logits: Tensor, shift: Floats) -> Iterator[Prediction]:
        for row in probabilities(logits, shift):
            best = int(row.argmax())
            values = dict(zip(self.class_names, row.tolist(), strict=True))
            yield Prediction(self.class_names[best], float(row[best]), values)


def load(run: str | os.PathLike[str], device: str = "cpu", precision: str = "fp32") -> Model:
    """Load a trained network.

    Args:
        run: the folder of a finished retraining, or its `model.safetensors` alone.
        device: where to compute, such as `cuda`.
        precision: `fp32`, or `bf16` for faster predictions on a processor that multiplies it; features stay float32.

    Raises:
        InputError: there is none, it is unfinished, or it is damaged.
        UsageError: `run` is no path, or the device or precision does not exist.
    """
    if not isinstance(run, str | os.PathLike):
        raise UsageError(f"load: should be given the path of a run folder or of its model.safetensors, not {run!r:.80}")
    path, place = Path(run), Device.for_evaluation(device, 0, precision, own_process=False)
    if path.is_file():
        tensors, card = load_model(path)
        classifier = load_classifier(tensors, card, path)
        return Model(classifier, card, find_prior(card, None), place.torch, place.reduces())
    return load_run(RunFolder.open(path, "retrain"), place)


def load_run(run: RunFolder, device: Device, from_prior: str = "") -> Model:
    """Load the network of a finished retraining. `from_prior` is as for `find_prior`."""
    module, card = load_finished(run)
    training = None
    if card.prior is None and not from_prior:
        with contextlib.suppress(InputError, PluginError):  # if a plugin is missing, only the prior is unknown
            training = run.settings(RetrainSettings).resolve_plugins()
    return Model(module, card, find_prior(card, training, from_prior), device.torch, device.reduces())


def probabilities(logits: Tensor, shift: Floats) -> NDArray[np.float64]:
    """The softmax [N, C] of shifted logits, in float64."""
    return torch.softmax(logits.double() + torch.from_numpy(shift), 1).numpy()


def _is_image(images: Any) -> bool:
    """Whether this is one image and not several."""
    if isinstance(images, np.ndarray):
        return images.ndim < 4
    return isinstance(images, str | os.PathLike) or hasattr(images, "getbands") or is_file_content(images)


def _several(images: Any) -> Iterable[AnyImage]:
    """The images to read, one by one; a tensor, which would come apart into numbers, is passed on to be refused."""
    apart = isinstance(images, Iterable) and not isinstance(images, Mapping | Tensor) and not _is_image(images)
    return images if apart else [images]


def _batches(items: Iterable[T]) -> Iterator[list[T]]:
    rest = iter(items)
    while batch := list(islice(rest, BATCH_SIZE)):
        yield batch
