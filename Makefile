# Two commands for a start: `make quick` and `make test`. Both make a virtual environment first. `make` alone lists all.
#
#   make test PYTHON=python3.12      another interpreter for the new environment
#   make test VENV=path/to/env       an environment that exists already; an activated one is used by itself
#   make test ARGS="-k geodesy -x"   further options for pytest

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help
.PHONY: help setup quick demo earth photos thesis heads test lowest sbom lint bench docs clean

PYTHON ?= python3
VENV ?= $(or $(VIRTUAL_ENV),.venv)
WORKERS ?= 2
ARGS ?=

BIN := $(VENV)/bin
INSTALLED := $(VENV)/.geomae-installed

help: ## Say what there is to make
	@echo "make TARGET, where TARGET is"
	@grep -E '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## (.*)/  \1\t\2/' | expand -t 10

setup: $(INSTALLED) ## Make a virtual environment and install GeoMAE into it, once per change of pyproject.toml

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "GeoMAE needs Python 3.11 or newer, but $(PYTHON) is: $$($(PYTHON) --version 2>&1)." >&2; \
	  echo "Name another: make setup PYTHON=python3.12" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV) || { \
	  echo "$(PYTHON) cannot make a virtual environment with pip in it." >&2; \
	  echo "On Debian and Ubuntu: apt install python3-venv. Or name another: make setup PYTHON=..." >&2; exit 1; }

$(INSTALLED): pyproject.toml | $(BIN)/python
	@$(BIN)/python -m pip --version >/dev/null || { \
	  echo "There is no pip in $(VENV): run $(BIN)/python -m ensurepip, or choose another environment with VENV=..." >&2; \
	  exit 1; }
	$(BIN)/python -m pip install --editable ".[dev,report]"
	@touch $@

test: $(INSTALLED) ## Run the tests, two at a time
	$(BIN)/python -m pytest -q -n $(WORKERS) --dist worksteal $(ARGS)

# Every floor of pyproject.toml at once, in an environment of its own; uv resolves, because pip knows the newest only.
LOWEST := .venv-lowest
LOWEST_INSTALLED := $(LOWEST)/.geomae-installed

lowest: $(LOWEST_INSTALLED) ## The tests with the lowest versions that pyproject.toml allows
	$(LOWEST)/bin/python -m pytest -q -n $(WORKERS) --dist worksteal $(ARGS)

$(LOWEST_INSTALLED): pyproject.toml
	$(PYTHON) -m venv --clear $(LOWEST)
	$(LOWEST)/bin/python -m pip install --upgrade pip uv
	$(LOWEST)/bin/python -m uv pip compile --quiet --resolution lowest-direct --extra dev --extra report \
	  --output-file $(LOWEST)/requirements.txt pyproject.toml
	$(LOWEST)/bin/python -m pip install --requirement $(LOWEST)/requirements.txt
	$(LOWEST)/bin/python -m pip install --no-deps --editable .
	@touch $@

sbom: $(INSTALLED) ## A software bill of materials of the environment, outputs/sbom.json, in CycloneDX's format
	@mkdir -p outputs
	$(BIN)/python -m cyclonedx_py environment --pyproject pyproject.toml --output-reproducible --output-file outputs/sbom.json \
	  $(BIN)/python
	@echo "wrote outputs/sbom.json"

