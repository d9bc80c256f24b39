#!/usr/bin/env bash
# usage: scripts/test.sh [arguments for pytest]
# Sets everything up in .venv (the first time) and runs the tests on PyTorch, TensorFlow and JAX.
# BACKENDS="jax torch" chooses among them; DYNZOO_TEST_WORKERS sets the number of processes.
# Tests that ask nothing of a backend (marked `any_backend`) run on the first of them only.
# Tests that need CIFAR-10 are skipped unless DYNZOO_CIFAR10_NPZ or TFDS_DATA_DIR says where it is.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 1
bash scripts/venv.sh test || exit 1

cores=$(.venv/bin/python -c 'import os; print(os.cpu_count() or 1)')
workers=${DYNZOO_TEST_WORKERS:-$((cores < 4 ? cores : 4))}
parallel=()
if [ "$workers" -gt 1 ]; then
  # a file stays in one process, for its fixtures, the longest first (tests/conftest.py); one
  # thread each, or they wait for one another
  parallel=(-n "$workers" --dist loadfile --no-loadscope-reorder)
  export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
  export TF_NUM_INTRAOP_THREADS=${TF_NUM_INTRAOP_THREADS:-1}
  export TF_NUM_INTEROP_THREADS=${TF_NUM_INTEROP_THREADS:-1}
fi

# What one test has compiled on JAX the others need not compile again, in whatever process they run.
cache=$(mktemp -d)
trap 'rm -rf "$cache"' EXIT
export JAX_COMPILATION_CACHE_DIR=$cache JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS=0
export JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES=-1

# On JAX the tests compile thousands of small programs and run each for milliseconds, so XLA is told
# not to optimise them, but for the tests of rounding, which is that of the code users run.
quick="${XLA_FLAGS:-} --xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false"

tests() {
  .venv/bin/python -m pytest -q ${parallel[@]+"${parallel[@]}"} "$@" </dev/null
}

status=0
summary=()
first=yes
for backend in ${BACKENDS:-torch tensorflow jax}; do
  printf '\n=== tests on %s\n' "$backend"
  start=$SECONDS
  export KERAS_BACKEND=$backend
  if [ "$backend" = jax ]; then
    DYNZOO_TEST_ROUNDING=only tests "$@"
    codes=$?
    XLA_FLAGS=$quick DYNZOO_TEST_ROUNDING=none tests "$@"
    codes=$codes,$?
  else
    tests "$@"
    codes=$?
  fi
  case $first:$codes in
    # 5: the arguments choose none of this half, or none that has not run already
    *:0 | *:0,0 | *:0,5 | *:5,0 | no:5 | no:5,5) result=passed ;;
    *) result=FAILED status=1 ;;
  esac
  first=no
  export DYNZOO_TEST_ANY_BACKEND=none
  summary+=("$(printf '%-10s  %s in %d s' "$backend" "$result" $((SECONDS - start)))")
done
printf '\n=== summary\n'
printf '%s\n' "${summary[@]}"
exit $status
