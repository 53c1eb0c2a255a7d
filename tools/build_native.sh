#!/bin/sh
# Builds the native library into DIR without installing the package: tools/build_native.sh DIR [AUTO|ON|OFF]
# Use it with CGSPN_LIBRARY_DIR=DIR. PYTHON chooses the interpreter whose torch is built against,
# CGSPN_CUDA_ARCHS as in CMakeLists.txt.
set -eu
dir=${1:?usage: tools/build_native.sh DIR [AUTO|ON|OFF]}
python=${PYTHON:-python}
cmake -S "$(dirname "$0")/.." -B "$dir" -G Ninja -DCMAKE_BUILD_TYPE=Release \
  -DPython_EXECUTABLE="$(command -v "$python")" -DCGSPN_BUILD_CUDA="${2:-AUTO}" \
  -DCMAKE_LIBRARY_OUTPUT_DIRECTORY="$(realpath -m "$dir")" \
  ${CGSPN_CUDA_ARCHS:+-DCGSPN_CUDA_ARCHS="$CGSPN_CUDA_ARCHS"}
cmake --build "$dir"
