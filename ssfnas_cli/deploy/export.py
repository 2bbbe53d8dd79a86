"""A trained network as a file for other programs: ONNX, or torch's own .pt2. It is written only if it agrees."""

from __future__ import annotations

import copy
import json
import logging
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from ssfnas_cli import __version__
from ssfnas_cli.artifacts.model import ModelCard
from ssfnas_cli.console import log
from ssfnas_cli.data.embedded import find_data
from ssfnas_cli.deploy.model import Model
from ssfnas_cli.errors import InputError, SsfnasError, UsageError
from ssfnas_cli.nets.heads import Classifier

SCHEMA = "ssfnas.export/1"
INPUT, OUTPUT = "images", "logits"
TOLERANCE = 1e-4  # of the largest logit
NUM_CHECKED = 32
MAX_ONNX_BYTES = 2**31 - 2**24  # protobuf's limit, with room for the graph

Run = Callable[[NDArray[np.uint8]], NDArray[np.float32]]


class Standardising(nn.Module):
    """A network with its standardisation: uint8 images [N, S, S, C] -> logits [N, num_classes]."""

    mean: Tensor
    std: Tensor

    def __init__(self, model: Model):
        super().__init__()
        network = copy.deepcopy(model.module).cpu().to(memory_format=torch.contiguous_format)
        self.network = Classifier(network.encoder, network.head, None, network.correction)
        for name, values in zip(("mean", "std"), model.normalise.arrays(), strict=True):
            self.register_buffer(name, torch.from_numpy(values).float())

    def forward(self, images: Tensor) -> Tensor:
        standardised = (images.float() / 255 - self.mean) / self.std
        return self.network(standardised.permute(0, 3, 1, 2))


def export(model: Model, path: Path, name: str, data_path: str = "") -> dict[str, Any]:
    """Write the network to a file, run the file, and keep it if it gives the logits that the network gives.

    Args:
        model: the network.
        path: the file to write, whose suffix is one of FORMATS.
        name: what it is called in messages.
        data_path: the folder of the network's data set; empty means the one that it was trained on.

    Returns:
        What `export` prints: the file, its input and output, and how well it agrees.

    Raises:
        InputError: the network cannot be exported.
        SsfnasError: the file's logits differ by more than TOLERANCE of the largest logit.
    """
    write = FORMATS[path.suffix.lower()]
    arrays, origin = images_to_check(model.card, data_path)
    module = Standardising(model).eval()
    facts = describe(model)
    agreement = check(write(module, example(model.card), facts, path), model, arrays, name)
    size = path.stat().st_size
    return {"kind": "export", "path": name, "bytes": size, **facts, "checked_on": origin, **agreement}


def describe(model: Model) -> dict[str, Any]:
    """The metadata of the file: all that a program needs beside the graph."""
    card = model.card
    colour = "grey" if card.in_channels == 1 else "RGB"
    return {
        "schema": SCHEMA,
        "input": {
            "name": INPUT,
            "type": "uint8",
            "shape": ["N", card.image_size, card.image_size, card.in_channels],
            "colour": colour,
        },
        "output": {"name": OUTPUT, "type": "float32", "shape": ["N", len(card.class_names)]},
        "class_names": model.class_names,
        "preparation": card.preparation.model_dump(mode="json"),
        "mean": card.mean,
        "std": card.std,
        "prior": None if model.prior is None else model.prior.tolist(),
        "data_sha256": card.data_sha256,
        "ssfnas": __version__,
    }


def example(card: ModelCard) -> Tensor:
    """Two black images. One would be taken for a batch that is always of one image."""
    return torch.zeros(2, card.image_size, card.image_size, card.in_channels, dtype=torch.uint8)


def to_program(module: nn.Module, images: Tensor) -> ExportedProgram:
    """Trace a module for a batch of any size.

    Raises:
        InputError: torch cannot.
    """
    try:
        with torch.no_grad():
            return torch.export.export(module, (images,), dynamic_shapes=({0: Dim("N", min=1)},))
    except Exception as error:  # torch raises whatever the module's code and its own tracer raise
        raise _cannot(error) from error


def _cannot(error: Exception) -> InputError:
    lines = str(error).strip().splitlines()
    return InputError(f"torch cannot export this network: {lines[0] if lines else type(error).__name__}")


def write_pt2(module: nn.Module, images: Tensor, facts: dict[str, Any], path: Path) -> Run:
    """Write an archive of torch.export, whose weights are raw and whose graph is JSON; the facts are in ssfnas.json."""
    program = to_program(module, images)
    program.example_inputs = None  # torch would pickle them
    torch.export.save(program, path, extra_files={"ssfnas.json": json.dumps(facts)})
    loaded = torch.export.load(path).module()

    def run(arrays: NDArray[np.uint8]) -> NDArray[np.float32]:
        with torch.no_grad():
            return loaded(torch.from_numpy(arrays)).numpy()

    return run


