#!/usr/bin/env bash
# The remedies of docs/longtail.md on CIFAR10-LT with at most 1,000 images a class, one network, 40 epochs, equal steps.
# Interrupt it when you like: the same command goes on where it stopped, and repeats nothing that is done.
#
#   experiments/longtail/run.sh CIFAR_FOLDER OUT NETWORK MU SEED [METHOD...]     # all methods of the list below if none is named
#   experiments/longtail/run.sh cifar10 longtail resnet32 0.01 0
#
# Afterwards: ssfnas compare OUT
set -euo pipefail

root=$1 out=$2 network=$3 mu=$4 seed=$5
shift 5
methods=("$@")
if [ ${#methods[@]} = 0 ]; then
    methods=(ce class-balanced ldam-drw logit-adjusted balanced-softmax balanced-sampling deferred-sampling
        barlow-pretraining post-hoc crt barlow-pretraining+post-hoc strong)
fi
precision=${PRECISION:-fp32}
# What the recipe settings of docs/longtail.md offer, one of each kind; the preset `strong` has what helped
every_part=(--set loss.label_smoothing=0.1 --set augment=trivial --set mixup=0.2 --set ema=0.999 --set lr_warmup_epochs=2
    --set nesterov=true --set decay_bn=false)
mkdir -p "$out"

data=$out/cifar10-lt-$mu
if [ ! -e "$data/manifest.json" ]; then
    ssfnas make-dataset --source folder --root "$root" --dist exp --mu "$mu" --max-per-class 1000 --seed 0 -o "$data"
fi

for method in "${methods[@]}"; do
    run=$out/$network-mu$mu-$method-seed$seed
    base= # of a correction: the run that is corrected, which must be there
    case $method in
        post-hoc) base=ce correction=logit ;;
        crt) base=ce correction=crt ;;
        *+post-hoc) base=${method%+post-hoc} correction=logit ;;
    esac
    if [ -n "$base" ]; then
        ssfnas adjust "$out/$network-mu$mu-$base-seed$seed" --method "$correction" --threads 1 --quiet -o "$run" >"$run.json"
        [ -e "$run/evaluation.json" ] || ssfnas evaluate "$run" --threads 1 --quiet >"$run-metrics.json"
        continue
    fi
    flags=()
    case $method in
        ce) ;;
        class-balanced) flags=(--loss class_balanced) ;;
        ldam-drw) flags=(--loss ldam --set loss.weights=class_balanced --set loss.defer=0.8) ;;
        logit-adjusted) flags=(--loss logit_adjusted) ;;
        balanced-softmax) flags=(--loss balanced_softmax) ;;
        balanced-sampling) flags=(--set sampler=class_balanced) ;;
        deferred-sampling) flags=(--set sampler=class_balanced --set sampler.defer=0.8) ;;
        barlow-pretraining) flags=(--pretrain barlow --pretrain-epochs 40) ;;
        strong) flags=(--preset strong) ;;
        every-part) flags=("${every_part[@]}") ;;
        every-part-without-mixup) flags=("${every_part[@]}" --set mixup=none) ;;
        every-part-without-augment) flags=("${every_part[@]}" --set augment=none) ;;
        every-part-without-augment-mixup) flags=("${every_part[@]}" --set augment=none --set mixup=none) ;;
        every-part-without-ema) flags=("${every_part[@]}" --set ema=none) ;;
        every-part-without-smoothing) flags=("${every_part[@]}" --set loss.label_smoothing=0) ;;
        every-part-without-warmup) flags=("${every_part[@]}" --set lr_warmup_epochs=0) ;;
        every-part-without-nesterov) flags=("${every_part[@]}" --set nesterov=false) ;;
        every-part-with-decay-bn) flags=("${every_part[@]}" --set decay_bn=true) ;;
        *)
            echo "run.sh: unknown method $method" >&2
            exit 2
            ;;
    esac
    case $network in
        resnet*) flags+=(--set lr=0.1) ;;
        *) flags+=(--channels 16 --layers 8) ;;
    esac
    ssfnas retrain "$network" --data "$data" --epochs 40 --batch-size 64 --precision "$precision" --threads 1 --seed "$seed" \
        --quiet "${flags[@]}" -o "$run" >"$run.json"
    [ -e "$run/evaluation.json" ] || ssfnas evaluate "$run" --threads 1 --quiet >"$run-metrics.json"
    echo "$(date +%H:%M) $run" >&2
done
