#!/usr/bin/env bash
# usage: scripts/venv.sh EXTRAS
# Makes the virtual environment .venv with dynzoo and the named extras (one, or several between
# commas); does nothing if it is there.
# PYTHON names the interpreter to start from (default python3).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
extra=$1
python=${PYTHON:-python3}

if ! .venv/bin/python -m pip --version >/dev/null 2>&1; then
  if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
    echo "dynzoo needs Python 3.11 or newer: PYTHON=/path/to/python bash $0 $extra" >&2
    exit 1
  fi
  "$python" -m venv --clear .venv
fi

# one stamp for each extra and each state of pyproject.toml, written only after success
stamp=.venv/dynzoo-$extra-$(cksum <pyproject.toml | cut -d' ' -f1)
if [ ! -e "$stamp" ]; then
  echo "installing dynzoo[$extra] into .venv"
  .venv/bin/python -m pip install --quiet --disable-pip-version-check --upgrade 'pip>=24'
  .venv/bin/python -m pip install --quiet --disable-pip-version-check -e ".[$extra]"
  touch "$stamp"
fi
