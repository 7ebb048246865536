#!/usr/bin/env bash
# Sets up what is missing: a virtual environment in .venv with the tested versions and this package.
#   scripts/setup.sh         what training needs
#   scripts/setup.sh dev     what the tests need as well
# PYTHON=/path/to/python chooses another Python than python3.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
package=.${1:+[$1]}

"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
  echo "scripts/setup.sh: $("$python" --version 2>&1) is too old, Python 3.11 or newer is needed (PYTHON=/path/to/python)" >&2
  exit 2
}
if [[ ! -x .venv/bin/pip ]]; then
  echo "making a virtual environment in .venv"
  # Debian's python3 has no ensurepip without python3-venv; pip can be put in from outside
  "$python" -m venv .venv >/dev/null 2>&1 || {
    "$python" -m venv --clear --without-pip .venv
    "$python" -m pip --quiet --python .venv/bin/python install pip
  }
fi
# nothing to do if the same was installed before, in this place
stamp=.venv/installed-${1:-run}
wanted=$(pwd; cat requirements.txt constraints.txt setup.cfg pyproject.toml)
if [[ ! -f $stamp || $(<"$stamp") != "$wanted" ]]; then
  echo "installing the tested versions into .venv: several GB, a few minutes"
  .venv/bin/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable "$package"
  printf '%s\n' "$wanted" >"$stamp"
fi
