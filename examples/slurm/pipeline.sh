#!/bin/bash
# A whole pipeline, from images to metrics, as five jobs of which each waits for the one before. Run it where you can
# submit (it takes no time itself):
#
#   OUT=exp examples/slurm/pipeline.sh
#   squeue --me; ssfnas runs exp
#
# When a stage has failed, mend what its log says and run this again: what is done stays as it is, what is half done
# goes on.
#
# OUT            where everything goes, on a shared file system (default exp)
# DATASET_ARGS   for make-dataset, e.g. "--source folder --root images"    SEARCH_ARGS   for search
# DERIVE_ARGS    for derive, e.g. "--rule fairdarts"                       RETRAIN_ARGS  for retrain
# SHORT, LONG    sbatch options for the stages that take minutes and for those that train (--mem, not --mem-per-cpu:
#                requeue.sh asks for --mem, and sbatch takes only one of them)
#
# Arguments and options are words between spaces or line breaks; quotes have no meaning in them.
set -euo pipefail

out=${OUT:-exp}
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
case $out in
    *$'\n'*) echo "pipeline.sh: OUT has a line break in it: name another folder" >&2 && exit 2 ;;
esac

# Every word of a text, over all its lines, an argument of its own. `read` ends with 1 at the end of the text.
read -r -d '' -a short <<<"${SHORT:---time=00:30:00 --cpus-per-task=2 --mem=4G}" || true
read -r -d '' -a long <<<"${LONG:---time=04:00:00 --cpus-per-task=4 --mem=8G}" || true
read -r -d '' -a dataset_args <<<"${DATASET_ARGS:-}" || true
read -r -d '' -a search_args <<<"${SEARCH_ARGS:-}" || true
read -r -d '' -a derive_args <<<"${DERIVE_ARGS:-}" || true
read -r -d '' -a retrain_args <<<"${RETRAIN_ARGS:-}" || true
mkdir -p -- "$out/logs"

# --parsable: print the job's number and nothing else. afterok: start when that job has ended with exit code 0.
# kill-on-invalid-dep: when it has ended otherwise, leave the queue instead of waiting for ever.
submit() {
    local name=$1 after=$2
    shift 2
    # In a log's name % begins a field, such as the job's number; %% is a % itself.
    local options=(--parsable --job-name="$name" --output="${out//%/%%}/logs/$name.log" --open-mode=append)
    if [ -n "$after" ]; then options+=(--dependency="afterok:$after" --kill-on-invalid-dep=yes); fi
    local number
    number=$(sbatch "${options[@]}" "$@") || exit # `set -e` ends no command substitution, in which this runs
    echo "$name: job ${number%%;*}" >&2
    echo "${number%%;*}" # on a federation the number comes with the cluster's name
}

# For what sbatch --wrap hands to sh: words in single quotes, which every sh gives back as they were. Bash's own %q
# writes some of them as $'...', which only bash reads.
words() {
    local word
    for word in "$@"; do printf "'%s' " "${word//\'/\'\\\'\'}"; done
}

# A short stage whose output is there already has been done.
once() {
    local output=$1
    shift
    printf '%s\n' "[ -e $(words "$output")] || $(words ssfnas "$@" -o "$output")"
}

data=$(submit dataset "" "${short[@]}" --wrap "$(once "$out/data" make-dataset "${dataset_args[@]}")")

# What trains goes through requeue.sh. While it puts itself back into the queue its number stays the same, and the
# jobs behind it wait for its last turn.
search=$(submit search "$data" "${long[@]}" "$here/requeue.sh" \
    search --data "$out/data" -o "$out/search" "${search_args[@]}")

derive=$(submit derive "$search" "${short[@]}" \
    --wrap "$(once "$out/genotype.json" derive "$out/search" "${derive_args[@]}")")

retrain=$(submit retrain "$derive" "${long[@]}" "$here/requeue.sh" \
    retrain "$out/genotype.json" -o "$out/retrain" "${retrain_args[@]}")

evaluate=$(submit evaluate "$retrain" "${short[@]}" \
    --wrap "$(once "$out/metrics.json" evaluate "$out/retrain")")

echo "$evaluate"
