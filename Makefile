# make report   set-up + the published run -> reports/ml-100k/index.html
# make test     set-up + lint, types, unit tests, every notebook on synthetic data
# Needs only Python >= 3.11 with venv, and make. PYTHON=python3.12 chooses another interpreter.

PYTHON ?= python3
PARAMS ?= params/ml-100k.yaml
RUN := $(basename $(notdir $(PARAMS)))
BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check -qq
THREADS := OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 MKL_NUM_THREADS=1 NUMEXPR_NUM_THREADS=1 NUMBA_NUM_THREADS=1

.DEFAULT_GOAL := report
.PHONY: report test test-full check lint lab reference publish lock clean

report: .venv/.installed
	@$(BIN)/recsys run $(PARAMS)

test: .venv/.installed lint
	@$(BIN)/recsys run params/smoke.yaml
	@$(THREADS) $(BIN)/python -m pytest -n 2 --dist loadscope -m "not slow"
	@$(THREADS) PYTHONHASHSEED=0 $(BIN)/python -m pytest -n 2 --dist loadscope -p no:cacheprovider --nbval-lax tests/reference/*.ipynb

test-full: test
	@$(THREADS) $(BIN)/python -m pytest -n 2 --dist loadscope -m slow

lint: .venv/.installed
	@$(BIN)/ruff check --quiet .
	@$(BIN)/ruff format --quiet --check .
	@$(BIN)/mypy --no-error-summary

lab: .venv/.installed
	$(BIN)/jupyter lab notebooks

reference: .venv/.installed
	@$(BIN)/recsys reference

publish: report
	@$(BIN)/recsys publish $(RUN)
	@$(BIN)/recsys readme

# The stamp is newer than what it was made from, so a second call does no set-up. The lock holds hashes for every platform;
# the package itself is installed in place, without fetching anything unpinned.
.venv/.installed: requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "Python 3.11 or newer is needed; $(PYTHON) is $$($(PYTHON) --version 2>&1). Try: make PYTHON=python3.12" >&2; exit 1; }
	@echo "Setting up .venv (a few minutes, once)"
	@$(PYTHON) -m venv .venv
	@$(PIP) install --require-hashes -r requirements.lock
	@$(PIP) install --no-build-isolation --no-deps --editable .
	@touch $@

lock:
	uv pip compile --universal --generate-hashes --python-version 3.11 --extra test --no-emit-index-url --no-annotate \
	  --no-header pyproject.toml -o requirements.lock

clean:
	find reports -mindepth 1 -maxdepth 1 ! -name published -exec rm -rf {} +
	rm -rf .venv data/processed .pytest_cache .mypy_cache .ruff_cache .hypothesis
