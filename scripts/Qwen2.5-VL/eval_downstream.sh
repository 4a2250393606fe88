#!/bin/sh
# The five downstream benchmarks at one lambda, with the flags of the published script.
# Usage: MODEL=checkpoint DATA=data LAMBDA=0.5 sh eval_downstream.sh [further options]
# MODEL is Qwen/Qwen2.5-VL-7B-Instruct by default, DATA the folder eval/.
HERE=$(dirname "$0")
export MODEL="${MODEL:-Qwen/Qwen2.5-VL-7B-Instruct}"
exec sh "$HERE/../eval_downstream.sh" "$HERE" "$@"
