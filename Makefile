# make demo: set up, grow a model from the embedded schoolbook, chat with it.   make test: set up and run every test.
# make test-engines: set up llama.cpp and vLLM in .venv-engines (20 minutes), and compare every family with them.
# make test-browser: set up Debian's chromium, playwright and axe-core, and drive the page with them.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install -q -c constraints.txt

.PHONY: demo test test-engines test-browser check bench clean

demo: $(VENV)/.core
	$(BIN)/mengya run recipes/quickstart.toml --out runs/quickstart
	@echo "report 报告: runs/quickstart/evaluate/report.html"
	$(BIN)/mengya chat runs/quickstart/dpo --temperature 0 --ask "你是谁？" --ask "法国的首都是哪里？" --ask "37+45等于多少？"
	@echo "chat in a browser 在浏览器里聊天: $(BIN)/pip install -c constraints.txt -e '.[ui]' && $(BIN)/mengya ui runs/quickstart/dpo"

test: $(VENV)/.dev
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

test-engines: $(VENV)/.dev
	$(BIN)/python bench/engines.py
	$(BIN)/python -m pytest -q tests/test_export_gguf.py --engines .venv-engines/llama_cpp/bin/python

test-browser: $(VENV)/.dev
	@command -v chromium > /dev/null || apt-get install -y chromium fonts-noto-cjk
	$(PIP) playwright
	@test -d $(VENV)/node_modules/axe-core || npm install --silent --prefix $(VENV) axe-core@4
	$(BIN)/python -m pytest -q tests/serve/web/test_browser*.py

check: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -q tests/test_layers.py tests/test_recipes.py tests/test_docs.py

bench: $(VENV)/.dev
	$(BIN)/python bench/train_step.py
	$(BIN)/python bench/moe_step.py
	$(BIN)/python bench/survival.py

$(VENV)/.core: pyproject.toml constraints.txt
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing into $(VENV) (a few minutes the first time) 正在安装"
	$(PIP) torch
	$(PIP) -e .
	@touch $@

$(VENV)/.dev: $(VENV)/.core
	$(PIP) -e '.[dev]'
	@touch $@

clean:
	rm -rf $(VENV) .venv-engines build src/*.egg-info
