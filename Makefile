# `make` lists what there is to do. Everything runs in .venv, which is made on first use.
PYTHON ?= $(shell test -x /usr/bin/python3 && echo /usr/bin/python3 || echo python3)
BIN    := .venv/bin
STAMP  := .venv/installed
PYTEST := $(BIN)/python -m pytest -n auto --dist worksteal
PACKAGES := graphviz busybox-static runc strace docker.io skopeo umoci podman buildah docker-registry \
  iproute2 nftables passt slirp4netns \
  user-mode-linux thin-provisioning-tools e2fsprogs xfsprogs fuse3 git apparmor \
  golang-github-opencontainers-image-spec-dev golang-github-opencontainers-specs-dev uidmap

.DEFAULT_GOAL := help
.PHONY: help demo test check tangle back book serve bench wheel lock clean packages tests user-tests faults stress crashes

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 20

packages: # what Debian has to give
	@missing=; for p in $(PACKAGES) python3-venv; do \
	  dpkg -s $$p >/dev/null 2>&1 || missing="$$missing $$p"; done; \
	test -z "$$missing" || if [ `id -u` = 0 ]; then \
	  apt-get update -q && DEBIAN_FRONTEND=noninteractive \
	  apt-get install -y -q --no-install-recommends $$missing; \
	else echo "please install as root: apt-get install$$missing" >&2; exit 1; fi

$(STAMP): requirements.lock pyproject.toml | packages
	$(PYTHON) -m venv .venv
	$(BIN)/pip install -q --require-hashes -r requirements.lock
	$(BIN)/pip install -q --no-deps --no-build-isolation -e .
	@touch $@

demo: $(STAMP) ## replay the worked example: import, build, history, run
	$(BIN)/python -m minidocker.the_example

test: check tests user-tests book ## everything that CI does

check: $(STAMP) ## tangling, format, lint, types, imports between floors, spelling
	$(BIN)/python -m minidocker.tangle --check
	$(BIN)/ruff format --check minidocker tests bench
	$(BIN)/ruff check minidocker tests bench
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/codespell book/*.md README.md CONTRIBUTING.md CHANGELOG.md minidocker tests bench

tests: $(STAMP) ## the tests, as the user you are
	$(PYTEST)

faults: $(STAMP) ## kill, starve and cut off every command at every call: two hours on two cores
	MINIDOCKER_FAULTS=all unshare --mount --net sh -c \
	  'ip link set lo up && exec $(PYTEST) -q tests/faults tests/uml/test_breaking.py'

stress: $(STAMP) ## eight processes in one store at random, for a minute
	cd tests && unshare --mount ../$(BIN)/python -m faults.stress 60 8

crashes: $(STAMP) ## kill a guest's kernel twenty times in a build: four minutes
	MINIDOCKER_CRASHES=20 unshare --mount $(BIN)/python -m pytest -q -s tests/uml/test_crash.py

# A private mount shows the checkout to a user who could not reach its directory.
user-tests: $(STAMP) ## the tests that need no root, as an unprivileged user
	@if [ `id -u` = 0 ]; then mkdir -p /tmp/minidocker-user && chown 4242:4242 /tmp/minidocker-user && \
	  unshare --mount sh -c 'mount --bind . /mnt && cd /mnt && exec setpriv --reuid 4242 --regid 4242 \
	  --clear-groups env HOME=/tmp/minidocker-user XDG_DATA_HOME=/tmp/minidocker-user/data \
	  $(PYTEST) -p no:cacheprovider tests --ignore tests/book'; \
	status=$$?; rm -rf /tmp/minidocker-user; exit $$status; \
	else echo "not root: \`make tests\` already ran them unprivileged"; fi

tangle: $(STAMP) ## chapters -> modules
	$(BIN)/python -m minidocker.tangle

back: $(STAMP) ## modules -> chapters, formatted
	$(BIN)/ruff format -q minidocker && $(BIN)/python -m minidocker.tangle --back

# --all: a changed module must run again the chapters that import it.
book: $(STAMP) ## the book as HTML in _build/html, with real mounts, warnings are errors
	@rm -rf _build/html  # pages of chapters that have another name now
	@if [ `id -u` = 0 ]; then run=; else run="unshare --user --map-root-user --mount"; fi; \
	PATH="$(CURDIR)/$(BIN):$$PATH" MINIDOCKER_REAL=1 $$run $(BIN)/jupyter-book build . --all -W --keep-going
	MINIDOCKER_REAL=1 $(BIN)/python tests/book/built.py _build/html

serve: ## show the built book on http://127.0.0.1:8000
	$(PYTHON) -m http.server --bind 127.0.0.1 --directory _build/html 8000

bench: $(STAMP) ## speed, as ratios against runc and Docker in the same run
	$(BIN)/python -m bench

wheel: $(STAMP) ## the package in dist/, the same bytes whenever it is built
	SOURCE_DATE_EPOCH=`git log -1 --format=%ct 2>/dev/null || echo 1500000000` \
	  $(BIN)/pip wheel -q --no-deps --no-build-isolation -w dist .

lock: $(STAMP) ## compute requirements.lock anew
	$(BIN)/pip-compile -q --allow-unsafe --strip-extras --generate-hashes --no-emit-index-url \
	  --no-emit-find-links --no-emit-trusted-host -o requirements.lock requirements-dev.in

clean: ## remove what was made
	rm -rf _build .venv dist .*_cache .hypothesis
