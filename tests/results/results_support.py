"""Run folders as a training leaves them, made in no time: their figures are given, not trained."""

import json
from pathlib import Path

from ssfnas_cli.artifacts.files import write_sealed_json
from ssfnas_cli.artifacts.run import RunFolder
from ssfnas_cli.settings import RetrainSettings, SearchSettings, load_settings

MODELS = {"search": SearchSettings, "retrain": RetrainSettings}
NAMES = ["cat", "dog", "owl"]
COUNTS = [200, 50, 10]
EDGES = [{"op": "skip_connect", "from": 0, "to": 2}, {"op": "sep_conv_3x3", "from": 1, "to": 3}]
CELL = {"edges": EDGES, "concat": [2, 3]}


def split_of(top1, per_class=None):
    """What `evaluate` says of a split, with the figures that comparisons and pictures read."""
    per_class = per_class or [top1] * len(NAMES)
    group = lambda *classes: {"classes": [NAMES[c] for c in classes], "accuracy": per_class[classes[0]]}
    return {
        "num_images": 300,
        "top1": top1,
        "balanced_accuracy": sum(per_class) / len(NAMES),
        "macro_f1": top1 / 100,
        "ece": 0.1,
        "per_class": dict(zip(NAMES, per_class, strict=True)),
        "groups_by_thirds": {"head": group(0), "medium": group(1), "tail": group(2)},
        "groups_by_count": {"many": group(0), "medium": group(1), "few": group(2)},
        "confusion": [[round(per_class[0]), 100 - round(per_class[0]), 0], [10, 80, 10], [50, 40, 10]],
        "calibration": {"num_images": [0, 100, 200], "confidence": [None, 0.5, 0.9], "accuracy": [None, 0.4, 0.8]},
    }


def lines_of(kind, epochs, steps=10, **figures):
    """The metrics of some epochs."""
    phase = "search" if kind == "search" else "train"
    return [
        {"phase": phase, "epoch": epoch, "steps": steps, "elapsed_seconds": 2.0 * epoch, **figures}
        for epoch in range(1, epochs + 1)
    ]


def make_run(
    path: Path,
    kind="retrain",
    *sets,
    seed=0,
    epochs=3,
    top1: float | None = 50.0,
    splits=None,
    state="done",
    sha256="a" * 64,
    lines=None,
    provenance=None,
    result=None,
    class_names=NAMES,
    **config,
):
    """A run folder. `provenance` makes it the retraining of a genotype, `top1=None` leaves it unevaluated."""
    flags = {"epochs": epochs, "seed": seed}
    if kind == "retrain" and provenance is None and not any(one.startswith("network=") for one in sets):
        flags["network"] = "resnet20"
    settings = load_settings(MODELS[kind], sets=sets, flags=flags).resolve_plugins()
    identity = settings.identity() | {"data_sha256": sha256}
    whole = {
        "schema": "ssfnas.run/1",
        "kind": kind,
        "settings": settings.model_dump(mode="json"),
        "changed": settings.changed_identity(),
        "data": {"path": str(path.parent / f"data-{sha256[0]}"), "sha256": sha256},
        "environment": {"torch": "2", "kernels": "torch", "device": "cpu"},
        "recipe": 2,
        "command": f"ssfnas {kind} -o {path}",
    }
    if provenance is not None:
        whole["genotype"] = {"normal": CELL, "reduce": CELL, "provenance": provenance}
        identity["genotype"] = {"normal": CELL, "reduce": CELL, "seeded": provenance.get("seed")}
    path.mkdir(parents=True)
    write_sealed_json(path / "config.json", {**whole, "identity": identity, **config})
    run = RunFolder.open(path)
    lines = lines_of(kind, epochs) if lines is None else lines
    (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    result = {"num_params": 1000, "num_macs": 5000, **(result or {})}
    write_sealed_json(path / "status.json", {"state": state, "epoch": len(lines), "epochs": epochs, "result": result})
    if kind == "retrain" and top1 is not None:
        splits = splits or {"test": split_of(top1)}
        evaluation = {"class_names": class_names, "train_counts": COUNTS[: len(class_names)], "splits": splits}
        write_sealed_json(path / "evaluation.json", evaluation)
    return run