def write_onnx(module: nn.Module, images: Tensor, facts: dict[str, Any], path: Path) -> Run:
    """Write an ONNX file. The facts are in the model's metadata, each as JSON, the texts among them as they are."""
    import onnxruntime

    num_bytes = sum(tensor.numel() * tensor.element_size() for tensor in module.state_dict().values())
    if num_bytes > MAX_ONNX_BYTES:
        raise UsageError(f"--output {path.name}: its weights take more than 2 GiB, ONNX's limit: export a .pt2")
    program = to_program(module, images)
    with _quiet():
        try:
            made = torch.onnx.export(program, dynamo=True, input_names=[INPUT], output_names=[OUTPUT], verbose=False)
        except Exception as error:  # see to_program
            raise _cannot(error) from error
    assert made is not None
    _name_batch(made.model.graph)
    made.model.metadata_props.update(
        {name: value if isinstance(value, str) else json.dumps(value) for name, value in facts.items()}
    )
    made.save(path)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return lambda arrays: session.run([OUTPUT], {INPUT: arrays})[0]


def _name_batch(graph: Any) -> None:
    """Call the dimension of the batch N, as the facts do; torch calls it by a number of its own, such as s34."""
    symbol = str(graph.inputs[0].shape[0])
    for value in (*graph.inputs, *(one for node in graph for one in node.outputs)):
        for axis, length in enumerate(value.shape or ()):
            if str(length) == symbol:
                value.shape[axis] = "N"


class _quiet(warnings.catch_warnings):
    """Without what the exporters warn of, which the user cannot act on; the check decides."""

    def __enter__(self) -> Any:
        entered = super().__enter__()
        warnings.simplefilter("ignore")
        self._disabled = logging.root.manager.disable
        logging.disable(logging.ERROR)
        return entered

    def __exit__(self, *error: Any) -> None:
        logging.disable(self._disabled)
        super().__exit__(*error)


FORMATS = {".onnx": write_onnx, ".pt2": write_pt2}


def images_to_check(card: ModelCard, data_path: str) -> tuple[NDArray[np.uint8], str]:
    """Prepared images [n, S, S, C] on which a file is compared with the network, and where they come from.

    They are spread over the test split of the network's data set, or random if that is not there any more.
    """
    try:
        data = find_data(data_path, card.data, card.data_sha256, "run", False, ["test"])
        split = data.split("test")
        num = min(NUM_CHECKED, len(split))
        return split.rows(np.linspace(0, len(split) - 1, num).astype(int)), f"{num} images of test"
    except InputError as error:
        if data_path:
            raise
        log.warning("%s; now the file is checked on random images", error)
    shape = NUM_CHECKED, card.image_size, card.image_size, card.in_channels
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8), f"{NUM_CHECKED} random images (seed 0)"


def check(run: Run, model: Model, arrays: NDArray[np.uint8], name: str) -> dict[str, Any]:
    """Compare a file's logits with the network's, for batches of several sizes.

    Returns:
        The largest difference and the largest logit, both absolute.

    Raises:
        SsfnasError: they differ, or the file cannot be run.
    """
    wanted = model.logits(arrays).numpy()
    largest, difference = float(np.abs(wanted).max()), 0.0
    for begin, end in ((0, 1), (1, min(4, len(arrays))), (0, len(arrays))):
        if begin < end:
            try:
                found = run(arrays[begin:end])
            except Exception as error:  # onnxruntime's own kinds
                raise SsfnasError(f"{name}: is not kept: it cannot be run: {str(error).splitlines()[0]}") from error
            difference = float(np.maximum(difference, _largest_difference(found, wanted[begin:end])))  # keeps NaN
    if not difference <= TOLERANCE * largest:
        raise SsfnasError(
            f"{name}: is not kept: its logits differ from the network's by {difference:.3g}, of at most {largest:.3g} "
            f"(in float32 the network itself is off by up to {_own_error(model, arrays, wanted):.3g})"
        )
    return {"largest_difference": difference, "largest_logit": largest}


@torch.no_grad()
def _own_error(model: Model, arrays: NDArray[np.uint8], logits: NDArray[np.float32]) -> float:
    """The largest difference between a network's logits and those that it has in float64.

    Where it is as large as the tolerance, the network magnifies rounding errors, and no file could agree with it.
    """
    module = Standardising(model).double().eval()
    mean, std = (values.double() for values in (module.mean, module.std))
    images = (torch.from_numpy(arrays).double() / 255 - mean) / std
    return float(np.abs(module.network(images.permute(0, 3, 1, 2)).numpy() - logits).max())


def _largest_difference(found: NDArray[np.float32], wanted: NDArray[np.float32]) -> float:
    """The largest absolute difference; infinite if the shapes differ. NaN stays NaN."""
    return float(np.abs(found - wanted).max()) if found.shape == wanted.shape else float("inf")
