# What this Makefile needs, it installs: see test/setup.sh. Everything is built
# with the same flags, so that one build cache serves all targets.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c

export PATH := $(CURDIR)/bin/tools:$(PATH)
export CGO_ENABLED := 0
export GOFLAGS := -trimpath -tags=grpcnotrace -buildvcs=false
export KUBERNETES := v1.36.3
VERSION := $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)

DATA_DIR ?= .coracle
NODES    ?= 1
DETACH   ?=
PROCS    ?= 2

GO := test/go

LDFLAGS := -s -w \
  -X github.com/coracle-edge/coracle/internal/version.linked=$(VERSION) \
  -X k8s.io/component-base/version.gitVersion=$(KUBERNETES)+coracle-$(VERSION) \
  -X k8s.io/component-base/version.gitMajor=1 \
  -X k8s.io/component-base/version.gitMinor=36 \
  -X k8s.io/component-base/version.gitTreeState=clean \
  -X k8s.io/client-go/pkg/version.gitVersion=$(KUBERNETES) \
  -X k8s.io/client-go/pkg/version.gitMajor=1 \
  -X k8s.io/client-go/pkg/version.gitMinor=36

COMMANDS := coracle controlplane edgelet crishim wasmrunner
.DEFAULT_GOAL := build

.PHONY: build programs boards up down test test-slow fuzz critest conformance test-link unit integration arm lint bench bench-link bench-fleet bench-runtime bench-node generate clean help

help: ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 14

build: programs boards ## everything: this machine's programs, and those of boards and servers

programs: ## the programs for this machine, into ./bin
	@$(GO) build -ldflags '$(LDFLAGS)' -o bin/ $(addprefix ./cmd/,$(COMMANDS))

bin/tools/kubectl: # for machines that have none
	@$(GO) build -ldflags '$(LDFLAGS)' -o $@ k8s.io/kubernetes/cmd/kubectl

# Upstream's kubelet of this module's versions, and its CRI client, for test/cri.
bin/tools/kubelet:
	@$(GO) build -ldflags '$(UPSTREAM_LDFLAGS)' -o $@ k8s.io/kubernetes/cmd/kubelet

bin/tools/crictl:
	@GOBIN=$(CURDIR)/bin/tools $(GO) install -ldflags '-s -w' sigs.k8s.io/cri-tools/cmd/crictl@v1.36.0

