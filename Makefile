# The commands of this project; README.md says what each is for. All state is outside the checkout, but dist/.

# One target folder for all checkouts: dependencies are compiled once.
export CARGO_TARGET_DIR ?= $(HOME)/.cache/quorate/target
TOOLS ?= $(HOME)/.cache/quorate/tools
export QUORATE_TOOLS := $(TOOLS)
export PATH := $(PATH):$(TOOLS)/go/bin

# What ships is static: glibc has hosts and DNS look-ups built in. The target is named so that these flags do not reach build
# scripts; paths are cut, so that where it was built does not show in the binary.
TARGET := x86_64-unknown-linux-gnu
STATIC := -C target-feature=+crt-static -C link-arg=-fuse-ld=mold \
  --remap-path-prefix=$(or $(CARGO_HOME),$(HOME)/.cargo)/registry/src=/registry --remap-path-prefix=$(CARGO_TARGET_DIR)=/target
# Half a megabyte of its relocations say the same thing: in this form they take a thirtieth of it. What it is linked with, glibc, knows it since 2.36.
PACKED := -C link-arg=-Wl,-z,pack-relative-relocs
MAX_BYTES := 16000000
LAB := $(CARGO_TARGET_DIR)/debug/lab
FROM ?= v1.36.1
TO ?= v1.36.3
PROBER := $(CARGO_TARGET_DIR)/$(TARGET)/release/prober

# For tests: what is tested is what ships.
export QUORATE_BIN := $(CURDIR)/dist/quorate
export QUORATE_IMAGE := $(CURDIR)/dist/quorate-image.tar
export KURED_CONTRACT_IMAGE := $(CURDIR)/dist/kured-contract-image.tar

.DEFAULT_GOAL := help
.PHONY: help demo demo-loop demo-both demo-down test test-long fuzz faults mutants lint image prober-image kured-contract-image binary bench setup lab lab-build lab-down ready built ours

# Cargo names what it builds by the path inside the workspace and judges it by age, so in a target folder that several
# checkouts share an older checkout would get a newer one's code. Whoever comes after another checkout builds its own again.
ours:
	@mkdir -p $(CARGO_TARGET_DIR)
	@[ "$$(cat $(CARGO_TARGET_DIR)/.checkout 2>/dev/null)" = "$(CURDIR)" ] || \
	  { find src crates tests -name '*.rs' -exec touch {} + && echo "$(CURDIR)" >$(CARGO_TARGET_DIR)/.checkout; }

help:
	@sed -n 's/^## //p' $(MAKEFILE_LIST)

## make demo       a real cluster of three control plane nodes and a worker, upgraded under a prober; FROM= and TO= choose versions
demo: setup lab image prober-image
	$(LAB) build --version $(FROM) --version $(TO)
	LAB=$(LAB) PROBER=$(PROBER) FROM=$(FROM) TO=$(TO) scripts/demo

## make demo-loop  the same cluster upgraded by a shell loop, to be compared with
demo-loop: setup lab image prober-image
	$(LAB) build --version $(FROM) --version $(TO)
	LAB=$(LAB) PROBER=$(PROBER) FROM=$(FROM) TO=$(TO) scripts/demo loop

## make demo-both  the loop and then quorate, on one machine in one run: the account names their ratio
demo-both: demo-loop
	$(MAKE) --no-print-directory demo

## make demo-down  takes it away; nothing is left
demo-down: lab-down

## make test       all tests, with real etcd, apiservers and machines, and lint beside them
test: setup lab-down ready
	scripts/test
	$(LAB) down

## make test-long  what takes longer than make test may
test-long: setup lab-down ready
	PROPTEST_CASES=10000 QUORATE_LONG=1 scripts/test --include-ignored
	scripts/fuzz

## make fuzz       damaged snapshots for the snapshot reader, ten minutes of them (SECONDS=)
fuzz: setup
	scripts/fuzz $(or $(SECONDS),600)

# What machines are made of, and what they test: each has long stretches of one core.
ready: lab
	@$(MAKE) --no-print-directory -j2 lab-build built

# What is tested and what tests, both at the same time: much of linking the first takes one core. They share no folder.
built: setup ours
	@cargo test --locked --workspace --no-run & tests=$$!; \
	$(MAKE) --no-print-directory image kured-contract-image; image=$$?; \
	wait $$tests && exit $$image

