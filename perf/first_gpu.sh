#!/usr/bin/env bash
# Every measurement that waits for a GPU, one after the other, at most 8 minutes each; one Markdown file for RESULTS.md.
#   bash perf/first_gpu.sh gpu.md            Qwen2.5-VL-7B's shape with random weights
#   bash perf/first_gpu.sh cpu.md --small    the same commands with a small shape, on any machine
# A command that fails or runs out of time is named in the file, and the next one goes on.
set -u
cd "$(dirname "$0")/.." || exit 2
out=${1:?usage: perf/first_gpu.sh FILE.md [--small]}
shape=${2:---random_7b}
python=${PYTHON:-python}
limit=${LIMIT:-480}
short=() ; own=() ; items=8 ; pictures=54 ; sizes="9 18 36 72" ; mask=42 ; rows=200 ; plain=9 ; alone=(1 18) ; profiled=18
if [ "$shape" = --small ]; then
    short=(--quick) ; own=(--small --times 2) ; items=1 ; pictures=2 ; sizes="9" ; mask=420 ; rows=4 ; plain=2 ; alone=(1) ; profiled=1
fi
failed=0

measure() {  # title, command
    printf '\n## %s\n\n`%s`\n\n```\n' "$1" "${*:2}" >>"$out"
    local begin=$SECONDS status=0
    timeout "$limit" "$python" "${@:2}" >>"$out" 2>"$out.err" || status=$?
    printf '```\n\n%s s' $((SECONDS - begin)) >>"$out"
    if [ "$status" != 0 ]; then
        failed=$((failed + 1))
        printf '; FAILED with %s: %s' "$status" "$(tail -n 1 "$out.err")" >>"$out"
    fi
    printf '\n' >>"$out"
}

printf '# First measurements, %s\n\n' "$(date -u +%F)" >"$out"
command -v nvidia-smi >/dev/null && nvidia-smi --query-gpu=name,driver_version,clocks.sm,clocks.mem --format=csv >>"$out"
measure "The device's own rates, widths and attention kernels" perf/primitives.py "${own[@]}"
if [ "$shape" != --small ]; then
    measure "GPU tests" -m pytest -q -p no:cacheprovider tests/test_vision_attention.py tests/test_kernels.py
    measure "Memory that runs out" -m pytest -q -p no:cacheprovider -m slow tests/test_on_simulated_gpu.py -k on_a_gpu
fi
for size in $sizes; do
    measure "Position probe, $size images per call" perf/probe_speed.py "$shape" --items "$items" --rounds 1 \
        --plain_rows "$plain" --batch_size "$size"
done
measure "Kernel by kernel" perf/profiles.py "$shape" --images "$profiled"
measure "POPE" perf/pope_speed.py "$shape" --pictures "$pictures" --plain_rows "$plain" --rounds 1
measure "Occlusion" perf/occlusion.py "$shape" --pictures 1 --mask_size "$mask" --plain_copies 4
measure "Similarity" perf/similarity.py "$shape" --images $((9 * items))
measure "AGCI's own share" perf/own_share.py "$shape" --rows "$rows" --batch_sizes "${alone[@]}"
measure "Scaling" perf/scaling.py $([ "$shape" = --small ] || echo "$shape") "${short[@]}" --rounds 1
measure "Attention backends" perf/parity.py --items "$([ "$shape" = --small ] && echo 1 || echo 20)"
rm -f "$out.err"
echo "$failed failed; written: $out"
[ "$failed" = 0 ]
