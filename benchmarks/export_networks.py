"""Export every network by its name, in both formats, and see whether the files agree with the networks.

    python benchmarks/export_networks.py            # all that are missing in --out; then docs/use.md is written
    python benchmarks/export_networks.py resnet20   # only these

Each network is built for the smallest side of SIDES that it takes, for ten classes, and gets running statistics, scales
and shifts as after a training, so that its logits are of real magnitude and differ from image to image. Then `export`
does what the command does: it writes the file, runs it on 32 images, one, three and all of them at a time, and compares
the logits. Beside the networks of the registry there are published cells and cells with every op of the registry, also
at odd sides. Each is a process of its own, whose memory is given back.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import re
import resource
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn
from untrained import untrained

from registry import NETWORKS, OPS
from registry.core import PluginError
from registry.norm import BatchNorm
from ssfnas_cli.artifacts.genotype import Cell, Edge, Genotype
from ssfnas_cli.artifacts.model import DerivedNetwork, Part
from ssfnas_cli.artifacts.named import named_genotype, published_names
from ssfnas_cli.deploy import export as exporting
from ssfnas_cli.deploy.export import FORMATS, export
from ssfnas_cli.deploy.model import Model
from ssfnas_cli.errors import SsfnasError

PAGE = Path(__file__).parents[1] / "docs" / "use.md"
SIDES = (32, 64, 96, 224)
MAX_WEIGHTS = 150e6  # above it a network takes more memory than many machines have: see --max-weights
TRACE = exporting.to_program
LOGIT = 5.0  # the deviation of the logits


def every_op() -> Genotype:
    """A cell with every op of the registry beside each other."""
    cell = Cell(edges=tuple(Edge(op=op, source=0, target=2) for op in OPS.names()), concat=(2,))
    return Genotype(normal=cell, reduce=cell)


def sparse() -> Genotype:
    """Nodes without input, a node that depends on one, and an edge with two pools."""
    chain = (Edge(op="skip_connect", source=1, target=3), Edge(op="sep_conv_3x3", source=3, target=4))
    pools = (Edge(op="max_pool_3x3", source=0, target=2), Edge(op="avg_pool_3x3", source=0, target=2))
    normal = Cell(edges=chain, concat=(2, 3, 4, 5))
    return Genotype(normal=normal, reduce=Cell(edges=pools, concat=(2,)), drop_path="node")


CELLS = {
    **{f"every op, {side}x{side}": (every_op, side, "cifar") for side in (15, 28, 32)},
    "every op, stem of ImageNet, 97x97": (every_op, 97, "imagenet"),
    "sparse cells, 17x17": (sparse, 17, "cifar"),
    **{name: (lambda name=name: named_genotype(name), 32, "cifar") for name in published_names()},
}


def build(name: str, sides: tuple[int, ...] = SIDES) -> Model:
    """The network of a name at the smallest of some sides that it takes.

    Raises:
        PluginError: it takes none of them.
    """
    torch.manual_seed(0)
    if name in CELLS:
        make, side, stem = CELLS[name]
        genotype = make()
        assert genotype is not None
        network = DerivedNetwork(genotype=genotype, channels=8, layers=5, stem=stem)  # type: ignore[arg-type]
        return untrained(network, side)
    for side in sides:
        try:
            return untrained(Part(name=name), side)
        except PluginError:
            if side == sides[-1]:
                raise
    raise AssertionError


def smooth_images(num: int, side: int, seed: int) -> np.ndarray:
    """Random images of coarse patches, uint8 [num, side, side, 3]. To a network, images of noise all look alike."""
    coarse = np.random.default_rng(seed).integers(0, 256, (num, 4, 4, 3), dtype=np.uint8)
    shape = (side, side)
    return np.stack([np.asarray(Image.fromarray(one).resize(shape, Image.Resampling.BICUBIC)) for one in coarse])


@torch.no_grad()
def make_real(model: Model) -> float:
    """Give the network the statistics of images, and logits that differ; return their deviation."""
    net = model.module
    images = torch.from_numpy(smooth_images(32, model.card.image_size, seed=1))
    views = model.normalise(images.permute(0, 3, 1, 2).float() / 255)
    for module in net.modules():
        if isinstance(module, BatchNorm | nn.LayerNorm):
            module.weight.uniform_(0.5, 1.5)
            module.bias.normal_(std=0.2)
        if isinstance(module, BatchNorm):
            module.momentum = 1.0
        if type(module).__name__ in ("CNBlock",):  # ConvNeXt's blocks begin as almost nothing
            module.layer_scale.fill_(0.3)
    net.train()(views)
    net.eval()
    features = net.encoder(views).features
    net.head.bias.zero_()
    logits = net.head(features - features.mean(0))
    net.head.weight.mul_(LOGIT / logits.std())
    net.head.bias.copy_(-net.head(features.mean(0)))
    return float(net(views).std(0).mean())


def once(trace: Callable[..., Any]) -> Callable[..., Any]:
    """A function that keeps its first result."""
    results: list[Any] = []

    def traced(*arguments: Any) -> Any:
        if not results:
            results.append(trace(*arguments))
        return results[0]

    return traced


def prove(name: str, max_weights: float) -> dict[str, Any]:
    """Export a network in both formats; what came of it.

    Deep networks of random weights magnify rounding errors where their last maps are single pixels. Such a one is tried
    again at a larger side.
    """
    found = _prove(name, SIDES, max_weights)
    refused = [found[suffix] for suffix in FORMATS if isinstance(found.get(suffix), str)]
    if refused and name not in CELLS and found["side"] < SIDES[-2]:
        return _prove(name, SIDES[-2:], max_weights) | {"smaller": {"side": found["side"], "why": refused[0]}}
    return found


def _prove(name: str, sides: tuple[int, ...], max_weights: float) -> dict[str, Any]:
    began = time.monotonic()
    try:
        model = build(name, sides)
    except PluginError as error:
        return {"name": name, "side": None, "why": str(error)}
    weights = sum(weight.numel() for weight in model.module.parameters())
    facts: dict[str, Any] = {"name": name, "side": model.card.image_size, "weights": weights}
    if weights > max_weights:
        return {**facts, "why": f"has {weights:,} weights"}
    facts["deviation"] = make_real(model)
    exporting.images_to_check = lambda card, data: (smooth_images(32, card.image_size, seed=2), "smooth images")
    exporting.to_program = once(TRACE)  # the trace is the same for both formats, and takes the longest
    for suffix in FORMATS:
        with tempfile.TemporaryDirectory() as folder:
            try:
                told = export(model, Path(folder) / f"net{suffix}", name, "")
                facts[suffix] = told["largest_difference"] / told["largest_logit"]
            except SsfnasError as error:
                facts[suffix] = str(error)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {**facts, "seconds": round(time.monotonic() - began), "peak_mb": round(peak)}


def missing(out: Path, names: list[str]) -> Iterator[str]:
    """The names without a line in the file."""
    known = {json.loads(line)["name"] for line in out.read_text().splitlines()} if out.exists() else set()
    return (name for name in names if name not in known)


def summary(found: list[dict[str, Any]]) -> str:
    """The sentences of docs/use.md."""
    of_cells = [one for one in found if one["name"] in CELLS]
    networks = [one for one in found if one["name"] not in CELLS]
    lines = [
        f"`python benchmarks/export_networks.py` (torch {torch.__version__}) exported the networks of the registry by "
        "name, each for the smallest side of 32, 64, 96 and 224 pixels that it takes, with logits of a deviation of "
        f"{LOGIT:g} between images, as `.onnx` and as `.pt2`:",
        "",
    ]
    tried = [one for one in networks if not _is_too_large(one)]
    of_registry = f"{len(tried)} of the {len(NETWORKS.names())} networks of the registry were tried"
    for title, part in ((of_registry, networks), (f"{len(of_cells)} derived networks", of_cells)):
        good = [one for one in part if isinstance(one.get(".onnx"), float) and isinstance(one.get(".pt2"), float)]
        worst = max((max(one[".onnx"], one[".pt2"]) for one in good), default=0.0)
        lines.append(
            f"- {title}: {len(good)} in both formats; logits differ by at most {worst:.0e} of the largest one."
        )
    lines[-1] += " Among them are every op of the registry, sparse cells, and sides of 15, 17 and 97 pixels."
    for one in found:
        for suffix in FORMATS:
            if isinstance(one.get(suffix), str):
                reason = one[suffix].removeprefix(f"{one['name']}: is not kept: ")
                lines.append(f"- `{one['name']}` at {one['side']} pixels as `{suffix}` is refused: {reason}.")
    good = [one for one in networks if all(isinstance(one.get(suffix), float) for suffix in FORMATS)]
    again = [one for one in good if "smaller" in one]
    if again:
        told = ", ".join(f"`{one['name']}` (at {one['side']} pixels)" for one in again)
        lines.append(
            f"- At {again[0]['smaller']['side']} pixels, where the maps of a deep network shrink to one pixel, these "
            "magnify rounding errors with random weights, in float32 by themselves as much as in a file, and are "
            f"refused with that reason; larger images are exported: {told}."
        )
    for why, names in _left_out(networks):
        lines.append(f"- Not exported: {', '.join(names)}: {why}.")
    return "\n".join(lines)


def _is_too_large(found: dict[str, Any]) -> bool:
    return "why" in found and "weights" in found


def _left_out(networks: list[dict[str, Any]]) -> Iterator[tuple[str, list[str]]]:
    """Why networks were not exported, and their names."""
    by_reason: dict[str, list[str]] = {}
    for one in networks:
        if "why" in one:
            large = f"above {MAX_WEIGHTS / 1e6:.0f} million weights, not tried"
            why = large if _is_too_large(one) else one["why"]
            why = why.removeprefix(f"network '{one['name']}': ").partition(":")[0]
            by_reason.setdefault(why, []).append(f"`{one['name']}`")
    yield from by_reason.items()


def write(section: str) -> None:
    """Replace the section of docs/use.md."""
    text, begin, end = (
        PAGE.read_text(encoding="utf-8"),
        "<!-- begin export_networks -->",
        "<!-- end export_networks -->",
    )
    assert text.count(begin) == text.count(end) == 1, f"{PAGE}: lacks the marks"
    pattern = re.escape(begin) + ".*?" + re.escape(end)
    PAGE.write_text(re.sub(pattern, lambda _: f"{begin}\n{section}\n{end}", text, flags=re.DOTALL), encoding="utf-8")


def prove_by_itself(name: str, max_weights: float) -> dict[str, Any]:
    """`prove` in a process of its own; why that ended, if it did."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_send_proof, args=(name, max_weights, theirs))
    process.start()
    theirs.close()
    try:
        found = ours.recv()
    except EOFError:
        found = None
    process.join()
    return found or {"name": name, "side": None, "why": f"exit code {process.exitcode}"}


def _send_proof(name: str, max_weights: float, pipe: Any) -> None:
    torch.set_num_threads(1)
    try:
        found = prove(name, max_weights)
    except Exception:
        found = {"name": name, "side": None, "why": f"exit code 1: {traceback.format_exc()[-300:]}"}
    pipe.send(found)


def main() -> None:
    """Export what is missing, and write the section."""
    names = ARGUMENTS.names or [*CELLS, *NETWORKS.names()]
    for name in missing(ARGUMENTS.out, names):
        line = json.dumps(prove_by_itself(name, ARGUMENTS.max_weights))
        print(line, flush=True)
        with ARGUMENTS.out.open("a") as stream:
            stream.write(line + "\n")
    found = [json.loads(line) for line in ARGUMENTS.out.read_text().splitlines()]
    print(summary(found))
    if not ARGUMENTS.names:
        write(summary(sorted(found, key=lambda one: one["name"])))


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help="default: all")
    parser.add_argument("--out", type=Path, default=Path("export-networks.jsonl"), help="a line for each network")
    parser.add_argument("--max-weights", type=float, default=MAX_WEIGHTS)
    return parser.parse_args()


if __name__ == "__main__":
    ARGUMENTS = parse()
    main()
