#!/bin/sh
# The five downstream benchmarks at one lambda, with the flags of the published script.
# Usage: MODEL=checkpoint DATA=data LAMBDA=0.5 sh eval_downstream.sh [further options]
# MODEL is llava-hf/llava-v1.6-mistral-7b-hf by default, DATA the folder eval/.
HERE=$(dirname "$0")
export MODEL="${MODEL:-llava-hf/llava-v1.6-mistral-7b-hf}"
exec sh "$HERE/../eval_downstream.sh" "$HERE" "$@"
