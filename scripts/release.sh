#!/usr/bin/env bash
# usage: scripts/release.sh [BACKEND...]
# Builds the wheel and the source distribution into dist/, installs each into an empty environment
# with one backend and nothing else (default: jax, then torch), and uses what is installed there:
# loads, certifies, attacks, without TensorFlow. PYTHON names the interpreter (default python3).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python=${PYTHON:-python3}
root=$PWD
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
pip() { "$1/bin/python" -m pip --disable-pip-version-check "${@:2}"; }

"$python" -m venv "$work/tools"
pip "$work/tools" install --quiet build
rm -rf dist
"$work/tools/bin/python" -m build --outdir dist >"$work/build.log" || { cat "$work/build.log"; exit 1; }
wheel=$(ls "$root"/dist/*.whl)
sdist=$(ls "$root"/dist/*.tar.gz)

# PyTorch's newest wheels bring gigabytes for GPUs: the release of the tests is enough here
grep -o 'torch==[0-9.]*' pyproject.toml >"$work/pins"

use() { # environment, backend
  (
    cd "$work"
    unset PYTHONPATH KERAS_BACKEND DYNZOO_WEIGHTS
    export KERAS_HOME=$work/keras DYNZOO_HOME=$work/cache
    "$1/bin/python" "$root/scripts/smoke.py" "$2" --alone
    "$1/bin/dynzoo" list
    "$1/bin/dynzoo" evaluate isometric_tiny_cifar10 --dataset digits --limit 4 --attacks none \
      --eps 0.1 --output report.json
    test -s report.json
  )
}

[ $# -gt 0 ] || set -- jax torch
for name in "$@"; do
  env=$work/$name
  "$python" -m venv "$env"
  for file in "$wheel" "$sdist"; do
    printf '\n=== %s from %s\n' "$name" "${file##*/}"
    pip "$env" install --quiet --force-reinstall --no-deps "$file"
    pip "$env" install --quiet --constraint "$work/pins" "$file[$name]"
    use "$env" "$name"
  done
  rm -rf "$env"
done
ls -l dist
