#!/usr/bin/env bash
# Every measurement that waits for a GPU into one Markdown file: see first_gpu.py, which this starts.
#   bash perf/first_gpu.sh gpu.md [--seconds 400] [--try] [--small] [--only WORD ...]
here=$(cd "$(dirname "$0")" && pwd)
exec "${PYTHON:-python}" "$here/first_gpu.py" "$@"
