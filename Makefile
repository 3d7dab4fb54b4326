# make train   set up .venv with what training needs, then train on the embedded streets
# make test    set up .venv with what the tests need too, then lint and test
# make install the set-up alone
# make gpu-bundle  gather what a machine with a GPU may lack, for `python -m bench.gpu OUT` there
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
# CPU threads that spin while they wait get in the way of whatever else runs.
export OMP_WAIT_POLICY ?= passive
NATIVE := setup.py CMakeLists.txt $(wildcard csrc/* csrc/*/*)

.PHONY: install train test gpu-bundle clean

install: .venv/simfast

train: .venv/simfast
	$(BIN)/python train.py --stage 1

test: .venv/simfast-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python -m pytest

gpu-bundle: .venv/simfast
	$(BIN)/python -m bench.gpu.bundle

# torch first and pinned: whatever comes later takes the one that is there. The build tools come before our own package,
# which is built against that torch (no build isolation).
.venv/torch:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "simfast needs Python 3.11 or newer")'
	$(PYTHON) -m venv .venv
	$(PIP) torch==2.13.0
	$(PIP) 'setuptools>=77' wheel cmake ninja
	touch $@

.venv/simfast: .venv/torch pyproject.toml $(NATIVE)
	$(PIP) --no-build-isolation --editable .
	touch $@

# cityscapesscripts' own requirements are a viewer's; its evaluation needs pyquaternion alone.
.venv/simfast-test: .venv/simfast
	$(PIP) --no-build-isolation --editable '.[test]'
	$(PIP) --no-deps cityscapesscripts==2.3.0 pyquaternion
	touch $@

clean:
	rm -rf .venv build simfast.egg-info
