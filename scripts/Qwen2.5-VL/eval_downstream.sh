#!/bin/sh
# The five downstream benchmarks at one lambda, with the flags of the published script.
# Usage: MODEL=checkpoint DATA=data LAMBDA=0.5 sh eval_downstream.sh [further options]
HERE=$(dirname "$0")
exec sh "$HERE/../eval_downstream.sh" "$HERE" "$@"
