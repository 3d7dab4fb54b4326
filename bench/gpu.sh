#!/usr/bin/env bash
# The one call for a machine with a GPU:   bench/gpu.sh OUT
#
# Checks the library, runs the tests that need a GPU, compute-sanitizer on small shapes, and the benchmarks; log.txt and
# the result files go to the folder OUT. Each part has its own time limit and all together stay under 9 minutes: a part
# for which no time is left is red. The other parts go on after a red one; the exit status is then 1.
#
# It needs no network and builds nothing. simfast/_simfast.so must be there, built with SIMFAST_CUDA=1, on this machine or
# on another. PYTHON (default python3) must have torch with its Triton, pytest, pytest-benchmark, hypothesis and
# scikit-image; connected-components-3d is a peer of one benchmark and of the tests of its op.
#
# Without a GPU it is a rehearsal: what needs one is skipped, and said to be, and the benchmarks run their smallest cases
# on the CPU.
set -u
[ $# -eq 1 ] || { echo "usage: bench/gpu.sh OUT" >&2; exit 2; }
mkdir -p "$1" && RESULTS=$(cd "$1" && pwd) || exit 2
cd "$(dirname "$0")/.." || exit 2
PYTHON=${PYTHON:-python3}
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1 CUBLAS_WORKSPACE_CONFIG=:4096:8
LOG=$RESULTS/log.txt
END=$((SECONDS + 530))
FAILED=""
: > "$LOG"

say() { echo "$*" | tee -a "$LOG"; }

# part NAME SECONDS COMMAND...
part() {
    local name=$1 limit=$2 began=$SECONDS status
    shift 2
    [ $((END - SECONDS)) -ge "$limit" ] || limit=$((END - SECONDS))
    say "== $name"
    if [ "$limit" -le 0 ]; then
        say "== $name: RED, no time is left"
        FAILED="$FAILED $name"
        return
    fi
    timeout --kill-after=10 "$limit" "$@" 2>&1 | tee -a "$LOG"
    status=${PIPESTATUS[0]}
    if [ "$status" -eq 0 ]; then
        say "== $name: passed in $((SECONDS - began)) s"
    else
        [ "$status" -ne 124 ] || say "longer than $limit s"
        say "== $name: RED, status $status after $((SECONDS - began)) s"
        FAILED="$FAILED $name"
    fi
}

skipped() { say "== $1: skipped, no GPU"; }

if $PYTHON -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then GPU=1; else GPU=""; fi
[ -n "$GPU" ] || say "no GPU: this is a rehearsal, and none of its figures is one of a GPU"

TESTS=(tests/test_{components,regions,segment_mean,nearest,matching_fused,upsampled}.py)
# "gpu or cuda" names the tests that need one; all others have run where the library was built.
PYTEST=("$PYTHON" -m pytest --continue-on-collection-errors -p no:cacheprovider)
BENCH=("$PYTHON" -m bench.run)

part library 60 "$PYTHON" - <<'EOF'
import importlib.util, torch, simfast
from simfast.ops import library

print(f"simfast {simfast.__version__}, torch {torch.__version__}, CUDA {torch.version.cuda}")
for package in ("triton", "cupy", "pytest_benchmark", "hypothesis", "skimage", "cc3d", "pydantic"):
    print(f"{package}: {'found' if importlib.util.find_spec(package) else 'not installed'}")
assert library.available(), library.error
assert torch._C._dispatch_has_kernel_for_dispatch_key("simfast::segment_mean", "CUDA"), "built without CUDA kernels"
if torch.cuda.is_available():
    print(torch.cuda.get_device_name(), torch.cuda.get_device_capability())
    library.require("segment_mean", torch.device("cuda"))
EOF
part tests-ops 120 "${PYTEST[@]}" "${TESTS[@]}" -k "gpu or cuda"
part tests-step 100 "${PYTEST[@]}" tests/test_step_modes.py -k "(gpu or cuda) and not compile"

if [ -n "$GPU" ]; then
    part bench-step 150 "${BENCH[@]}" --out "$RESULTS/step" --only step --select "cuda and not compiled"
    part bench-ops 120 "${BENCH[@]}" --out "$RESULTS/ops" --only matching --only segment_mean --only regions --only nearest \
        --only components --select cuda
    part bench-data 60 "${BENCH[@]}" --out "$RESULTS/data" --only data --select "paper and cuda"
    # torch's allocator would hide what is read or written beyond a tensor.
    export PYTORCH_NO_CUDA_MEMORY_CACHING=1
    part memcheck 60 compute-sanitizer --tool memcheck --error-exitcode 1 "$PYTHON" tests/sanitize/gpu_ops.py
    part racecheck 60 compute-sanitizer --tool racecheck --error-exitcode 1 "$PYTHON" tests/sanitize/gpu_ops.py
    unset PYTORCH_NO_CUDA_MEMORY_CACHING
    part tests-compile 120 "${PYTEST[@]}" tests/test_step_modes.py -k "(gpu or cuda) and compile"
    part bench-compile 240 "${BENCH[@]}" --out "$RESULTS/compiled" --only step --select "cuda and compiled"
else
    part bench-step 150 "${BENCH[@]}" --out "$RESULTS/step" --only step --select "1 and cpu and not compiled"
    part bench-ops 120 "${BENCH[@]}" --out "$RESULTS/ops" --only nearest --select cpu
    part bench-data 60 "${BENCH[@]}" --out "$RESULTS/data" --only data --select quick
    for name in memcheck racecheck; do skipped $name; done
    part sanitized-script 60 "$PYTHON" tests/sanitize/gpu_ops.py
    for name in tests-compile bench-compile; do skipped $name; done
fi

say "== all parts took $SECONDS s"
[ -z "$FAILED" ] || { say "== RED:$FAILED"; exit 1; }
[ -n "$GPU" ] || say "== the rehearsal passed; nothing was measured on a GPU"
