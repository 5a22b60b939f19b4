# Bare make prints what there is. Everything runs without input and needs Go alone, except what says otherwise.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

GO ?= go
FUZZTIME ?= 10s
BENCH ?= .
# Packages of the long targets, for example: make race PKG=./state/...
PKG ?= ./...

# The linter is built from source through the Go module proxy, once for each version and Go version.
LINT_VERSION := v2.15.0
LINT_DIR := $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/tailrace/golangci-lint-$(LINT_VERSION)-$(shell $(GO) env GOVERSION)
LINT := $(LINT_DIR)/golangci-lint

# Where make kafka puts its broker.
TAILRACE_KAFKA ?= 127.0.0.1:19092
export TAILRACE_KAFKA

.PHONY: help
help: ## print this list
	@awk -F ':.*## ' '/^[a-z][a-z0-9-]*:.*## / {printf "  %-12s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

.PHONY: build
build: ## compile everything, tests included
	$(GO) build ./...
	$(GO) test -run '^$$' -exec true ./... >/dev/null

.PHONY: test
test: ## vet and test everything, on the embedded broker
	$(GO) vet ./...
	$(GO) test -timeout 15m ./...

.PHONY: race
race: ## test under the race detector, a package at a time (needs a C compiler)
	$(GO) test -race -p 1 -timeout 25m $(PKG)

.PHONY: lint
lint: $(LINT) ## run golangci-lint, building it first if need be (a minute or two)
	$(LINT) run ./...

$(LINT):
	GOBIN=$(LINT_DIR) $(GO) install github.com/golangci/golangci-lint/v2/cmd/golangci-lint@$(LINT_VERSION)

.PHONY: fmt
fmt: $(LINT) ## format the code and the imports
	$(LINT) fmt ./...

.PHONY: fmt-check
fmt-check: ## fail if gofmt would change a file
	@bad=$$(gofmt -l $$(git ls-files --cached --others --exclude-standard -- '*.go')); \
	if [ -n "$$bad" ]; then echo "gofmt would change:"; echo "$$bad"; exit 1; fi

.PHONY: tidy-check
tidy-check: ## fail if go mod tidy would change go.mod or go.sum
	$(GO) mod tidy -diff

.PHONY: golden
golden: ## rewrite the golden files from what the tests see now; then read the diff
	@grep -rl --include='*_test.go' cockroachdb/datadriven . | xargs -r -n1 dirname | sort -u | \
	while read -r dir; do echo "$$dir"; $(GO) test -count=1 "$$dir" -args -rewrite; done
	git diff --stat

