#!/bin/sh
# Put the real pycuda, cuda-python and NVRTC into a folder, on a machine without CUDA: NVIDIA's parts come as wheels.
# Usage: install.sh PYTHON FOLDER     compiles pycuda for some minutes; does nothing when FOLDER is there already
set -eu
python=$1
site=$2
here=$(cd "$(dirname "$0")" && pwd)
[ -d "$site/pycuda" ] && exit 0
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

mkdir -p "$work/cuda/bin" "$work/cuda/lib64" "$work/cuda/include"
"$python" -m pip install -q --no-deps --target "$work/wheels" 'nvidia-cuda-runtime-cu12==12.9.*' \
    'nvidia-cuda-profiler-api-cu12==12.9.*' 'nvidia-cuda-nvcc-cu12==12.9.*'
for folder in "$work"/wheels/nvidia/*/include; do cp -r "$folder/." "$work/cuda/include/"; done
cc -shared -fPIC -o "$work/cuda/lib64/libcuda.so" -Wl,-soname,libcuda.so.1 "$here/fakecuda.c" -lpthread -ldl

"$python" -m pip download -q --no-deps --no-binary pycuda -d "$work" 'pycuda==2026.1'
tar -xzf "$work"/pycuda-*.tar.gz -C "$work"
cd "$work"/pycuda-*/
"$python" configure.py --cuda-root="$work/cuda" --no-cuda-enable-curand --cudadrv-lib-dir="$work/cuda/lib64"
"$python" -m pip wheel -q --no-deps -w "$work/built" .
"$python" -m pip install -q --no-deps --target "$work/site" "$work"/built/*.whl \
    'pytools>=2026,<2027' 'platformdirs>=4,<5' 'mako>=1.3,<2' 'siphash24>=1.6,<2' \
    'cuda-bindings==12.9.*' 'cuda-pathfinder>=1,<2' 'nvidia-cuda-nvrtc-cu12==12.9.*' 'nvidia-cuda-nvrtc==13.*'
mkdir -p "$(dirname "$site")"
mv "$work/site" "$site"
