# make demo     from a fresh Debian 12 to a guest that runs, in ./.demo
# make test     everything that tests need, then all tests but the long ones
# make soak     the demo from nothing, and all tests again and again
# make check-demo   the demo on a minimal Debian 12, as root and as a user with sudo for apt-get alone, each twice in its time
# make build, install, bench, lint, clean
#
# install puts the product below DESTDIR/HPVM_ROOT (both empty: the machine itself).

CARGO ?= cargo
DESTDIR ?=
HPVM_ROOT ?=
SOAK_SECONDS ?= 3600
# Where cargo builds.
TARGET = $(or $(CARGO_TARGET_DIR),target)
IMAGE_MAKER = $(TARGET)/debug/image-maker

# rustup's place, which a shell without login does not have in PATH.
export PATH := $(PATH):$(HOME)/.cargo/bin

COMMANDS = hpvmcreate hpvmmodify hpvmclone hpvmremove hpvmstart hpvmstop hpvmstatus hpvmconsole hpvmdevmgmt hpvmhostrdev hpvmnet gvsdmgr
PRODUCT = $(DESTDIR)$(HPVM_ROOT)/opt/hpvm
COMMON = $(PRODUCT)/guest-images/common
UNITS = $(DESTDIR)$(HPVM_ROOT)/usr/lib/systemd/system
RULES = $(DESTDIR)$(HPVM_ROOT)/usr/lib/udev/rules.d
PRISTINE_NVRAM ?= /usr/share/OVMF/OVMF_VARS_4M.fd
OPTION_ROM = .cache/images/mptsas1068.rom

# What install-built copies, and how.
BUILT ?= $(TARGET)/release
INSTALL_PROGRAM ?= install -m 755

.PHONY: build build-demo demo-programs demo-disk install install-built demo check-demo test guests tools images programs bench soak lint clean

# hpvm has the C library built in: a command's time is mostly its start, and loading libraries a fifth of that.
# Its relocations are packed, since each page of them is read then.
STATIC = -C target-feature=+crt-static -C relocation-model=pie -C link-arg=-Wl,-z,pack-relative-relocs

BESIDE = --package hpvm-keeper --package hpvm-app --package hpvm-vswitchd --package hpvm-nat --package hpvm-reserve

# hpvm-linker puts the functions side by side that commands call, and warns where it cannot.
build:
	$(CARGO) build --release --locked $(BESIDE) --package hpvm-linker
	$(CARGO) rustc --release --locked --package hpvm-cli --bin hpvm -- $(STATIC) -W linker-messages -C linker="$(TARGET)/release/hpvm-linker"

# All that the demo runs, in target/demo: in less than half the time, and commands that take a little longer. The disk of its
# guest is made meanwhile, which mostly waits for the network, and tells at its end what it did.
build-demo:
	$(CARGO) build --profile demo --locked --package xtask
	$(MAKE) --no-print-directory --jobs=2 demo-programs demo-disk

demo-programs:
	$(CARGO) build --profile demo --locked $(BESIDE) --package hpvm-cli

demo-disk:
	@mkdir -p .cache
	@$(TARGET)/demo/xtask demo-image >.cache/demo-disk.log 2>&1 || { cat .cache/demo-disk.log; exit 1; }
	@cat .cache/demo-disk.log

install: build install-built

install-built:
	install -d $(PRODUCT)/bin $(PRODUCT)/lbin $(COMMON) $(PRODUCT)/share/man $(PRODUCT)/share/completions $(PRODUCT)/share/doc/schema $(UNITS) $(RULES)
	$(INSTALL_PROGRAM) $(BUILT)/hpvm $(PRODUCT)/bin/
	for command in $(COMMANDS); do ln -sf hpvm $(PRODUCT)/bin/$$command || exit 1; done
	$(INSTALL_PROGRAM) $(BUILT)/hpvmkeeper $(BUILT)/hpvmapp $(BUILT)/hpvmnetd $(BUILT)/hpvmnat $(BUILT)/hpvmreserve $(PRODUCT)/lbin/
	install -m 644 $(PRISTINE_NVRAM) $(COMMON)/nvram
	if [ -e $(OPTION_ROM) ]; then install -m 644 $(OPTION_ROM) $(OPTION_ROM).copyright $(COMMON)/; fi
	$(PRODUCT)/bin/hpvm man $(PRODUCT)/share/man
	$(PRODUCT)/bin/hpvm completions $(PRODUCT)/share/completions
	install -m 644 README.md docs/*.md $(PRODUCT)/share/doc/
	install -m 644 docs/schema/*.json $(PRODUCT)/share/doc/schema/
	install -m 644 packaging/systemd/*.service packaging/systemd/*.path $(UNITS)/
	install -m 644 packaging/udev/90-hpvm.rules $(RULES)/

demo:
	scripts/demo

check-demo:
	scripts/check-fresh
	scripts/check-fresh --user

# What the tests boot, long ones too.
guests: images
	$(IMAGE_MAKER) guest-host

# The link stays what it is when the build of all programs puts another in its place.
tools:
	scripts/install-deps test
	$(CARGO) build --locked --package xtask
	ln -f $(TARGET)/debug/xtask $(IMAGE_MAKER)

# Each is instant when the cache has it.
images: tools
	$(IMAGE_MAKER) test-guest
	$(IMAGE_MAKER) test-guest --kernel full
	$(IMAGE_MAKER) test-guest --agent
	$(IMAGE_MAKER) option-rom
	$(IMAGE_MAKER) scsi-target

# The programs too, which the end-to-end tests of crate hpvm-tests run from target/debug.
programs: tools
	$(CARGO) build --workspace --bins --tests --locked

# Images and programs are made at once, so that no processor waits: one unpacks packages while the other compiles.
test:
	$(CARGO) fetch --locked
	$(MAKE) --jobs=2 images programs
	$(CARGO) test --workspace --locked

bench:
	scripts/install-deps bench
	scripts/install-deps bench-switch
	$(MAKE) build
	$(CARGO) xtask bench

# All end-to-end tests again and again, long ones too, with ten times as many moments drawn by lot, until the time is over or
# one fails. Before that what takes packages from the network: the demo on a fresh Debian.
soak: guests check-demo
	$(CARGO) build --workspace --bins --locked
	HPVM_FUZZ_SECONDS=60 $(CARGO) test --locked --package hpvm-vswitch --package hpvm-nat
	end=$$(($$(date +%s) + $(SOAK_SECONDS))); rounds=0; \
	while [ $$(date +%s) -lt $$end ]; do \
		HPVM_SOAK=1 $(CARGO) test --locked --package hpvm-tests -- --include-ignored || exit 1; \
		rounds=$$((rounds + 1)); echo "soak: $$rounds rounds passed"; \
	done

lint:
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets --locked -- -D warnings
	$(CARGO) xtask tidy

clean:
	scripts/demo remove
	$(CARGO) clean
	rm -rf .cache
