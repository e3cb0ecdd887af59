# Two commands for a newcomer: `make demo` and `make test`. Both set up what is missing first.
.PHONY: demo test test-slow test-cuda test-board format clean
.DELETE_ON_ERROR:

# Set up once, and again when what defines the set-up changes.
READY := .venv/.ready

$(READY): pyproject.toml constraints.txt setup.sh
	./setup.sh

demo: $(READY)  ## the whole chain, from trained weights to a checked RTSP stream; report under build/demo
	.venv/bin/edgepose demo --out build/demo

.venv/.ready-test: $(READY)
	./setup.sh test
	@touch $@

test: .venv/.ready-test  ## the gate: format, lint, types, layers, tests
	.venv/bin/poe -q check

test-slow: .venv/.ready-test  ## the checks that take minutes each
	.venv/bin/poe -q slow

test-cuda: .venv/.ready-test  ## the real pycuda, cuda-python and NVRTC, without a GPU; compiles for minutes
	tests/doubles/fakecuda/install.sh "$(CURDIR)/.venv/bin/python" "$(CURDIR)/build/cuda-site"
	PYTHONPATH=build/cuda-site .venv/bin/pytest -q tests/runtime/trt/test_real_cuda.py tests/runtime/trt/test_kernel.py

# Where the board's TensorRT and GStreamer are: in the system's packages. CUDA 12 is JetPack 6; on JetPack 7 give 13.
CUDA_BINDINGS ?= cuda-bindings==12.*
.venv-board/.ready: pyproject.toml
	python3 -m venv --system-site-packages .venv-board
	.venv-board/bin/pip install -q -e '.[stream]' '$(CUDA_BINDINGS)' \
	    'pytest>=8,<10' 'pytest-timeout>=2.3,<3' 'hypothesis>=6.100,<7'
	@touch $@

test-board: .venv-board/.ready  ## on a Jetson: its engines, from the bundle that EDGEPOSE_BOARD_BUNDLE names
	.venv-board/bin/pytest -q -m board tests/board

format: $(READY)
	.venv/bin/ruff format . && .venv/bin/ruff check --fix .

clean:
	rm -rf build .venv .venv-board .mypy_cache .ruff_cache .pytest_cache
