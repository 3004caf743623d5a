# make demo: environment, then the main job on the embedded simulated pair.
# make test: environment, then all tests.  make quick: the tests for every edit, without the slow ones.
PYTHON ?= python3
VENV   := .venv
RUN    := $(VENV)/bin/python

.PHONY: demo test quick clean

demo: $(VENV)/ready
	$(RUN) main.py sweep configs/sweep/demo.yaml
	$(RUN) main.py figures runs/demo
	$(RUN) main.py tables runs/demo

# Two processes of one thread each; tests of one group run in one process.
PYTEST := OMP_NUM_THREADS=1 $(RUN) -m pytest -q -n 2 --dist loadgroup

test: $(VENV)/ready-test
	$(PYTEST) -rs

quick: $(VENV)/ready-test
	$(PYTEST) -m "not slow"

# mmcv-lite asks for opencv-python, which needs a display library (libGL) that servers lack; the headless build of the
# same version takes its place.
$(VENV)/ready: requirements.txt
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))' || \
	  { echo "Python 3.10 to 3.13 is needed; $(PYTHON) is $$($(PYTHON) --version). Try: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --upgrade pip
	$(RUN) -m pip install --quiet -r requirements.txt
	$(RUN) -m pip uninstall --quiet --yes opencv-python
	$(RUN) -m pip install --quiet --force-reinstall --no-deps opencv-python-headless==5.0.0.93
	touch $@

$(VENV)/ready-test: requirements-test.txt $(VENV)/ready
	$(RUN) -m pip install --quiet -r requirements-test.txt
	touch $@

clean:
	rm -rf $(VENV) runs