## make faults     upgrades from FROM= under faults drawn from a seed (ROUNDS=, SEED=, FIRST=), or named ones (FAULTS=), ended by BY=; kept in docs/faults.jsonl
faults: setup lab-down ready
	FAULT_RECORD=1 FAULT_ROUNDS=$(or $(ROUNDS),1) FAULT_SEED=$(or $(SEED),$(shell date +%s)) FAULT_FIRST=$(FIRST) FAULTS="$(FAULTS)" \
	  FAULT_BY=$(BY) FAULT_FROM=$(FROM) \
	  scripts/test --only machines::faults::faults_drawn_from_a_seed_are_survived
	$(LAB) down

## make mutants    breaks the rule in every known way: each time a test must fail, or the list say why none can
mutants: setup lab-build
	scripts/mutants

## make lint       format, clippy, licences, bans, sources; advisories where their database can be fetched
lint: setup ours
	scripts/lint

## make image      dist/quorate and dist/quorate-image.tar (localhost/quorate:dev)
image: binary lab
	$(LAB) image --user 65532:65532 \
	  --file etc/ssl/certs/ca-certificates.crt=dist/ca-certificates.crt \
	  --file usr/share/doc/quorate/LICENSE=LICENSE \
	  --file usr/share/zoneinfo=dist/zoneinfo \
	  localhost/quorate:dev dist/quorate-image.tar dist/quorate

## make prober-image  the demo's prober as an image, never shipped
prober-image: ours lab
	RUSTFLAGS="$(STATIC)" cargo build --release --locked --target $(TARGET) -p lab --bin prober
	@mkdir -p dist
	$(LAB) image localhost/quorate-prober:dev dist/quorate-prober-image.tar $(PROBER)

## make kured-contract-image  the stand-in for kured that machines' tests reboot with, never shipped
kured-contract-image: ours lab
	RUSTFLAGS="$(STATIC)" cargo build --release --locked --target $(TARGET) -p lab --bin kured_contract
	@mkdir -p dist
	$(LAB) image localhost/kured-contract:dev dist/kured-contract-image.tar $(CARGO_TARGET_DIR)/$(TARGET)/release/kured_contract

## make bench      beside the incumbents, in one run: time, CPU, memory
bench: setup lab-build image
	RUSTFLAGS="$(STATIC)" cargo build --release --locked --target $(TARGET) -p quorate --example drain --example backup_host --example sentinel_host
	LAB=$(LAB) DRAIN=$(CARGO_TARGET_DIR)/$(TARGET)/release/examples/drain \
	  BACKUP_HOST=$(CARGO_TARGET_DIR)/$(TARGET)/release/examples/backup_host \
	  SENTINEL_HOST=$(CARGO_TARGET_DIR)/$(TARGET)/release/examples/sentinel_host scripts/bench

## make setup      Debian packages, and Go, that building and testing take
setup:
	@scripts/setup

## make binary     dist/quorate alone
binary: setup ours
	RUSTFLAGS="$(STATIC)" cargo rustc --release --locked --target $(TARGET) -p quorate --bin quorate -- $(PACKED)
	@mkdir -p dist
	@cmp -s $(CARGO_TARGET_DIR)/$(TARGET)/release/quorate dist/quorate || cp $(CARGO_TARGET_DIR)/$(TARGET)/release/quorate dist/quorate
	@cp /etc/ssl/certs/ca-certificates.crt dist/ca-certificates.crt
	@rm -rf dist/zoneinfo && cp -rL /usr/share/zoneinfo dist/zoneinfo
	@find dist/zoneinfo -type f ! -path 'dist/zoneinfo/[A-Z]*' -delete && find dist/zoneinfo -depth -type d -empty -delete
	@bytes=$$(stat -c %s dist/quorate); echo "dist/quorate: $$bytes bytes of at most $(MAX_BYTES)"; \
	  [ $$bytes -le $(MAX_BYTES) ] || { echo "error: dist/quorate is larger than $(MAX_BYTES) bytes, the promise of README.md" >&2; exit 1; }

lab: setup ours
	cargo build --locked -p lab --bin lab

# A run that was killed may have left machines; they would be in the way.
## make lab-down   takes away machines that were left
lab-down: lab
	$(LAB) down

## make lab-build  real binaries and machine images for tests and demo, once; takes minutes
lab-build: lab
	$(LAB) build
