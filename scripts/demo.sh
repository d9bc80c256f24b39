#!/usr/bin/env bash
# usage: scripts/demo.sh [--output DIR] [--seed N]
# Sets everything up in .venv (the first time) and runs `dynzoo demo` on JAX.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash scripts/venv.sh jax,all
KERAS_BACKEND=${KERAS_BACKEND:-jax} exec .venv/bin/dynzoo demo "$@"
