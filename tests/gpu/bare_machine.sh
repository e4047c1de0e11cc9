#!/usr/bin/env bash
# Scorer and trainer on a bare machine: one GPU, python with torch and transformers, no network, no
# vLLM, no Ray. Seven steps in order, each with its own time limit and one JSON line at its end.
#
#     tests/gpu/bare_machine.sh [--device cuda|cpu] [--small] [STEP...]
#
# WHEELS=DIR   a folder of wheels (deepspeed, hjson, py-cpuinfo, pydantic and what these lack there),
#              installed beside this run only
# PYTHON=...   the interpreter (python3)
#
# --small: tiny shapes, a dry run; with --device cpu on any machine, which may take ten times as long.
# Lines go to stdout, all else to stderr. Exit code 1 if a step failed.
set -u
cd "$(dirname "$0")/../.." || exit 1
PYTHON="${PYTHON:-python3}"
options=() steps=() patience=1
while [ $# -gt 0 ]; do
    case "$1" in
        --device) options+=(--device "$2"); [ "$2" = cpu ] && patience=10; shift ;;
        --small) options+=(--small) ;;
        -*) echo "unknown option $1" >&2; exit 2 ;;
        *) steps+=("$1") ;;
    esac
    shift
done
[ ${#steps[@]} -gt 0 ] || steps=(packing stages tree agreement memory speed resume)

# Seconds. All together stay below a quarter of an hour, and a good machine needs half of it.
declare -A limits=(
    [packing]=60 [stages]=150 [tree]=60 [agreement]=150 [memory]=240 [speed]=120 [resume]=120
)

if [ -n "${WHEELS:-}" ]; then
    beside="$(mktemp -d)"
    trap 'rm -rf "$beside"' EXIT
    "$PYTHON" -m pip install --quiet --no-index --no-deps --target "$beside" "$WHEELS"/*.whl >&2 ||
        exit 1
    export PYTHONPATH="$beside${PYTHONPATH:+:$PYTHONPATH}"
fi

failed=0
for step in "${steps[@]}"; do
    limit=$((${limits[$step]:?no such step: $step} * patience))
    timeout --kill-after=10 "$limit" "$PYTHON" -m "tests.gpu.steps.$step" "${options[@]+"${options[@]}"}"
    code=$?
    if [ "$code" -ne 0 ]; then
        failed=1
        # The step's own line says what failed; a killed one could not write it.
        [ "$code" -eq 1 ] ||
            echo "{\"step\": \"$step\", \"ok\": false, \"problems\": [\"ended with $code; 124 and 137: over its $limit s\"]}"
    fi
done
exit "$failed"
