#!/usr/bin/env bash
# Checks this machine's GPU: tests/gpu/check.sh --out DIR [--only PART,PART] [--rehearse]. `make gpu-check` calls it.
#
# With a .venv (make setup) it uses that. Without one, as on a borrowed machine without a network, it takes PYTHON
# (python3), which must bring torch, transformers and triton along, and installs the wheels of .whl (make gpu-wheels)
# beside it into a folder that goes when it ends.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

if [ -z "${PYTHON:-}" ] && [ -x .venv/bin/python ]; then
    python=.venv/bin/python
    site=
else
    python=${PYTHON:-python3}
    site=$(mktemp -d)
    trap 'rm -rf "$site"' EXIT
    if ! compgen -G '.whl/*.whl' > /dev/null; then
        echo "tests/gpu/check.sh: neither .venv nor .whl/*.whl is here; run make setup, or make gpu-wheels elsewhere" >&2
        exit 2
    fi
    "$python" -m pip install -q --disable-pip-version-check --no-index --no-deps --no-compile \
        --target "$site" .whl/*.whl
fi
export PYTHONPATH="${site:+$site:}$PWD${PYTHONPATH:+:$PYTHONPATH}"
"$python" -m tests.gpu.check "$@"
