#!/bin/sh
# Make .venv ready to run edgepose: system packages, virtual environment, CPU torch where there is no GPU, the package.
# Usage: ./setup.sh [test]      "test" adds what only the test suite needs.
set -eu
cd "$(dirname "$0")"

TORCH=2.13.0
PYTHON=${PYTHON:-/usr/bin/python3}   # the system's: GStreamer's bindings come from the distribution and fit no other
CPU_TORCH_INDEX=${CPU_TORCH_INDEX:-https://download.pytorch.org/whl/cpu}
# GStreamer, its Python bindings and the RTSP server.
PACKAGES="python3-venv python3-gi python3-gst-1.0 gir1.2-gst-plugins-base-1.0 gir1.2-gst-rtsp-server-1.0
 gstreamer1.0-plugins-base gstreamer1.0-plugins-good gstreamer1.0-plugins-bad gstreamer1.0-plugins-ugly gstreamer1.0-libav"
GROUP=
if [ "${1:-}" = test ]; then
    # A second RTSP client; what builds the kernel and the driver for the stand-in; how boards are reached.
    PACKAGES="$PACKAGES ffmpeg g++ openssh-client"
    GROUP="--group dev"
fi

fail() { echo "setup: $*" >&2; exit 2; }

install_packages() {
    missing=
    for package in $PACKAGES; do
        dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q 'ok installed' || missing="$missing $package"
    done
    [ -z "$missing" ] && return
    command -v apt-get >/dev/null || fail "this needs Debian or Ubuntu (apt-get); install by hand:$missing"
    sudo=
    [ "$(id -u)" = 0 ] || sudo=sudo
    echo "setup: installing system packages${sudo:+ with sudo}:$missing"
    $sudo apt-get update -qq
    # --no-install-recommends: about 190 MB instead of a desktop's worth of plugins
    DEBIAN_FRONTEND=noninteractive $sudo apt-get install -y -qq --no-install-recommends $missing >/dev/null
}

check_python() {
    [ -x "$PYTHON" ] || fail "$PYTHON: no such Python; install python3 or set PYTHON to the system's interpreter"
    "$PYTHON" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))' ||
        fail "$PYTHON is $("$PYTHON" -V); edgepose runs on Python 3.10 to 3.13"
}

# True when the torch that pip would take by itself brings no CUDA packages (a CPU build is offered).
cpu_torch_offered() {
    .venv/bin/pip install -q --dry-run --ignore-installed --no-deps --report - "torch==$TORCH" 2>/dev/null |
        .venv/bin/python -c '
import json, sys
needs = json.load(sys.stdin)["install"][0]["metadata"].get("requires_dist", [])
sys.exit(any(need.startswith(("nvidia", "cuda", "triton")) for need in needs))'
}

install_torch() {
    .venv/bin/python -c "import importlib.metadata as m; assert m.version('torch').startswith('$TORCH')" 2>/dev/null && return
    index=
    if ! command -v nvidia-smi >/dev/null && ! cpu_torch_offered; then
        index="--index-url $CPU_TORCH_INDEX"   # the default wheel would pull gigabytes of CUDA onto a machine without a GPU
    fi
    echo "setup: installing torch $TORCH${index:+ (CPU build)}"
    .venv/bin/pip install -q -c constraints.txt $index "torch==$TORCH" ||
        fail "no torch $TORCH${index:+ from $CPU_TORCH_INDEX; set CPU_TORCH_INDEX to an index that offers its CPU build}"
}

install_packages
check_python
[ -x .venv/bin/python ] || "$PYTHON" -m venv --system-site-packages .venv
.venv/bin/pip install -q 'pip>=25.1,<27'   # the first with dependency groups
install_torch
echo "setup: installing edgepose and its libraries"
.venv/bin/pip install -q -c constraints.txt $GROUP -e '.[workstation]'
date > .venv/.ready
