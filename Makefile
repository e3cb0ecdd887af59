# Two commands for a newcomer: `make demo` and `make test`. Both set up what is missing first.
.PHONY: demo test test-slow test-cuda format clean
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

format: $(READY)
	.venv/bin/ruff format . && .venv/bin/ruff check --fix .

clean:
	rm -rf build .venv .mypy_cache .ruff_cache .pytest_cache
