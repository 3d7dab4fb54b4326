# make train   set up .venv with what training needs, then train on the embedded streets
# make test    set up .venv with what the tests need too, then lint and test, PROCESSES=3 at a time
# make test-stub  the step on a GPU that computes nothing, under torch's CUDA build; TORCH=2.14.1 for another one
# make install the set-up alone
# make campaign MINUTES=60  kills, power losses, full disks, damaged and hostile files: what is lost or silently wrong; goes on
# make dist    the source distribution, and the wheel built from it, in dist/
# make docs    the site, in build/site, in an environment of its own without torch; a warning is an error
# make gpu-bundle  gather what a machine with a GPU may lack, for `python -m bench.gpu OUT` there
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
# CPU threads that spin while they wait get in the way of whatever else runs.
export OMP_WAIT_POLICY ?= passive
NATIVE := setup.py CMakeLists.txt $(wildcard csrc/* csrc/*/*)
CXX_SOURCES := $(wildcard $(foreach folder,csrc csrc/* tests/*,$(addprefix $(folder)/,*.h *.cpp *.cu *.cuh)))

# Where else than on PyPI torch may come from: its builds for the CPU alone, unless there is an NVIDIA driver. PyPI's for
# Linux bring gigabytes of CUDA. `make train TORCH_INDEX=` takes PyPI's all the same, TORCH_INDEX=URL another.
TORCH_INDEX ?= $(if $(wildcard /proc/driver/nvidia)$(shell command -v nvidia-smi 2>/dev/null),,$(CPU_INDEX))
CPU_INDEX := https://download.pytorch.org/whl/cpu

# torch's CUDA build with nvcc's packages, beside .venv. These tests of others hold what is asked of a GPU, not values.
TORCH ?= 2.11.0
STUB := .venv-stub/$(TORCH)
STUB_PIP := $(STUB)/bin/python -m pip install --quiet --disable-pip-version-check
STUB_TESTS := \
	tests/data/test_loader.py::test_evaluation_images_come_pinned \
	tests/ops/test_nearest.py::test_runs_without_a_sync_and_in_a_cuda_graph \
	tests/matching/test_matching_fused.py::test_a_captured_step_replayed_on_new_data_equals_eager \
	'tests/ops/test_segment_mean.py::test_backward_does_not_keep_the_features[cuda]'

# Of `make test`, with a thread each: what a test does is mostly one thread's work, or another program's, for two cores.
PROCESSES ?= 3

.PHONY: install train test test-stub campaign docs dist gpu-bundle clean

install: .venv/simfast

train: .venv/simfast
	$(BIN)/python train.py --stage 1

test: .venv/simfast-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run --Werror $(CXX_SOURCES)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(PROCESSES) --dist loadfile

test-stub: $(STUB)/ready
	$(STUB)/bin/python -m tests.stub --build
	$(STUB)/bin/python -m tests.stub -m pytest tests/stub $(STUB_TESTS)

# Not simfast itself: it runs from here, with a library of its own for the stub.
$(STUB)/ready: pyproject.toml
	$(PYTHON) -m venv $(STUB)
	$(STUB_PIP) torch==$(TORCH) 'setuptools>=77' wheel cmake ninja
	$(STUB_PIP) nvidia-cuda-nvcc==13.0.88 nvidia-cuda-crt==13.0.88 nvidia-nvvm==13.0.88 nvidia-cuda-cccl==13.0.85
	$(STUB)/bin/python -c 'import tomllib; p = tomllib.load(open("pyproject.toml", "rb"))["project"]; \
		more = p["optional-dependencies"]; needs = p["dependencies"] + more["train"] + more["test"]; \
		print(*(need for need in needs if need != "simfast[train]"), sep="\n")' > $(STUB)/requirements.txt
	$(STUB_PIP) -r $(STUB)/requirements.txt
	touch $@

# Minutes of all calls together: the same command goes on. What was bad stays there.
MINUTES ?= 60
campaign: .venv/simfast-test
	$(BIN)/python -m tests.campaign --minutes $(MINUTES) --out build/campaign

dist: .venv/simfast-test
	$(BIN)/python -m build --no-isolation

# The package is read there, not imported: neither torch nor simfast is installed.
docs: .venv-docs/ready
	NO_MKDOCS_2_WARNING=1 .venv-docs/bin/mkdocs build

.venv-docs/ready: pyproject.toml
	$(PYTHON) -m venv .venv-docs
	.venv-docs/bin/python -c 'import tomllib; p = tomllib.load(open("pyproject.toml", "rb"))["project"]; \
		print(*p["optional-dependencies"]["docs"], sep="\n")' > .venv-docs/requirements.txt
	.venv-docs/bin/python -m pip install --quiet --disable-pip-version-check -r .venv-docs/requirements.txt
	touch $@

gpu-bundle: .venv/simfast
	$(BIN)/python -m bench.gpu.bundle

# torch first and pinned: whatever comes later takes the one that is there. The other index is asked for torch alone, and
# not for long: where it cannot be reached, PyPI's build comes. The build tools come before our own package,
# which is built against that torch (no build isolation).
.venv/torch:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "simfast needs Python 3.11 or newer")'
	$(PYTHON) -m venv .venv
	$(if $(TORCH_INDEX),$(PIP) --no-deps --retries 1 --timeout 15 --extra-index-url $(TORCH_INDEX) torch==2.13.0)
	$(PIP) torch==2.13.0 'setuptools>=77' wheel cmake ninja
	touch $@

.venv/simfast: .venv/torch pyproject.toml $(NATIVE)
	$(PIP) --no-build-isolation --editable '.[train]'
	touch $@

# cityscapesscripts' own requirements are a viewer's; its evaluation needs pyquaternion alone.
.venv/simfast-test: .venv/simfast
	$(PIP) --no-build-isolation --editable '.[test]'
	$(PIP) --no-deps cityscapesscripts==2.3.0 pyquaternion
	touch $@

clean:
	rm -rf .venv .venv-stub .venv-docs build dist simfast.egg-info
