# `make help` lists the targets.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
SEEDS ?= 2000
SYSTEM ?= systems/minimal-system-x86_64.morph
# tests that need no real sources: so many files of them at a time, for most wait for something
AT_ONCE ?= 3
QUICK := -n $(AT_ONCE) --dist loadfile --no-loadscope-reorder -m 'not system'
# what other targets test
OTHERS := --ignore=tests/deploy --ignore=tests/from_source

# Debian packages: what building needs, what disk images need, what deploying needs,
# what the tests need besides.
DEBIAN_BUILD := bubblewrap ca-certificates git python3-venv xz-utils
DEBIAN_IMAGE := dosfstools e2fsprogs libarchive13t64 mtools qemu-utils syslinux syslinux-common
DEBIAN_DEPLOY := $(DEBIAN_IMAGE) gcc libc6-dev libvirt-dev openssh-client pkgconf python3-dev
DEBIAN_TEST := $(DEBIAN_DEPLOY) binutils busybox-static chromium-headless-shell diffoscope-minimal faketime fish fuse3 iproute2 libnginx-mod-http-dav-ext make nginx-light \
	ninja-build openssh-server qemu-system-x86 qemu-user strace util-linux zsh zstd

# What the tests of deployment need besides: a VM host, and machines without a VM.
DEBIAN_VMHOST := dnsmasq-base iproute2 libvirt-clients libvirt-daemon-driver-qemu \
	libvirt-daemon-system openssh-server openssl systemd-container

SUDO := $(if $(filter 0,$(shell id -u)),,sudo)
# install the Debian packages that are missing, and touch nothing if none is
define debian
	@missing=""; for package in $(1); do \
	  dpkg-query -W -f '$${Status}' $$package 2>/dev/null | grep -q 'ok installed' \
	    || missing="$$missing $$package"; done; \
	if [ -n "$$missing" ]; then echo "installing Debian packages:$$missing"; \
	  $(SUDO) apt-get -q update && DEBIAN_FRONTEND=noninteractive $(SUDO) apt-get -q install -y \
	    --no-install-recommends $$missing; fi
endef

# say how to type the program by itself, to those who cannot
define on_path
command -v fabric-initiator >/dev/null || \
  echo "To type fabric-initiator without its folder:  . $(VENV)/bin/activate"
endef

.PHONY: help
help: ## list the targets
	@awk -F ':.*## ' '/^##@ / {printf "\n%s\n", substr($$0, 5)} \
	  /^[a-z-]+:.*## / {printf "  make %-12s  %s\n", $$1, $$2}' $(MAKEFILE_LIST)

##@ Set up

$(BIN)/fabric-initiator: pyproject.toml constraints.txt
	@command -v $(PYTHON) >/dev/null || { echo "no $(PYTHON) on this machine"; exit 1; }
	$(call debian,$(DEBIAN_BUILD))
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable .
	@touch $@

.PHONY: setup
setup: $(BIN)/fabric-initiator ## install the programs into .venv, and missing Debian packages

$(VENV)/has-dev: pyproject.toml constraints.txt | $(BIN)/fabric-initiator
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@

.PHONY: setup-dev
setup-dev: $(VENV)/has-dev ## also checkers and pytest, to work on the code

# (Not the program: what checks roles brings it, too.)
$(VENV)/has-deploy: pyproject.toml constraints.txt | $(BIN)/fabric-initiator
	$(call debian,$(DEBIAN_DEPLOY))
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[deploy]'
	@touch $@

.PHONY: setup-deploy
setup-deploy: $(VENV)/has-deploy ## also Ansible and libvirt, to deploy a farm

.PHONY: setup-test
setup-test: setup-deploy setup-dev
	$(call debian,$(DEBIAN_TEST))

##@ Build

.PHONY: build
build: setup ## build the example system (SYSTEM=FILE: another)
	$(BIN)/fabric-initiator build $(SYSTEM)
	@$(on_path)

.PHONY: image
image: build ## build it, and make a bootable disk: build/system.img
	$(call debian,$(DEBIAN_IMAGE))
	mkdir -p build
	$(BIN)/fabric-initiator image $(SYSTEM) --to build/system.img --force
	@$(on_path)

##@ Check and test

.PHONY: check
check: setup-deploy setup-dev ## verify format, lint, types, import contracts, YAML, roles
	@$(MAKE) --no-print-directory --jobs 2 --output-sync check-code check-roles

.PHONY: check-code
check-code:
	$(BIN)/ruff format --check fabric tests bench ansible docs
	$(BIN)/ruff check fabric tests bench ansible docs
	$(BIN)/mypy
	$(BIN)/mypy $(addprefix -p ansible_collections.distbuild.fabric.plugins.,modules module_utils)
	$(BIN)/lint-imports --no-cache

.PHONY: check-roles
check-roles:
	$(BIN)/yamllint --strict .
	PATH=$(CURDIR)/$(BIN):$$PATH vmhost=none ANSIBLE_INVENTORY=clusters/minimal-system.morph \
	  $(BIN)/ansible-lint --offline --strict

