# Two commands for a newcomer:  make report  ·  make test
# Everything is installed into .venv, built into .build, and nothing in git is touched.

PYTHON  ?= python3
PROFILE ?= quick
VENV    := .venv
BIN     := $(VENV)/bin

.DEFAULT_GOAL := help
.PHONY: help report test fix chapters install clean

help:  ## show this list
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 12

report: $(VENV)/installed  ## run the experiments and render website and paper; PROFILE=quick|cpu|gpu
	@$(BIN)/python -m sivit.report --profile $(PROFILE)

test: $(VENV)/installed  ## run every check; about a quarter of an hour on two cores
	@echo "[1/3] ruff";       $(BIN)/ruff check . || { echo "Mend what it names, or let 'make fix' do it."; exit 1; }
	@mkdir -p .build; echo "[2/3] chapters, each in a process of its own, two at a time"
	@ls nbs/*.ipynb | OMP_NUM_THREADS=1 xargs -P 2 -I{} sh -c '$(BIN)/nbdev_test --path {} --n_workers 0 --timing > .build/test-$$(basename {}).log 2>&1 \
	    && tail -n 1 .build/test-$$(basename {}).log || { cat .build/test-$$(basename {}).log; echo "{} fails; open it and run it."; exit 1; }'
	@echo "[3/3] tests";      OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile tests

fix: $(VENV)/installed  ## export and clean the notebooks, renew their twins in scripts/, tidy the code
	@$(BIN)/ruff check --fix nbs tests setup.py
	@$(BIN)/nbdev_export
	@$(BIN)/nbdev_clean
	@for notebook in nbs/experiments/*.ipynb; do \
	    $(BIN)/jupytext --quiet --to py:percent --output scripts/$$(basename $$notebook .ipynb).py $$notebook; done

chapters: $(VENV)/installed  ## run every chapter in place, which renews the figures on its page
	@for notebook in nbs/[0-9]*.ipynb; do \
	    echo $$notebook; OMP_NUM_THREADS=1 $(BIN)/jupyter execute --inplace $$notebook || exit 1; done
	@$(BIN)/nbdev_clean

install: $(VENV)/installed  ## make the environment

$(VENV)/installed: setup.py settings.ini constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version.split()[0]; sys.exit(0 if sys.version_info >= (3, 10) else \
	    f"sivit needs Python 3.10 or newer; $(PYTHON) is {v}. Name another: make PYTHON=python3.11 ...")'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "Installing into $(VENV); PyTorch is large, so this takes a few minutes the first time."
	@$(BIN)/python -m pip install --disable-pip-version-check --progress-bar off -q -c constraints.txt -e '.[dev]'
	@touch $@

clean:  ## remove what was built, keep the environment and the data
	@rm -rf .build _proc _site .quarto
