#!/usr/bin/env bash
# All four arms, {softmax, sigmoid} x {ce, barlow}, through every stage on one data set, under a small budget, and a
# ResNet-32 beside them.
# Interrupt it when you like: the same command goes on where it stopped.
#
#   examples/first-run.sh cifar  PATH/cifar10        OUT    # an image folder with train/ and test/
#   examples/first-run.sh retina PATH/retinamnist.npz OUT    # a MedMNIST file
#
# Afterwards: python examples/first_run_table.py OUT
set -euo pipefail

name=$1 root=$2 out=$3
threads=${THREADS:-2}
search_epochs=${SEARCH_EPOCHS:-5}
retrain_epochs=${RETRAIN_EPOCHS:-15}
pretrain_epochs=${PRETRAIN_EPOCHS:-5}
mkdir -p "$out"

data=$out/data-$name
if [ ! -e "$data" ]; then
    case $name in
        cifar) ssfnas make-dataset --source folder --root "$root" --dist exp --mu 0.1 --max-per-class 500 -o "$data" ;;
        retina) ssfnas make-dataset --source npz --root "$root" --dist natural -o "$data" ;;
    esac >"$out/$name-dataset.json"
fi

for loss in ce barlow; do
    for relax in softmax sigmoid; do
        arm=$name-$relax-$loss
        pretrain=none
        if [ "$loss" = barlow ]; then pretrain=barlow; fi
        ssfnas search --data "$data" --preset quick --relax "$relax" --loss "$loss" --threads "$threads" \
            --epochs "$search_epochs" --batch-size 64 --channels 8 --layers 5 -o "$out/search-$arm" >"$out/$arm-search.json"
        ssfnas derive "$out/search-$arm" >"$out/$arm-genotype.json"
        ssfnas plot-genotype "$out/$arm-genotype.json" -o "$out/$arm.png" --force
        ssfnas retrain "$out/$arm-genotype.json" --preset quick --pretrain "$pretrain" \
            --pretrain-epochs "$pretrain_epochs" --epochs "$retrain_epochs" --batch-size 64 --channels 12 --layers 5 \
            --threads "$threads" -o "$out/retrain-$arm" >"$out/$arm-retrain.json"
        ssfnas evaluate "$out/retrain-$arm" --threads "$threads" >"$out/$arm-metrics.json"
    done
done

# A plain network under the budget of a retraining, for comparison.
arm=$name-resnet32
ssfnas retrain resnet32 --data "$data" --preset quick --epochs "$retrain_epochs" --batch-size 64 --threads "$threads" \
    -o "$out/retrain-$arm" >"$out/$arm-retrain.json"
ssfnas evaluate "$out/retrain-$arm" --threads "$threads" >"$out/$arm-metrics.json"
