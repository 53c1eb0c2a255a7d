#!/bin/sh
# Runs the operators' tests on one wheel under several releases of torch: tools/check_wheel.sh WHEEL [VERSION...]
# Each release gets a virtual environment below build/check_wheel (CHECK_DIR) with the wheel, what it requires and
# pytest; where the registry has no CPU build of torch that is several gigabytes.
set -eu
usage="usage: tools/check_wheel.sh WHEEL [VERSION...]"
wheel=$(realpath "${1:?$usage}")
shift
test -f "$wheel" || { echo "there is no wheel $wheel"; exit 2; }
test $# -gt 0 || set -- 2.11.0 2.13.0 2.14.1
python=${PYTHON:-python3}
cd "$(dirname "$0")/.."
envs=$(realpath -m "${CHECK_DIR:-build/check_wheel}")
for version in "$@"; do
  bin=$envs/$version/bin
  test -x "$bin/python" || "$python" -m venv "$envs/$version"
  "$bin/python" -m pip install --quiet "torch==$version" pytest hypothesis "$wheel"
  "$bin/python" -m pip install --quiet --no-deps --force-reinstall "$wheel"
  echo "[check-wheel] $(basename "$wheel") under torch $version"
  # From here the package is not importable but from the wheel.
  "$bin/python" -m cgspn.env
  "$bin/python" -m pytest -q -p no:cacheprovider tests/ops
done
echo "[check-wheel] passed under torch $*"
