#!/usr/bin/env bash
# From images to an evaluated, drawn network: the embedded digits, made long-tailed, in about a minute on a laptop.
#
#   examples/quickstart.sh [FOLDER]
# One thread is enough: these maps are tiny, and two threads took no less time (docs/performance.md).
set -euo pipefail

out=${1:-demo}
mkdir -p "$out"

[ -e "$out/data" ] || ssfnas make-dataset --source digits --dist exp --mu 0.1 -o "$out/data" >"$out/dataset.json"

ssfnas search --data "$out/data" --preset quick --epochs 10 --threads 1 --relax sigmoid --loss barlow -o "$out/search" |
    ssfnas derive - |
    tee "$out/genotype.json" |
    ssfnas retrain - --preset quick --epochs 10 --threads 1 --pretrain barlow -o "$out/retrain" |
    ssfnas evaluate - >"$out/metrics.json"

ssfnas plot-genotype "$out/genotype.json" -o "$out/cells.png" --force --quiet

cat "$out/metrics.json"
echo "metrics: $out/metrics.json" >&2
echo "picture: $out/cells.png" >&2
