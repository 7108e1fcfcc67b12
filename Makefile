# Every target makes .venv itself. PYTHON picks the interpreter.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test bench completions docs install clean

.venv/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	$(BIN)/python -m compileall -q ckpt_cli
	touch .venv/ready

install: .venv/ready

# Shows what a user sees, on a tree that real torch writes first.
demo: .venv/ready
	@rm -rf demo-tree
	$(BIN)/ckpt demo demo-tree
	$(BIN)/ckpt list ./demo-tree --format table
	$(BIN)/ckpt inspect meta base/d4 --root demo-tree --key model_config
	$(BIN)/ckpt inspect tensors base/d4 --root demo-tree --format table
	$(BIN)/ckpt inspect optim base/d4 --root demo-tree --format table
	$(BIN)/ckpt inspect diff base/d4/100 base/d4/150 --root demo-tree --format table
	$(BIN)/ckpt latest ./demo-tree
	$(BIN)/ckpt verify ./demo-tree --format table || true  # one bit of it is wrong, and one file missing
	$(BIN)/ckpt load-test mid/d4 --root demo-tree --format table
	$(BIN)/ckpt patch-config mid/d4 --root demo-tree --dry-run --format table
	$(BIN)/ckpt prune ./demo-tree --keep 1 --dry-run --format table
	$(BIN)/ckpt convert base/d6 --root demo-tree -o demo-tree/d6.safetensors --format table

test: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m pytest -n auto --dist loadfile

# Measures, and writes what it measured into docs/benchmarks.md; BENCH takes options, such as --large.
bench: .venv/ready
	$(BIN)/python benchmarks/write_page.py $(BENCH)

# Writes completions/ from the app's own commands and options.
completions: .venv/ready
	$(BIN)/python completions/write_scripts.py

# Writes into README.md and docs/ what the commands in them print.
docs: .venv/ready
	$(BIN)/python docs/write_pages.py

clean:
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .import_linter_cache build dist demo-tree
