# `make demo` and `make test` each work as the first command after a clone.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: setup demo test test-browser test-containers test-gpu chaos mutants fuzz fuzz-images lint bench clean bench-core bench-gpu bench-clicks bench-device bench-job

setup: .venv/.installed

# The index of PyTorch's CPU builds, as its installation page names it: 4.5 GB smaller on Linux.  Read when .venv is made.
TORCH_INDEX_URL ?=

# The stamp is newer than what it was installed from, so a second call does nothing.
.venv/.installed: pyproject.toml setup.py constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "maskfleet needs Python 3.11 or newer: make PYTHON=python3.11 …")'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(if $(TORCH_INDEX_URL),$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt --no-deps \
		--index-url $(TORCH_INDEX_URL) torch torchvision)
	$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt -e '.[all,dev]'
	touch $@

demo: setup
	$(BIN)/maskfleet demo

# Four processes, each with its own servers, take one test file after another, in the order of tests/conftest.py: many
# tests wait, and two processes would leave two cores idle for a third of the time.
# torch's threads must not spin while they wait for each other: they would keep another process off its core.
# Python keeps what it compiled, whatever the shell says: tests start hundreds of programs.
test: setup
	OMP_WAIT_POLICY=PASSIVE PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest -m "not gpu" --numprocesses 4 --dist loadfile --no-loadscope-reorder --durations=40

# Build the images and run docker-compose.yml with podman: as root, on Debian.  Takes ten minutes and 20 GB of /var/tmp.
test-containers: setup
	$(BIN)/python -m tests.containers

# The playground, in Chromium (Debian: apt-get install chromium).  Without it the tests fail; they are never skipped.
test-browser: setup
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[browser]'
	OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m pytest tests/browser --durations=20

# What needs rasterio, that is GDAL: georeferences compared with GDAL's, and `maskfleet raster`.
.PHONY: test-geo
test-geo: setup
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[all,dev,geo]'
	OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m pytest tests/geo --durations=10

# On a machine with a CUDA device.
test-gpu: setup
	$(BIN)/python -m pytest -m gpu tests/worker

# Make a TypeScript client from the service's OpenAPI document and run a job with it.  Needs Node.js 20 with npm.
.PHONY: test-typescript
test-typescript: setup
	npm ci --prefix tests/typescript --no-audit --no-fund
	$(BIN)/python -m pytest tests/typescript/check_typescript.py

# Run the notebook in docs/notebooks, and compare with what is committed; or run it and keep what it shows.
.PHONY: test-notebook
test-notebook: setup
	$(BIN)/python -m pytest tests/notebook/check_notebook.py

# The tools that read coco.json, and what runs within them: FiftyOne, CVAT, Label Studio, napari, each in an environment
# of its own, in which every package is pinned, so that none is chosen.  napari's windows need Xvfb and the libraries of
# X and OpenGL (Debian: see .ci/run).
TOOLS := fiftyone cvat label_studio napari
build/integrations/%/.installed: tests/integrations/%.txt
	rm -rf $(@D)
	$(BIN)/python -m venv $(@D)
	$(@D)/bin/python -m pip install --quiet --disable-pip-version-check --no-compile --no-deps -r $<
	touch $@

.PHONY: test-integrations
test-integrations: setup $(TOOLS:%=build/integrations/%/.installed)
	rm -rf build/integrations/wheel
	$(BIN)/python -m pip wheel --quiet --disable-pip-version-check --no-deps --wheel-dir build/integrations/wheel .
	for tool in $(TOOLS); do \
		build/integrations/$$tool/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --force-reinstall \
			build/integrations/wheel/maskfleet-*.whl || exit 1; \
	done
	build/integrations/napari/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation \
		--force-reinstall ./integrations/napari
	$(BIN)/python -m pytest -s tests/integrations/check_integrations.py

.PHONY: notebook
notebook: setup
	$(BIN)/python -m tests.notebook.keep

# Make maskfleet/client/asynchronous from the modules beside it.
.PHONY: async-client
async-client: setup
	$(BIN)/python -m tests.maskfleet.async_client

# Run jobs under faults; writes docs/chaos.md.
JOBS ?= 2000
SECONDS ?= 300
SEED ?= 1
chaos: setup
	$(BIN)/python -m tests.faults.chaos --jobs $(JOBS) --seconds $(SECONDS) --seed $(SEED)

# Break the product on purpose, one promise at a time, and see that the fault laboratory finds it.
mutants: setup
	$(BIN)/python -m tests.faults.mutants

# Send the API what the OpenAPI document allows and forbids: more of what `make test` sends.
EXAMPLES ?= 200
fuzz: setup
	FUZZ_EXAMPLES=$(EXAMPLES) $(BIN)/python -m pytest -s tests/api/test_schemathesis.py

# Feed damaged image files to the API's header parser and the decoder; writes benchmarks/results/image_fuzz.json.
COUNT ?= 10000
fuzz-images: setup
	$(BIN)/python -m tests.fuzz.images --count $(COUNT) --seed $(SEED) --keep

# The others are made of classes and decorators of the tools' packages, which .venv has not.
TYPED_INTEGRATIONS := integrations/cvat/nuclio/main.py integrations/napari/src/napari_maskfleet/service.py
lint: setup
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/mypy tests/maskfleet/typed_client.py $(TYPED_INTEGRATIONS)
	$(BIN)/lint-imports

# Compare mode everything with the library's pipeline; takes half an hour.
bench-core: setup
	$(BIN)/python -m benchmarks.core --model demo --megapixels 1 4
	$(BIN)/python -m benchmarks.core --model demo --megapixels 1 4 --picture scene
	$(BIN)/python -m benchmarks.core --model demo --megapixels 1 --allocator tuned
	$(BIN)/python -m benchmarks.core --model demo --megapixels 1 --threads 0
	$(BIN)/python -m benchmarks.core --model vit-b --megapixels 1 4 12 18 --points 4
	$(BIN)/python -m benchmarks.core --model vit-b --megapixels 1 --points 4 --allocator tuned
	$(BIN)/python -m benchmarks.core --model vit-b --megapixels 1 --points 4 --threads 0
	$(BIN)/python -m benchmarks.core --model sam2 --megapixels 1 4 --points 8
	$(BIN)/python -m benchmarks.core --model sam2 --megapixels 1 --points 8 --stage decoder

# How long a device waits while jobs are queued; no card is needed.  Takes a quarter of an hour.
bench-device: setup
	$(BIN)/python -m benchmarks.device

# On a machine with a CUDA device: how far masks are from the CPU's, images a second, and the comparison with the library.
bench-gpu: setup
	$(BIN)/python -m benchmarks.precision --device cuda --compile
	$(BIN)/python -m benchmarks.gpu
	$(BIN)/python -m benchmarks.core --model vit-b --megapixels 1 4 --points 16 --device cuda

# Clicks through the service, beside a loop over transformers' SamModel; takes some minutes.
bench-clicks: setup
	$(BIN)/python -m benchmarks.clicks

# Time a whole job by stage, and the library's way beside it; takes half an hour.
bench-job: setup
	$(BIN)/python -m benchmarks.job

# The documents as a site, in build/docs; a broken link, or a page that needs another host, fails (not with --quiet: it hides warnings).
.PHONY: docs
docs: setup
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[docs]'
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

bench: setup
	$(BIN)/python -m benchmarks.submit
	$(BIN)/python -m benchmarks.overhead
	$(BIN)/python -m benchmarks.webhooks

clean:
	rm -rf .venv demo-output build *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