.PHONY: test
test: setup-test check ## check, and all tests but those of test-deploy (TESTS=FILES: these)
ifdef TESTS
	$(BIN)/pytest $(OTHERS) $(TESTS)
else
	$(BIN)/pytest $(OTHERS) $(QUICK)
	$(BIN)/pytest $(OTHERS) -n 2 --dist loadfile -m system
endif

.PHONY: setup-test-deploy
setup-test-deploy: setup-test
	$(call debian,$(DEBIAN_VMHOST))

.PHONY: test-deploy
# Machines are build-system-debian-x86_64, unless BUILD_SYSTEM=MORPH names another system.
test-deploy: setup-test-deploy ## test deployments to virtual machines and containers; needs root
	$(BIN)/pytest -n 2 tests/deploy $(TESTS)

.PHONY: quick
quick: setup-test ## test everything that needs no real sources: about a quarter of an hour
	$(BIN)/pytest $(QUICK) $(TESTS)

##@ Break and measure

.PHONY: simulate
simulate: setup-dev ## play SEEDS=N new simulated disasters (FIRST=SEED: from that one on)
	PYTHONPATH=tests/kit $(BIN)/python tests/simulation --seeds $(SEEDS) $(if $(FIRST),--first $(FIRST))

.PHONY: mutants
mutants: setup-dev ## remove one repair after another; the simulator must notice, in SEEDS=N
	PYTHONPATH=tests/kit $(BIN)/python tests/simulation/mutants.py --seeds $(SEEDS)

.PHONY: chaos
chaos: setup-test ## break a real farm FAULTS=N times (SEED=S, PACE=SECONDS, PARTS=all); root
	FAULTS='$(FAULTS)' SEED='$(SEED)' PACE='$(PACE)' PARTS='$(PARTS)' $(BIN)/pytest --timeout 0 tests/chaos

.PHONY: execution-system
execution-system: setup-test ## build the example system on an execution engine, and compare its digests
	EXECUTION=all $(BIN)/pytest --timeout 0 tests/systems/test_execution.py

.PHONY: bench
bench: setup-test ## run the benchmarks: ratios against something measured in the same run
	@for bench in $(filter-out %_kit.py %_least.py,$(wildcard bench/*.py)); do echo "== $$bench"; $(BIN)/python $$bench || exit 1; done

TOOLCHAIN := systems/toolchain-again-x86_64.morph
.PHONY: certify-toolchain
certify-toolchain: setup ## build the toolchain from source, then by itself, and compare: many hours
	$(BIN)/fabric-initiator build $(TOOLCHAIN)
	$(BIN)/fabric-initiator show $(TOOLCHAIN) --json | $(BIN)/python tests/systems/again.py
	$(BIN)/fabric-initiator checkout $(TOOLCHAIN) --to build/toolchain --force
	$(BIN)/python tests/systems/leaks.py build/toolchain

.PHONY: test-from-source
test-from-source: setup-test ## build all systems from source, search them and start them: many hours
	$(BIN)/pytest tests/from_source/test_from_source.py

.PHONY: closed-loop
closed-loop: setup-test-deploy ## build base-system on a farm of machines from source, and compare it: hours
	$(BIN)/pytest -s tests/from_source/test_closed_loop.py

##@ Maintain

.PHONY: digests
digests: setup ## build SYSTEM, and write the SHA-256 of each artifact beside it
	$(BIN)/fabric-initiator build $(SYSTEM) --write-digests

.PHONY: reference
reference: setup ## write the tables of docs/reference from the code
	$(BIN)/python docs/reference.py

.PHONY: protocol
protocol: ## make the code of fabric/reapi/protocol from its .proto files
	$(PYTHON) -m venv build/protocol
	build/protocol/bin/pip install --quiet --constraint constraints.txt grpcio-tools==1.85.1 googleapis-common-protos
	@site=$$(build/protocol/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))'); \
	build/protocol/bin/python -m grpc_tools.protoc -I. -I$$site \
	  -Igoogle/longrunning/operations.proto=$$site/google/longrunning/operations_proto.proto \
	  --python_out=. --pyi_out=. fabric/reapi/protocol/*.proto

.PHONY: constraints
constraints: ## pin the newest versions that pip finds
	rm -rf build/constraints && $(PYTHON) -m venv build/constraints
	build/constraints/bin/pip install --quiet '.[dev]'
	{ sed -n '/^#/p' constraints.txt; build/constraints/bin/pip freeze --exclude distbuild; } \
	  > build/constraints.txt && mv build/constraints.txt constraints.txt

.PHONY: clean
clean: ## remove files that make and builds left in this folder, but not the cache
	rm -rf $(VENV) build build-step-*.log .build-step-logs-*.part .mypy_cache .pytest_cache .ruff_cache .hypothesis *.egg-info
