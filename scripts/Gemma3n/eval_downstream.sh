#!/bin/sh
# The five downstream benchmarks at one lambda, with the flags of the published script.
# Usage: MODEL=checkpoint DATA=data LAMBDA=0.5 sh eval_downstream.sh [further options]
set -eu
HERE=$(dirname "$0")
: "${MODEL:?set MODEL to the checkpoint: MODEL=checkpoint sh eval_downstream.sh}"
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
