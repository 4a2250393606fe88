#!/bin/sh
# What every model's eval_downstream.sh runs: the five downstream benchmarks at one lambda. $1 is the model's folder.
# MODEL, DATA, LAMBDA, OUT and PYTHON come from the environment.
set -eu
HERE=$1
shift
DATA=${DATA:-$HERE/../../eval}
OUT=${OUT:-results_downstream}

exec "${PYTHON:-python}" "$HERE/eval_downstream.py" --model_path "$MODEL" \
    --data_root "$DATA" \
    --answers_file_scienceqa "$OUT/scienceqa_answers.json" \
    --answers_file_hallusionbench "$OUT/hallusionbench_answers.json" \
    --answers_file_crpe "$OUT/crpe_answers.json" \
    --answers_file_textvqa "$OUT/textvqa_answers.json" \
    --answers_file_pope "$OUT/pope_answers.json" \
    --global_context_lambda "${LAMBDA:-0.5}" "$@"
