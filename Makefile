# The commands of the house. `make` alone lists them.

.DEFAULT_GOAL := help
.PHONY: help run cluster test test-all chaos lint bench

# Where `make run` serves; the same variables as everywhere.
export MOONGATE_LISTEN ?= 127.0.0.1:7272
export MOONGATE_API_LISTEN ?= 127.0.0.1:7273

help: ## This list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1|/' | column -t -s '|'

run: ## One node on this machine, in release mode; nothing else needed
	@cargo build --release --locked
	@cargo run --release --locked --quiet -- check >/dev/null
	@scripts/hello
	@MOONGATE_DRAIN=$${MOONGATE_DRAIN:-1s} exec cargo run --release --locked --quiet

cluster: ## Two nodes and a Redis of their own on this machine
	@exec scripts/cluster

test: ## Everything that a change must pass: unit, property, integration, the real binary, the page in a browser
	@scripts/install-test-tools
	@# Most of them wait most of the time.
	cargo test --locked --workspace --lib --bins --test it -- --test-threads=4
	@# Its harness has tested itself in the line before.
	cargo test --locked --test allocations -- --skip harness:: --skip redis::

test-all: export ROUNDS = all
test-all: lint test ## And what is heavier: faults, jemalloc, the documentation, the benchmarks once each, fuzzing, the image, the deployment, the examples, the clients
	@# The harness tests itself in `make test`. More side by side than two cores take would make the machine the fault.
	cargo test --locked --test faults -- --test-threads=3 --skip harness:: --skip proxy:: --skip redis::
	cargo test --locked --features jemalloc --test it -- clients::
	RUSTDOCFLAGS='-D warnings' cargo doc --locked --no-deps --workspace
	@# Whether they run, not how fast.
	cargo bench --locked --profile dev -- --test
	@scripts/fuzz
	@scripts/check-image
	@scripts/check-deploy
	@scripts/check-examples
	@scripts/check-clients

chaos: ## What goes wrong in production, done on purpose for longer than in test-all, and a table of what held
	@exec scripts/chaos

lint: ## Format, clippy with warnings denied, licenses, sources and unused dependencies
	cargo fmt --all --check
	cargo clippy --locked --workspace --all-targets -- -D warnings
	@# Replies that poison a connection are kept out in one place: see there.
	@! grep -rl 'fred::' src | grep -v '^src/cluster/redis.rs$$'
	@scripts/install-lint-tools
	cargo deny --offline check licenses bans sources
	cargo machete

bench: ## The load tester's standard set, on one node and on two, beside the kernel's floor: loadtest/RESULTS.md
	cargo build --profile dist --locked --workspace --features moongate/jemalloc
	target/dist/loadtest bench --spawn target/dist/moongate --redis-spawn --out loadtest
