# `make help` lists what there is to do.

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.PHONY: help setup run test test-tiers lint bench bench-aead bench-limit check-aead fuzz

CARGO ?= cargo
# Options of the demo or the benchmark, for instance: make run ARGS=--af-xdp, make bench ARGS='--repeat 9', make bench-aead ARGS=--quick
ARGS ?=

# Namespaces and raw sockets want root; building does not, so only what is built runs with it. Without
# sudo the tests that need it fail and say so, and the demo runs in one process.
RUN_AS_ROOT :=
RUN_SUDO := $(if $(filter-out 0,$(shell id -u)),sudo)
ifneq ($(shell id -u),0)
ifneq ($(shell command -v sudo),)
ifneq ($(SIMPLON_SKIP_NETNS),1)
RUN_AS_ROOT := --config 'target."cfg(all())".runner = "sudo -E"'
endif
endif
endif

# To build; to make namespaces and interfaces; to send traffic and look at it; to check against another implementation.
# Where one of several will do, they stand with a bar between them, the one to install first.
PACKAGES := build-essential pkg-config clang libclang-dev|libclang-14-dev libdpdk-dev dpdk dpdk-dev ca-certificates \
            iproute2 ethtool util-linux nftables conntrack \
            iputils-ping iperf3 tcpdump frr \
            python3-scapy python3-cryptography tshark

# Tiers of AES-GCM. Tests that need one run in the best that the processor has, and those of packets in each.
TIERS := portable aesni avx2 avx512

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-11s %s\n", $$1, $$2 }' Makefile

setup: ## install the Debian packages that are missing
	@admin/setup.sh $(foreach package,$(PACKAGES),'$(package)')

run: setup ## watch two gateways carry traffic on this machine
	$(CARGO) build --release --bin simplon --example demo
	$(CARGO) run --release --example demo $(RUN_AS_ROOT) -- $(ARGS)

test: setup ## run every test
	$(CARGO) test --no-default-features
	RUSTFLAGS='--cfg loom' $(CARGO) test --release --no-default-features --lib models --target-dir target/loom
	@if [ '$(SIMPLON_SKIP_NETNS)' = 1 ]; then echo 'SIMPLON_SKIP_NETNS=1: leaving out the tests that need network namespaces.'; fi
	$(CARGO) test $(RUN_AS_ROOT)
	@$(MAKE) --no-print-directory test-tiers

test-tiers: ## run the tests of packets in every tier of AES-GCM but the best
	@default=$$($(CARGO) run -q --bin simplon -- --version); \
	for tier in $(TIERS); do \
	    version=$$(SIMPLON_AEAD_TIER=$$tier $(CARGO) run -q --bin simplon -- --version); \
	    case $$version in \
	        "$$default") ;; \
	        *"AES-GCM $$tier)") \
	            echo "Packets again, sealed and opened by AES-GCM's tier $$tier:"; \
	            SIMPLON_AEAD_TIER=$$tier $(CARGO) test -q --lib -- crypto:: ipsec:: worker::; \
	            SIMPLON_AEAD_TIER=$$tier $(CARGO) test -q --test golden --test headers --test hostile ;; \
	        *) echo "AES-GCM's tier $$tier is not tested: this processor cannot run it." ;; \
	    esac; \
	done

lint: setup ## check format, warnings and the import rule
	$(CARGO) fmt --check
	$(CARGO) clippy --all-targets -- -D warnings
	$(CARGO) clippy --all-targets --no-default-features -- -D warnings
	admin/check-imports.sh

bench: setup ## cycles per packet by stage, beside testpmd on the same ports
	@admin/setup.sh 'dpdk-dev' 'python3'
	$(CARGO) build --release --bin simplon
	$(RUN_SUDO) /usr/bin/python3 benches/zero_line.py $(ARGS)

bench-aead: ## AES-GCM alone, beside aes-gcm, ring, aws-lc-rs and Intel's library
	@admin/setup.sh build-essential libipsec-mb-dev
	$(CARGO) run --release --manifest-path benches/Cargo.toml --target-dir target/benches --bin aead -- $(ARGS)

bench-limit: ## how fast this processor does the instructions of AES-GCM
	@admin/setup.sh build-essential libipsec-mb-dev
	$(CARGO) run --release --manifest-path benches/Cargo.toml --target-dir target/benches --bin limit

check-aead: ## AES-GCM under AddressSanitizer, valgrind, Miri, and its constant time
	@admin/setup.sh valgrind libipsec-mb-dev
	admin/check-aead.sh $(ARGS)

fuzz: ## a fuzz target: make fuzz ARGS='aead_tiers 60'
	admin/fuzz.sh $(ARGS)
