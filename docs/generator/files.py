"""The reference of the files. What has a model is read from it; test_file_formats.py compares the rest with files."""

from __future__ import annotations

from pydantic import BaseModel

from generator.markdown import code, table, text
from generator.schemas import field_table
from ssfnas_cli.artifacts import dataset, genotype, latency, model, shards

RECORDS: dict[str, tuple[type[BaseModel], ...]] = {
    "manifest": (dataset.Manifest, dataset.SplitInfo, shards.ShardInfo, dataset.ShortClass, dataset.Skipped),
    "genotype": (genotype.Genotype, genotype.Cell, genotype.Edge, genotype.Provenance),
    "latency": (latency.LatencyFile, latency.Conditions, latency.Entry),
    "card": (model.ModelCard, model.DerivedNetwork, model.Part, model.Preparation, model.CorrectionRecord),
}

# The plain files. `SPLIT` stands for a split's name, and what is between brackets is there only sometimes.
RUN_FILES = {
    "config.json": "what the run is: its settings, its data set and the machine that began it",
    "status.json": "where it is, and once it is done the result that its command printed",
    "metrics.jsonl": "one line for each epoch",
    "metrics.csv": "the same as a table, for spreadsheets",
    "log.txt": "everything that was said, with the time",
    "alphas.safetensors": "of a search: the alphas of every epoch, and with edge_weights what the weights of edges are "
    "a softmax of; of a derivation by perturbation: the mixing weights",
    "genotype.json": "of a search: the genotype of its last epoch; of a retraining: the one that it trained",
    "model.safetensors": "of a retraining: the trained network and its card",
    "candidates.safetensors": "of random, evolution, reinforce: every candidate judged: the column of the op of each "
    "edge, or -1 (genes), its fitness, and with a cost that cost and whether it is on the front",
    "perturbation.json": "of a derivation by perturbation: every decision, with what was measured for it",
    "evaluation.json": "what evaluate measured on the run's own data set",
    "evaluation-confusion-SPLIT.csv": "the confusion matrix, if there are more than 100 classes",
    "checkpoints/": "what the run goes on from, the newest ones; see below",
    "tensorboard/": "with tensorboard=true: event files",
    "lock.json": "while a process writes to the folder: host, process and a heartbeat",
}
CONFIG = {
    "schema": "the format and its version, ssfnas.run/1",
    "kind": "search or retrain; a corrected network is a retrain run, and a derivation by perturbation a search run",
    "identity": "the settings that change results, flat, and the data set: what makes it the same run",
    "settings": "all settings, resolved",
    "changed": "those that differ from the defaults",
    "data": "path and sha256 of the data set",
    "environment": "processor, cores, threads, device, kernels, and the versions of Python, torch and ssfnas",
    "resolved": "what flip=auto and stem=auto mean here, and why",
    "recipe": "a number that grows when the same settings come to train differently",
    "command": "the command that began the run",
    "genotype": "[of a genotype's network] the genotype",
    "adjustment": "[of a corrected network] the method, its settings, the run that it corrects, and what was chosen",
    "clients": "[federated search] images of each client in the weight half and in the alpha half, and of each class",
    "derivation": "[of a derivation by perturbation] the rule, its settings, and the search that it derives from",
    "init": "[with --init-from] the search whose weights it began with, their sha256, and what was taken of them",
    "cost": "[with --cost] the costs of the ops in the network that is meant, and its size",
    "sha256": "of the rest: a file that was edited is refused",
}
STATUS = {
    "state": "running, stopped, done or diverged",
    "updated": "seconds since 1970",
    "phase": "search, pretrain, train, adjust or perturbation",
    "epoch": "epochs that are done in this phase",
    "epochs": "epochs that it has",
    "step": "[unfinished] steps that are done in this epoch",
    "checkpoint": "[unfinished] name of the newest checkpoint",
    "last": "the newest line of metrics.jsonl",
    "reason": "[diverged, or given up] why",
    "result": "[done] what the command printed",
    "files": "[done] the sizes in bytes of the files that the run has ended with",
    "sha256": "of the rest",
}
METRICS = {
    "phase": "search, pretrain, train, adjust or perturbation",
    "epoch": "the number of the epoch in its phase, from 1; of the candidate with strategy.judge=train",
    "steps": "steps of the epoch; losses and training accuracies are means over them",
    "loss": "[retrain] the loss that was minimised",
    "train_accuracy": "[retrain] top-1 on the batches that it trained on, in percent",
    "weight_loss": "[search] loss of the weight step",
    "alpha_loss": "[search by gradient] loss of the alpha step",
    "regulariser": "[search by gradient] what is added to it: the zero-one loss, beta_decay, the penalty of the cost",
    "probe_loss": "[self-supervised search] loss of the linear probe",
    "lr": "learning rate of the weights, mean over the steps",
    "alpha_lr": "[search by gradient] learning rate of the alphas",
    "accuracy_alpha_half": "[search] top-1 of the supernet on the alpha half, in percent",
    "accuracy_SPLIT": "[track_test=true] top-1 on that split, in percent",
    "pruned_accuracy_alpha_half": "[search, last epoch] the same with nothing but the ops of the genotype",
    "probe_accuracy_alpha_half": "[self-supervised search] as above, of the linear probe",
    "probe_accuracy_SPLIT": "[self-supervised search, track_test=true] as above, of the linear probe",
    "pruned_probe_accuracy_alpha_half": "[self-supervised search, last epoch] as above, of the linear probe",
    "weights_moved": "[search] the largest distance that a mixing weight has from its start",
    "weights_entropy": "[search, softmax, gumbel, dirichlet] mean entropy of an edge over that of equal weights",
    "weights_decided": "[search, sigmoid] share of the weights within 0.1 of 0 or 1",
    "edges_entropy": "[edge_weights] mean entropy of the weights of a node's inputs over that of equal weights",
    "genotype_changes": "[search] edges of the derived genotype that the epoch before did not have",
    "genotype_skips": "[search] share of its ops that are skip connections",
    "genotype_pools": "[search] share of its ops that are poolings",
    "normal_ops_with_weights": "[search] ops of its normal cell that learn anything",
    "stage": "[progressive search] the number of the stage, from 1",
    "layers": "[progressive search] cells of its supernet",
    "candidates_per_edge": "[progressive search] ops that are candidates on each edge",
    "candidates": "[rounds of random, evolution and reinforce] how many were judged; such an epoch has no weight steps "
    "unless it is a training",
    "candidate_fitness": "[with candidates] the mean of their fitness, in percent",
    "best_fitness": "[with candidates] the highest fitness of all candidates so far",
    "policy_entropy": "[candidates of reinforce] the mean entropy of the policy's choices, in nats",
    "expected_cost": "[search by gradient with --cost] mean cost of networks drawn by the ops' probabilities",
    "genotype_cost": "[search with --cost] cost of the network of the derived genotype, by the table if of latency",
    "rounds": "[federated search] rounds of the epoch; a step is then one of all clients of a round",
    "round_bytes": "[federated search] what a round sends to its clients and back: weights, running statistics, alphas",
    "measurements": "[rounds of a derivation by perturbation] how often the supernet was measured without something",
    "decisions": "[rounds of a derivation by perturbation] edges and nodes that are decided so far",
    "accuracy_without": "[rounds of a derivation by perturbation] mean top-1 on the alpha half of those, in percent",
    "balanced_accuracy_without": "[rounds of a derivation by perturbation] mean of their balanced accuracies",
    "loss_without": "[rounds of a derivation by perturbation] mean of their cross-entropies",
    "step_seconds": "median seconds of a step, data included",
    "peak_memory_bytes": "the most memory that the process had so far",
    "elapsed_seconds": "seconds that the run has computed, interruptions left out",
}
EVALUATION = {
    "kind": "metrics",
    "run": "the run folder",
    "data_sha256": "identity of the data set",
    "class_names": "in class order",
    "train_counts": "training images of each class",
    "splits": "the figures of each split, by its name",
    "same_images": "pairs of splits that hold the same images",
    "kept_in": "[printed] the file in the run folder that has the same",
    "sha256": "[in the run folder] of the rest",
}
SPLIT_FIGURES = {
    "num_images": "how many images",
    "top1": "accuracy, in percent",
    "balanced_accuracy": "mean of the classes' own accuracies, in percent",
    "macro_f1": "mean of the classes' F1, from 0 to 1",
    "ece": "expected calibration error over 15 bins of the confidence, from 0 to 1",
    "calibration": "images, mean confidence and accuracy of each of those bins",
    "per_class": "accuracy of each class, in percent; null without images",
    "class_counts": "images of each class",
    "groups_by_count": "classes, images and accuracy of the groups many, medium and few (ImageNet-LT)",
    "groups_by_thirds": "the same of the thirds head, medium and tail",
    "worst_confusions": "the ten pairs of true and predicted class with the most images",
    "confusion": "images, a row for each true class and a column for each predicted one",
    "confusion_file": "[more than 100 classes] the CSV file that has that matrix",
}
PREDICTION = {
    "path": "the file as it was named",
    "class": "the most probable class; empty (null) if the file could not be read",
    "probability": "its probability",
    "error": "why the file could not be read; empty (null) if it could",
    "top_k": "[JSON] the most probable classes with their probabilities, this one included",
    "class_2": "[CSV] the second most probable class, and so on up to --top-k",
    "probability_2": "[CSV] its probability, and so on",
}
PLAIN = {
    "run-files": RUN_FILES,
    "config": CONFIG,
    "status": STATUS,
    "metrics": METRICS,
    "evaluation": EVALUATION,
    "split-figures": SPLIT_FIGURES,
    "prediction": PREDICTION,
}


def plain_table(name: str) -> str:
    """A table of the keys of a plain file, or of the files of a folder."""
    first = "file" if name.endswith("-files") else "key"
    return table([first, "what it is"], [[code(key), text(what)] for key, what in PLAIN[name].items()])


def record_tables(name: str) -> str:
    """A table for each of the models that make up a file."""
    first, *others = RECORDS[name]
    parts = [field_table(first), *(f"#### {one.__name__}\n\n{field_table(one)}" for one in others)]
    return "\n".join(parts)
