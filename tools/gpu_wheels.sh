#!/usr/bin/env bash
# Collect what tools/gpu_check.sh installs on a machine without a network:
#   tools/gpu_wheels.sh FOLDER
# Wheels for CPython 3.12 on Linux x86-64, and mmcv as source, since its
# operators are compiled for the GPU there. torch, triton, numpy, scipy,
# matplotlib, opencv, onnx, onnxruntime, safetensors, numba, pytest and
# hypothesis have to be there already.
set -euo pipefail
folder=${1:?FOLDER is missing}
python=${PYTHON:-python3}
pinned=$(dirname "$0")/../requirements/constraints.txt

# In the versions of requirements/constraints.txt, where it has one.
needed='mmengine mmdet addict yapf platformdirs terminaltables shapely
    pycocotools termcolor rich setuptools'
wheels=()
for name in $needed; do
    version=$(sed -n "s/^$name==\([^ ;]*\).*/==\1/p" "$pinned")
    wheels+=("$name$version")
done
mmcv=$(grep -o '^mmcv==[^ ;]*' "$pinned")

# pip takes a wheel for the very platform only, not for older ones.
platforms=()
for platform in 2_39 2_35 2_34 2_31 2_28 2_27 2_24 2_17; do
    platforms+=(--platform "manylinux_${platform}_x86_64")
done
platforms+=(--platform manylinux2014_x86_64 --platform manylinux1_x86_64)

mkdir -p "$folder"
download=("$python" -m pip --disable-pip-version-check download --quiet
    --no-deps --dest "$folder")
"${download[@]}" --only-binary=:all: --python-version 3.12 \
    --implementation cp "${platforms[@]}" "${wheels[@]}"
"${download[@]}" --no-binary=:all: --no-build-isolation "$mmcv"
ls -l "$folder"
echo "$(du -sk "$folder" | cut -f1) KiB in $folder"