lint: $(INSTALLED) ## Check style, formatting and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(INSTALLED) ## Run every benchmark
	@files=($$(grep -l '^if __name__' benchmarks/*.py)); \
	if [ $${#files[@]} -eq 0 ]; then echo "There are no benchmarks in benchmarks/ yet."; fi; \
	for file in "$${files[@]}"; do echo "== $$file"; $(BIN)/python "$$file"; done

docs: $(INSTALLED) ## Build the documentation, a site without outside addresses
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build
	@echo "To read it: $(BIN)/python -m http.server --bind 127.0.0.1 --directory outputs/site"

# The demo: every step leaves a file that the next one reads, so an interrupted `make demo` goes on where it stopped, in the
# middle of a training too. A step whose result exists but is older than its input starts afresh.
DEMO := outputs/demo
ACCELERATE := $(BIN)/accelerate launch --num_processes 1 --num_machines 1 --mixed_precision no --dynamo_backend no
RESUME = $(if $(wildcard $@),--overwrite_output_dir true,--resume_from_checkpoint last)

# The first result: a classifier of cells from scratch, without pretraining, on the demo's crops.
QUICK := outputs/quick

quick: $(QUICK)/answers.txt ## A first model and its answers in two to three minutes, without a download
	@echo; $(BIN)/python -m geomae.evaluation show $(QUICK)/evaluate --brief
	@echo; echo "All numbers:    $(BIN)/python -m geomae.evaluation show $(QUICK)/evaluate"; \
	  echo "All answers:    $<"; \
	  echo "The model:      $(QUICK)/finetune"; \
	  echo "A page to ask it, and to play against it:"; \
	  echo "                $(BIN)/python app.py --model $(QUICK)/finetune --photos $(DEMO)/data"

$(QUICK)/geocells/geocells.parquet: $(DEMO)/data/manifest.json
	$(BIN)/python -m geomae.geocells build --train_coordinates $(DEMO)/data --kind kmeans --num_cells 50 200 --output_dir $(@D)

$(QUICK)/finetune/model.safetensors: configs/finetune/quick.yaml $(QUICK)/geocells/geocells.parquet
	$(ACCELERATE) run_finetune_geo.py $< $(RESUME)

$(QUICK)/evaluate/metrics.json: $(QUICK)/finetune/model.safetensors
	$(BIN)/python run_evaluate_geo.py --checkpoint $(QUICK)/finetune --test_set $(DEMO)/data --split test \
	  --train_coordinates $(DEMO)/data --output_dir $(@D) > $(@D)_printed.txt

$(QUICK)/answers.txt: $(QUICK)/evaluate/metrics.json
	$(BIN)/python -m geomae.predict $(DEMO)/data --split test --model $(QUICK)/finetune --format table --output_file $@

demo: $(DEMO)/report/report.md ## Photos, pretraining, fine-tuning, evaluation and report in a few minutes, without a download
	@echo; $(BIN)/python -m geomae.evaluation show $(DEMO)/evaluate
	@echo; echo "The report: $(DEMO)/report/report.html; the fine-tuned model: $(DEMO)/finetune"

$(DEMO)/data/manifest.json: | $(INSTALLED)
	$(BIN)/python -m geomae.data earth --output_dir $(DEMO)/data --shared_data none

$(DEMO)/pretrain/model.safetensors: configs/pretrain/demo.yaml $(DEMO)/data/manifest.json
	$(ACCELERATE) run_pretrain_mae.py $< $(RESUME)

$(DEMO)/finetune/model.safetensors: configs/finetune/demo.yaml $(DEMO)/pretrain/model.safetensors
	$(ACCELERATE) run_finetune_geo.py $< $(RESUME)

$(DEMO)/evaluate/metrics.json: configs/evaluate/demo.yaml $(DEMO)/finetune/model.safetensors
	$(BIN)/python run_evaluate_geo.py $<

$(DEMO)/report/report.md: $(DEMO)/evaluate/metrics.json
	$(BIN)/python -m geomae.reporting report --output_dir $(DEMO)/report --pretrain_run $(DEMO)/pretrain \
	  --finetune_run $(DEMO)/finetune --evaluation $(DEMO)/evaluate --train_coordinates $(DEMO)/data

# The experiment in the README, from the real coordinates and the picture in GEOMAE_SHARED_DATA: about 45 minutes on two cores.
EARTH := outputs/earth
SHARED := $(or $(GEOMAE_SHARED_DATA),../shared/data)
RUNS := mae scratch
SETS := im2gps im2gps3k

earth: results/earth/predictions_im2gps3k.png ## The experiment in the README: real coordinates of MP-16 and Im2GPS3k on a picture of the Earth

$(EARTH)/data/manifest.json: | $(INSTALLED)
	@test -d $(SHARED)/geotags && test -d $(SHARED)/earth || { echo "There is no geotags/ and earth/ in $(SHARED):" \
	  "set GEOMAE_SHARED_DATA to the folder that holds both." >&2; exit 1; }
	$(BIN)/python -m geomae.data earth --output_dir $(EARTH)/data --num_train 30000 --shared_data $(SHARED)

$(EARTH)/pretrain/model.safetensors: configs/pretrain/earth.yaml $(EARTH)/data/manifest.json
	$(ACCELERATE) run_pretrain_mae.py $< $(RESUME)

$(RUNS:%=$(EARTH)/finetune_%/model.safetensors): $(EARTH)/finetune_%/model.safetensors: configs/finetune/earth_%.yaml $(EARTH)/pretrain/model.safetensors
	$(ACCELERATE) run_finetune_geo.py $< $(RESUME)

results/earth/predictions_im2gps3k.png: $(RUNS:%=$(EARTH)/finetune_%/model.safetensors)
	for run in $(RUNS); do for set in $(SETS); do \
	  $(BIN)/python run_evaluate_geo.py --checkpoint $(EARTH)/finetune_$$run --test_set $(EARTH)/data --split test_$$set \
	    --train_coordinates $(EARTH)/data --num_resamples 10000 --output_dir results/earth/$${run}_$$set; done; done
	$(BIN)/python -m geomae.reporting report --output_dir $(EARTH)/report --pretrain_run $(EARTH)/pretrain \
	  --finetune_run $(RUNS:%=$(EARTH)/finetune_%) --evaluation $(RUNS:%=results/earth/%_im2gps3k) --train_coordinates $(EARTH)/data
	for run in pretrain $(RUNS:%=finetune_%); do mkdir -p results/earth/$$run; \
	  cp $(EARTH)/$$run/run.json $(EARTH)/$$run/trainer_state.json results/earth/$$run/; done
	cp $(EARTH)/report/finetuning_error.png $(EARTH)/report/error_cdf_1.png results/earth/
	cp $(EARTH)/report/reconstruction_1_step_002344.png results/earth/reconstruction.png
	cp $(EARTH)/report/prediction_map_1_1.png $@
	$(BIN)/python -m geomae.reporting fill README.md docs/results.md model_cards/*.md
	$(BIN)/python -m geomae.publish cards

# The thesis's whole experiment: pretraining on the full set and on its first half, three regressors on the full set and on its
# last half, all judged on both test sets. On the stand-in: three seeds took 8 minutes on one H200 with 16 cores (make -j12 thesis)
# and take hours each on two cores (SEEDS=0: one of them). On real hardware: make thesis ON=mp16 SEEDS=0.
ON := earth
SEEDS := 0 1 2
THESIS := outputs/thesis/$(ON)
THESIS_RUNS := $(foreach seed,$(SEEDS),$(foreach part,full half,$(foreach model,mae vit resnet,$(THESIS)/seed_$(seed)/$(model)_$(part))))
THESIS_DATA_earth := $(EARTH)/data
THESIS_DATA_mp16 := data/mp16
THESIS_DATA := $(THESIS_DATA_$(ON))
MP16_NEEDS := data/mp16/manifest.json data/yfcc25600/manifest.json $(foreach set,$(SETS),data/$(set)/$(set)_places365.csv data/$(set)/photos)
THESIS_NEEDS_mp16 := $(MP16_NEEDS)
THESIS_NEEDS := $(THESIS_DATA)/manifest.json | $(THESIS_NEEDS_$(ON))
THESIS_TEST_earth := --test_set $(EARTH)/data --split test_
THESIS_TEST_mp16 := --bf16 true --dataloader_num_workers 8 --test_set #
THESIS_ON_earth := --stand_in --measured_on "the Earth stand-in: patches of the Blue Marble at real coordinates"
THESIS_ON_mp16 := --measured_on "MP-16"
THESIS_SEED = $(RESUME) --output_dir $(@D) --seed $*

thesis: results/thesis/$(ON)/metrics.json ## The thesis's tables and figures beside ours, on the stand-in (ON=mp16: on real photos)

$(MP16_NEEDS):
	@echo "There is no $@. configs/finetune/thesis_vit_mp16.yaml says how MP-16 and YFCC25600 are packed; where the lists and" \
	  "the photos of the test sets are to be had: $(BIN)/python -m geomae.evaluation baselines --test_set im2gps3k --train_coordinates - --output_dir outputs/x" >&2
	@exit 1

$(SEEDS:%=$(THESIS)/seed_%/pretrain_full/model.safetensors): $(THESIS)/seed_%/pretrain_full/model.safetensors: configs/pretrain/thesis_mae_$(ON).yaml $(THESIS_NEEDS)
	$(ACCELERATE) run_pretrain_mae.py $< $(THESIS_SEED)

$(SEEDS:%=$(THESIS)/seed_%/pretrain_half/model.safetensors): $(THESIS)/seed_%/pretrain_half/model.safetensors: configs/pretrain/thesis_mae_$(ON).yaml $(THESIS_NEEDS)
	$(ACCELERATE) run_pretrain_mae.py $< $(THESIS_SEED) --subset first_half

$(SEEDS:%=$(THESIS)/seed_%/mae_full/model.safetensors): $(THESIS)/seed_%/mae_full/model.safetensors: configs/finetune/thesis_mae_$(ON).yaml $(THESIS)/seed_%/pretrain_full/model.safetensors
	$(ACCELERATE) run_finetune_geo.py $< $(THESIS_SEED) --init_from $(THESIS)/seed_$*/pretrain_full

$(SEEDS:%=$(THESIS)/seed_%/mae_half/model.safetensors): $(THESIS)/seed_%/mae_half/model.safetensors: configs/finetune/thesis_mae_$(ON).yaml $(THESIS)/seed_%/pretrain_half/model.safetensors
	$(ACCELERATE) run_finetune_geo.py $< $(THESIS_SEED) --init_from $(THESIS)/seed_$*/pretrain_half --subset last_half

$(SEEDS:%=$(THESIS)/seed_%/vit_full/model.safetensors): $(THESIS)/seed_%/vit_full/model.safetensors: configs/finetune/thesis_vit_$(ON).yaml $(THESIS_NEEDS)
	$(ACCELERATE) run_finetune_geo.py $< $(THESIS_SEED)

$(SEEDS:%=$(THESIS)/seed_%/vit_half/model.safetensors): $(THESIS)/seed_%/vit_half/model.safetensors: configs/finetune/thesis_vit_$(ON).yaml $(THESIS_NEEDS)
	$(ACCELERATE) run_finetune_geo.py $< $(THESIS_SEED) --subset last_half

$(SEEDS:%=$(THESIS)/seed_%/resnet_full/model.safetensors): $(THESIS)/seed_%/resnet_full/model.safetensors: configs/finetune/thesis_resnet_$(ON).yaml $(THESIS_NEEDS)
	$(ACCELERATE) run_finetune_geo.py $< $(THESIS_SEED)

$(SEEDS:%=$(THESIS)/seed_%/resnet_half/model.safetensors): $(THESIS)/seed_%/resnet_half/model.safetensors: configs/finetune/thesis_resnet_$(ON).yaml $(THESIS_NEEDS)
	$(ACCELERATE) run_finetune_geo.py $< $(THESIS_SEED) --subset last_half

$(THESIS_RUNS:%=%/im2gps/metrics.json): %/im2gps/metrics.json: %/model.safetensors
	$(BIN)/python run_evaluate_geo.py --checkpoint $* $(THESIS_TEST_$(ON))im2gps --train_coordinates $(THESIS_DATA) \
	  --num_resamples 10000 --output_dir $(@D)

$(THESIS_RUNS:%=%/im2gps3k/metrics.json): %/im2gps3k/metrics.json: %/model.safetensors
	$(BIN)/python run_evaluate_geo.py --checkpoint $* $(THESIS_TEST_$(ON))im2gps3k --train_coordinates $(THESIS_DATA) \
	  --num_resamples 10000 --output_dir $(@D)

results/thesis/$(ON)/metrics.json: $(foreach set,$(SETS),$(THESIS_RUNS:%=%/$(set)/metrics.json) results/baselines/$(set)/metrics.json) results/published.yaml
	$(BIN)/python -m geomae.reporting thesis $(THESIS) --seeds $(SEEDS) $(THESIS_ON_$(ON)) --train_coordinates $(THESIS_DATA) --output_dir $(@D)
	$(if $(filter earth-0-1-2,$(ON)-$(subst $() $(),-,$(SEEDS))),$(BIN)/python -m geomae.reporting fill docs/thesis.md docs/results.md)

# Heads beside each other: one trunk, one budget, three seeds; on crops in colour, from a pretrained trunk and from scratch, and
# on small grey crops, which fit many places. Every run takes one core, without a launcher that would cost it more than its
# evaluation: make -j2 heads. On two cores that is about an hour.
HEADS := outputs/heads
CELLS := $(HEADS)/geocells
CELLS_fine := --geocells $(CELLS)/fine/geocells.parquet
NUM_CELLS_fine := 400
NUM_CELLS_hierarchy := 50 150 400
HEAD_tanh := --head_type tanh
HEAD_sphere := --head_type sphere
HEAD_geocells := --head_type geocells $(CELLS_fine)
HEAD_geocells_label_smoothing := $(HEAD_geocells) --label_smoothing 0.1
HEAD_geocells_haversine_smoothing := $(HEAD_geocells) --haversine_smoothing_km 65
HEAD_geocells_hierarchy := --head_type geocells --geocells $(CELLS)/hierarchy/geocells.parquet
HEAD_hybrid := --head_type hybrid $(CELLS_fine)
HEAD_vmf_mixture := --head_type vmf_mixture $(CELLS_fine)
HEAD_vmf_mixture_free := --head_type vmf_mixture --num_mixture_components 50
POINT_HEADS := tanh sphere
PRETRAINED_HEADS := tanh sphere geocells geocells_hierarchy hybrid vmf_mixture vmf_mixture_free
SCRATCH_HEADS := tanh sphere geocells hybrid
IN_ONE_SEED := geocells_label_smoothing geocells_haversine_smoothing
AMBIGUOUS_HEADS := tanh sphere geocells hybrid vmf_mixture vmf_mixture_free
RETRIEVED := $(foreach seed,$(SEEDS),plain/pretrained/seed_$(seed) ambiguous/pretrained/seed_$(seed))
HEADS_RUNS := $(foreach seed,$(SEEDS),$(PRETRAINED_HEADS:%=plain/pretrained/seed_$(seed)/%) \
  $(SCRATCH_HEADS:%=plain/scratch/seed_$(seed)/%) $(AMBIGUOUS_HEADS:%=ambiguous/pretrained/seed_$(seed)/%)) \
  $(IN_ONE_SEED:%=plain/pretrained/seed_$(firstword $(SEEDS))/%)
# of what a stem such as ambiguous/pretrained/seed_0/tanh says: the photos, the start, the seed
part = $(word $(1),$(subst /, ,$*))
HEADS_DATA_plain := $(EARTH)/data
HEADS_DATA_ambiguous := $(EARTH)/ambiguous
HEADS_DATA = $(HEADS_DATA_$(call part,1))
HEADS_SIZE_ambiguous := --image_size 32
HEADS_START_pretrained = $(HEADS)/$(call part,1)/pretrain
HEADS_START_scratch := null
HEADS_TEST = --test_set $(HEADS_DATA) --split test_im2gps3k --train_coordinates $(HEADS_DATA)

heads: results/heads/metrics.json ## Every head on one trunk, in one table, on the stand-in

results/heads/metrics.json: export OMP_NUM_THREADS := 1

$(EARTH)/ambiguous/manifest.json: $(EARTH)/data/manifest.json
	$(BIN)/python -m geomae.data earth --output_dir $(@D) --num_train 30000 --shared_data $(SHARED) \
	  --image_size 32 --extent_km 80 400 --grey --num_processes 1

$(CELLS)/fine/geocells.json $(CELLS)/hierarchy/geocells.json: $(CELLS)/%/geocells.json: $(EARTH)/data/manifest.json
	$(BIN)/python -m geomae.geocells build --train_coordinates $(EARTH)/data --kind kmeans --num_cells $(NUM_CELLS_$*) \
	  --test_set $(EARTH)/data --split test_im2gps3k --output_dir $(@D)

$(HEADS)/plain/pretrain/model.safetensors $(HEADS)/ambiguous/pretrain/model.safetensors: $(HEADS)/%/pretrain/model.safetensors: \
  configs/pretrain/heads_earth.yaml $(EARTH)/data/manifest.json $(EARTH)/ambiguous/manifest.json
	$(BIN)/python run_pretrain_mae.py $< $(RESUME) --output_dir $(@D) --data_dirs $(HEADS_DATA) $(HEADS_SIZE_$*)

$(HEADS_RUNS:%=$(HEADS)/%/model.safetensors): $(HEADS)/%/model.safetensors: configs/finetune/heads_earth.yaml \
  $(HEADS)/plain/pretrain/model.safetensors $(HEADS)/ambiguous/pretrain/model.safetensors \
  $(CELLS)/fine/geocells.json $(CELLS)/hierarchy/geocells.json
	$(BIN)/python run_finetune_geo.py $< $(RESUME) --output_dir $(@D) --seed $(subst seed_,,$(call part,3)) \
	  --data_dirs $(HEADS_DATA) --init_from $(HEADS_START_$(call part,2)) $(HEADS_SIZE_$(call part,1)) $(HEAD_$(call part,4))

$(HEADS_RUNS:%=$(HEADS)/%/im2gps3k/metrics.json): $(HEADS)/%/im2gps3k/metrics.json: $(HEADS)/%/model.safetensors
	$(if $(filter $(POINT_HEADS),$(call part,4)),,$(BIN)/python -m geomae.evaluation calibrate --checkpoint $(HEADS)/$* --validation $(HEADS_DATA))
	$(BIN)/python run_evaluate_geo.py --checkpoint $(HEADS)/$* $(HEADS_TEST) --output_dir $(@D)

$(RETRIEVED:%=$(HEADS)/%/retrieval/im2gps3k/metrics.json): $(HEADS)/%/retrieval/im2gps3k/metrics.json: $(HEADS)/%/geocells/model.safetensors
	rm -rf $(HEADS)/$*/retrieval/index
	$(BIN)/python -m geomae.retrieval index --checkpoint $(HEADS)/$*/geocells --photos $(HEADS_DATA) --bf16 true \
	  --output_dir $(HEADS)/$*/retrieval/index
	$(BIN)/python -m geomae.retrieval search --index $(HEADS)/$*/retrieval/index --checkpoint $(HEADS)/$*/geocells --bf16 true \
	  $(HEADS_TEST) --validation $(HEADS_DATA) --refine_top_k 5 --output_dir $(@D)

$(HEADS)/plain/pretrained/posteriors.png $(HEADS)/ambiguous/pretrained/posteriors.png: $(HEADS)/%/posteriors.png: \
  $(HEADS)/%/seed_$(firstword $(SEEDS))/geocells/model.safetensors
	$(BIN)/python -m geomae.reporting posteriors --checkpoint $(<D) --photos $(HEADS_DATA) --split test_im2gps3k --output_file $@

results/heads/metrics.json: $(HEADS_RUNS:%=$(HEADS)/%/im2gps3k/metrics.json) $(RETRIEVED:%=$(HEADS)/%/retrieval/im2gps3k/metrics.json) \
  $(HEADS)/plain/pretrained/posteriors.png $(HEADS)/ambiguous/pretrained/posteriors.png
	$(BIN)/python -m geomae.reporting heads $(HEADS) --seeds $(SEEDS) --output_dir $(@D) \
	  --measured_on "the Earth stand-in, patches of the Blue Marble at 30,000 coordinates of MP-16, judged at those of Im2GPS3k"
	$(if $(filter 0-1-2,$(subst $() $(),-,$(SEEDS))),$(BIN)/python -m geomae.reporting fill docs/results.md)

# 120 real photos from many cameras: does the decoder learn to restore what it cannot see? And what does a model that has
# only ever seen the ground from above say of photos? About 5 minutes on two cores.
PHOTOS := outputs/photos
CAMERAS := $(SHARED)/photos

photos: results/photos/reconstruction_step_000600.png ## Pretraining on 120 real photos, and an evaluation on the 32 with coordinates

$(PHOTOS)/pretrain/model.safetensors: configs/pretrain/photos.yaml | $(INSTALLED)
	@test -d $(CAMERAS) || { echo "There is no $(CAMERAS): set GEOMAE_SHARED_DATA to the folder that holds photos/." >&2; exit 1; }
	$(BIN)/python -m geomae.data pack $(CAMERAS)/unlabelled --unlabelled --validation_fraction 0.1 --output_dir $(PHOTOS)/unlabelled
	$(BIN)/python -m geomae.data pack $(CAMERAS)/geotagged --csv $(CAMERAS)/geotagged.csv --output_dir $(PHOTOS)/geotagged
	$(ACCELERATE) run_pretrain_mae.py $< $(RESUME)

results/photos/reconstruction_step_000600.png: $(PHOTOS)/pretrain/model.safetensors $(EARTH)/finetune_mae/model.safetensors
	$(BIN)/python run_evaluate_geo.py --checkpoint $(EARTH)/finetune_mae --test_set $(CAMERAS)/geotagged.csv --num_resamples 10000 \
	  --photos $(CAMERAS)/geotagged --train_coordinates $(SHARED)/geotags/mp16_coordinates_100k.csv --output_dir results/photos/geotagged
	mkdir -p results/photos/pretrain
	cp $(PHOTOS)/pretrain/run.json $(PHOTOS)/pretrain/trainer_state.json results/photos/pretrain/
	cp $(PHOTOS)/pretrain/pictures/reconstruction_step_000000.png $(PHOTOS)/pretrain/pictures/reconstruction_step_000600.png results/photos/
	$(BIN)/python -m geomae.reporting fill README.md docs/results.md model_cards/*.md
	$(BIN)/python -m geomae.publish cards

clean: ## Remove builds, caches and the demo; keep the environment and other outputs
	rm -rf build dist *.egg-info $(DEMO) .pytest_cache .ruff_cache .mypy_cache .hypothesis
	find . -name __pycache__ -type d -not -path './.venv/*' -prune -exec rm -rf {} +