# Where each program is meant to run.
boards: ## static programs for boards and servers, into ./bin/OS-ARCH
	@for p in amd64 arm64 arm-7 arm-6 riscv64; do \
	  arch=$${p%-*} v=$${p#*-}; [ $$v != $$p ] || v=; \
	  GOOS=linux GOARCH=$$arch GOARM=$$v $(GO) build -ldflags '$(LDFLAGS)' \
	    -o bin/linux-$$arch$${v:+v$$v}/ ./cmd/edgelet ./cmd/crishim ./cmd/wasmrunner; \
	done
	@for arch in amd64 arm64; do \
	  GOOS=linux GOARCH=$$arch $(GO) build -ldflags '$(LDFLAGS)' -o bin/linux-$$arch/ ./cmd/coracle ./cmd/controlplane; \
	done
	@ls -l bin/linux-*

up: programs ## a whole cluster on this machine, with the hello example (NODES=N, DETACH=1, DATA_DIR=, REGISTRY_MIRROR=URL, ARGS=more flags of `coracle up`); as root each node has namespaces of its own
	@bin/coracle up --data-dir $(DATA_DIR) --nodes $(NODES) $(if $(DETACH),--detach) $(if $(REGISTRY_MIRROR),--registry-mirror $(REGISTRY_MIRROR)) $(ARGS)

down: ## stop it; the data stays
	@if [ -x bin/coracle ]; then bin/coracle down --data-dir $(DATA_DIR); else echo "Nothing was built here, so nothing runs."; fi

test: ## everything: lint, unit tests, integration tests, edgelet on ARM
	@test/run.sh

lint unit integration arm:
	@test/run.sh $@

test-slow: ## what takes longer than five minutes: the CRI's suite, programs of others, two hundred kills (test/slow.sh STEP runs one)
	@test/slow.sh

fuzz: ## every fuzz test for 20 seconds, an hour in all (FUZZTIME; test/fuzz.sh FOLDER runs those below it)
	@test/fuzz.sh

critest: ## the CRI's own validation suite against crishim, with OCI and with Wasm images, beside containerd alone (ARGS=-focus='regexp' -runs=crishim,wasm -versions=v1.37.0)
	@test/critest.sh $(ARGS)

conformance: programs ## upstream's conformance suite against a cluster of two nodes, or against KUBECONFIG=; FOCUS= and SKIP= are regular expressions, PROCS=N at once, E2E=e2e.test (else hydrophone), REGISTRY_MIRROR=URL of its images, ARGS= (docs/conformance.md)
	@$(GO) run ./test/conformance -bin bin -kubeconfig "$(KUBECONFIG)" -nodes $(if $(filter 1,$(NODES)),2,$(NODES)) -procs $(PROCS) $(if $(E2E),-e2e $(E2E)) $(if $(FOCUS),-focus '$(FOCUS)') $(if $(SKIP),-skip '$(SKIP)') $(if $(REGISTRY_MIRROR),-up --registry-mirror=$(REGISTRY_MIRROR)) $(ARGS)

test-link: ## the fleet link's machines explored to the full depth, in minutes
	@test/link.sh

bench: programs ## this system's figures beside its peers', into .coracle/bench/bench.jsonl
	@$(GO) run ./test/bench --bin bin --go $(abspath $(GO))

bench-link: programs upstream ## bytes of the fleet link per class, idle, per pod and per reconnect, beside upstream's kubelet, into .coracle/bench/bench-link.jsonl (ARGS=--window=1h measures what is otherwise computed)
	@$(GO) run ./test/bench/link --bin bin --upstream bin/tools/upstream $(ARGS)

bench-fleet: programs ## a fleet (NODES=1000) that loses its broker for ten minutes, and boards that die, into .coracle/bench/bench-fleet.jsonl (ARGS=-outage=1m; -broker=network or controlplane loses something else)
	@$(GO) run ./test/bench/fleet -bin bin -nodes $(if $(filter 1,$(NODES)),1000,$(NODES)) $(ARGS)

bench-runtime: programs ## a Wasm container beside one of runc: start, memory, an idle server, computing, HTTP, as root, into .coracle/bench/bench-runtime.jsonl; ARGS="-arm64 KERNEL" puts 200 into an emulated board of 512 MiB (test/bench/runtime/kernel.sh fetches one)
	@$(GO) run ./test/bench/runtime --bin bin --go $(abspath $(GO)) $(ARGS)

bench-node: programs $(if $(findstring -arm64,$(ARGS)),,upstream) ## our node beside kubelet and kube-proxy with the same containerd: memory, processor, create to Running, writes, as root, into .coracle/bench/bench-node.jsonl in eighteen minutes (ARGS=-long looks longer, -light is some minutes, "-arm64 FOLDER" measures emulated boards of 128 and 512 MiB, which test/board/fetch.sh FOLDER gets)
	@$(GO) run ./test/bench/node --bin bin --upstream bin/tools/upstream --go $(abspath $(GO)) $(ARGS)

# Upstream's own node and API server, of a module of their own.
UPSTREAM := kubelet kube-proxy kube-apiserver
UPSTREAM_LDFLAGS := -s -w $(foreach p,k8s.io/component-base/version k8s.io/client-go/pkg/version,-X $p.gitVersion=$(KUBERNETES) -X $p.gitMajor=1 -X $p.gitMinor=36)
.PHONY: upstream
upstream:
	@cd test/bench/upstream && ../../go build -ldflags '$(UPSTREAM_LDFLAGS)' -o ../../../bin/tools/upstream/ $(addprefix k8s.io/kubernetes/cmd/,$(UPSTREAM))
	@cd test/bench/upstream && ../../go build -ldflags '-s -w' -o ../../../bin/tools/upstream/etcd go.etcd.io/etcd/server/v3

generate: ## protobuf code and example modules, again
	@$(GO) generate ./controlplane/api/...
	@examples/build.sh

clean:
	@rm -rf bin