.PHONY: fuzz
fuzz: ## run every fuzz target for FUZZTIME (10s)
	@for pkg in $$(grep -rl --include='*_test.go' '^func Fuzz' . | xargs -r -n1 dirname | sort -u); do \
		for target in $$(grep -hoE '^func Fuzz[A-Za-z0-9_]+' "$$pkg"/*_test.go | cut -c6- | sort); do \
			echo "$$pkg $$target"; \
			$(GO) test -run '^$$' -fuzz "^$$target\$$" -fuzztime $(FUZZTIME) "$$pkg"; \
		done; \
	done

.PHONY: bench
bench: ## run the benchmarks that match BENCH (all), with allocations; end to end, too, on the broker TAILRACE_KAFKA if set
	$(GO) test -run '^$$' -bench '$(BENCH)' -benchmem $(PKG)
	$(if $(filter file,$(origin TAILRACE_KAFKA)),,$(GO) run ./bench run=map,count brokers=$(TAILRACE_KAFKA) check=true)

.PHONY: examples
examples: ## build the example programs and run their tests and the documented Examples
	$(GO) build ./examples/...
	$(GO) test ./examples/...
	$(GO) test -run '^Example' ./...

.PHONY: kafka
kafka: ## start a real Apache Kafka on 127.0.0.1:19092 (needs Java 17 and Maven)
	@internal/kafkatest/kafka start
	@echo "run the tests on it: make test-kafka   end it: make kafka-stop"

.PHONY: kafka-stop
kafka-stop: ## stop the Kafka of make kafka; its data stays in .kafka/run
	@internal/kafkatest/kafka stop

.PHONY: test-kafka
test-kafka: ## run all tests, those for a real Kafka included; fails if TAILRACE_KAFKA does not answer. Then make soak
	$(GO) test -count=1 -timeout 60m -tags kafka $(PKG)
	$(if $(filter 0,$(DURATION)),,@$(MAKE) soak)

# What the long tests of failures do: RUNS of KILLS each, from seed SEED on.
kills upgrade: RUNS ?= 15
KILLS ?= 20
DURATION ?= 30m
.PHONY: kills
kills: ## kill members and the broker, RUNS times KILLS (15 x 20), on a real Kafka of its own (needs Java and Maven)
	dir=$$(mktemp -d) && $(GO) run ./internal/faults/killer -runs $(RUNS) -kills $(KILLS) -seed $(SEED) -dir $$dir -kafka $$dir/kafka && rm -rf $$dir

.PHONY: upgrade
upgrade: ## the same with members that go from the version FROM (a commit) to this one and back
	@test -n "$(FROM)" || { echo "set FROM to a commit, for example FROM=HEAD~10"; exit 1; }
	dir=$$(mktemp -d) && mkdir $$dir/src && git archive $(FROM) | tar -x -C $$dir/src && \
	(cd $$dir/src && $(GO) build -o $$dir/old ./bench) && \
	$(GO) run ./internal/faults/killer -runs $(RUNS) -kills $(KILLS) -seed $(SEED) -dir $$dir -kafka $$dir/kafka -old $$dir/old && rm -rf $$dir

.PHONY: soak
soak: ## one long run of DURATION (30m; 24h before a release), in which nothing may grow, on a real Kafka of its own
	dir=$$(mktemp -d) && $(GO) run ./internal/faults/killer -soak $(DURATION) -seed $(SEED) -dir $$dir -kafka $$dir/kafka && rm -rf $$dir

.PHONY: ci
ci: ## what the CI runs
	.ci/run

N ?= 300
SEED ?= 1
.PHONY: conformance
conformance: ## replay cases of what Kafka Streams does, the project's own or those in DIR=…; ends with how many passed
	@CONFORMANCE_DIR=$(abspath $(DIR)) $(GO) test -count=1 -run '^TestConformance$$' -v ./internal/conformance | grep -v -e '^=== ' -e '--- PASS' -e '^PASS' -e '^ok'

.PHONY: conformance-random
conformance-random: ## random cases against the real Kafka Streams: ORACLE_JAR=… N=300 SEED=1 (needs Java)
	@test -n "$(ORACLE_JAR)" || { echo "set ORACLE_JAR to a jar that answers: java -jar JAR record IN OUT"; exit 1; }
	dir=$$(mktemp -d) && $(GO) run ./internal/conformance/generate -out $$dir -n $(N) -seed $(SEED) && \
	java -jar $(ORACLE_JAR) record $$dir $$dir && CONFORMANCE_DIR=$$dir $(GO) test -run '^TestConformance$$' -v ./internal/conformance | tail -n 40

sim: RUNS ?= 10000
NET_RUNS ?= 300
TRACE ?= 80
.PHONY: sim
sim: ## model simulation of the protocol: SEED=1 RUNS=10000; a failure names its seed: SEED=n RUNS=1 TRACE=all
	SIM_SEED=$(SEED) SIM_RUNS=$(RUNS) SIM_TRACE=$(TRACE) $(GO) test -count=1 -timeout 60m -v -run '^TestModel$$' ./internal/sim

.PHONY: sim-net
sim-net: ## the real engine, client, broker and database in virtual time: SEED=1 NET_RUNS=300
	SIM_SEED=$(SEED) SIM_NET_RUNS=$(NET_RUNS) $(GO) test -count=1 -timeout 60m -v -run '^TestNet' ./internal/sim
