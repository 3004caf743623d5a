# make demo: environment, then the main job on the embedded simulated pair.  make test: environment, then all tests.
# make quick: the tests for every edit.  make paper: the whole paper (docs/runs.md, "The whole paper").
PYTHON ?= python3
VENV   := .venv
RUN    := $(VENV)/bin/python
DEMO   := runs/demo
# For two cores: three processes of one thread each, since some tests wait for others; those of one group run in one.
PYTEST := OMP_NUM_THREADS=1 $(RUN) -m pytest -q -n 3 --dist loadgroup

PAPER  := runs/paper

.PHONY: demo test quick paper clean

demo: $(VENV)/ready
	$(RUN) main.py sweep configs/sweep/demo.yaml --save_path $(DEMO) --jobs 2
	$(RUN) main.py figures $(DEMO)
	$(RUN) main.py figures $(DEMO) --layout maps
	$(RUN) main.py report $(DEMO)
	@echo
	@echo "Three methods after the same number of steps on one simulated pair, one seed each.  Source validation says"
	@echo "whether a method has learnt the source; the other scores are those on the target, which no method has seen."
	@echo "No ranking: single runs swing by ten points, and simulated scenes say nothing about real ones"
	@echo "(five seeds and real crops: docs/robust.md)."
	@echo
	@$(RUN) main.py tables $(DEMO) --layout summary 2>/dev/null
	@echo
	@echo "Maps side by side: $$(ls $(DEMO)/maps_*.png).  Each run's figures: $(DEMO)/*/figures"
	@echo "All of it on one page, to open in a browser: $(CURDIR)/$(DEMO)/index.html"

test: $(VENV)/ready-to-test
	$(PYTEST) -rs

quick: $(VENV)/ready-to-test
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

$(VENV)/ready-to-test: $(VENV)/ready tests/requirements.txt
	$(RUN) -m pip install --quiet -r tests/requirements.txt
	touch $@

# DATA: folder of the scenes.  LAYER: settings over the sweeps', such as configs/cpu.yaml.  SEEDS: "0 1 2".  PAIRS: files.
paper: $(VENV)/ready
	$(RUN) main.py paper --out $(PAPER) $(if $(DATA),--data_path $(DATA)) $(if $(LAYER),--config $(LAYER)) \
	  $(if $(SEEDS),--seeds $(SEEDS)) $(if $(PAIRS),--pairs $(PAIRS))

clean:
	rm -rf $(VENV) runs
