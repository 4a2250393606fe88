#!/bin/sh
# The five downstream benchmarks at one lambda, with the flags of the published script.
# Usage: MODEL=checkpoint DATA=data LAMBDA=0.5 sh eval_downstream.sh [further options]
# MODEL is google/gemma-3n-E4B-it by default, DATA the folder eval/.
HERE=$(dirname "$0")
export MODEL="${MODEL:-google/gemma-3n-E4B-it}"
exec sh "$HERE/../eval_downstream.sh" "$HERE" "$@"
