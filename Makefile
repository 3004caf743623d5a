# make demo: environment, then the main job on the embedded simulated pair.  make test: environment, then all tests.
PYTHON ?= python3
VENV   := .venv
RUN    := $(VENV)/bin/python

.PHONY: demo test clean

demo: $(VENV)/ready
	$(RUN) main.py sweep configs/sweep/demo.yaml
	$(RUN) main.py figures runs/demo
	$(RUN) main.py tables runs/demo

test: $(VENV)/ready
	$(RUN) -m pytest -q -rs

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

clean:
	rm -rf $(VENV) runs
