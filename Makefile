# The two commands a newcomer needs are `make up` and `make test`; everything else is a part of them.

HOST := $(shell rustc -vV 2>/dev/null | sed -n 's/^host: //p')
TARGET_DIR := $(or $(CARGO_TARGET_DIR),target)
KEELSON := $(abspath $(TARGET_DIR)/$(HOST)/release/keelson)
BENCH := $(abspath $(TARGET_DIR)/$(HOST)/release/keelson-bench)
TOOLS := $(abspath .tools)

.PHONY: up down test build packages tools vm lint

up: packages tools build ## make and start a cluster on this machine
	$(KEELSON) up

down: ## stop it
	$(KEELSON) down

# Static and without load-time relocation: the binary is also the only file of the system image, and one copy of it
# sleeps in every pod's sandbox, where each relocated page would cost memory of its own.
build: ## the release binaries
	CARGO_TARGET_$(shell echo $(HOST) | tr 'a-z-' 'A-Z_')_RUSTFLAGS="-C target-feature=+crt-static -C relocation-model=static" \
	cargo build --release --target $(HOST) -p keelson -p keelson-conformance

test: packages tools vm build ## everything that proves the product, from unit tests to end-to-end flows
	KEELSON_BIN=$(KEELSON) KEELSON_BENCH=$(BENCH) KEELSON_TOOLS=$(TOOLS) cargo test --workspace --no-fail-fast

lint: ## what a reviewer would otherwise have to say
	cargo fmt --all --check
	cargo clippy --workspace --all-targets -- -D warnings

packages: ## Debian packages that are missing
	scripts/install-packages

tools: $(TOOLS)/kubectl $(TOOLS)/helm ## kubectl and helm, into .tools

vm: $(TOOLS)/vm/vmlinuz ## a kernel for tests in virtual machines, into .tools

$(TOOLS)/vm/vmlinuz: scripts/install-kernel
	scripts/install-kernel $(TOOLS)/vm
	touch $@

$(TOOLS)/kubectl $(TOOLS)/helm &: scripts/install-tools
	scripts/install-tools $(TOOLS)
