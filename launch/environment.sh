# Read by the scripts beside it, with $root set. Finds the Python that has DeepSpeed and sets $python.

if command -v deepspeed > /dev/null && [ -x "$(dirname "$(command -v deepspeed)")/python" ]; then
    python="$(dirname "$(command -v deepspeed)")/python"
elif [ -x "$root/.venv/bin/deepspeed" ]; then
    python="$root/.venv/bin/python"
else
    echo "srum-ds: no DeepSpeed on the path and none in $root/.venv: run 'make setup' first." >&2
    exit 2
fi
export PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}"

# Prints how many GPUs this process may use. In CUDA_VISIBLE_DEVICES the first entry that names no GPU (-1, NoDevFiles,
# none) hides all behind it, as the driver reads it.
visible_gpus() {
    if [ -n "${CUDA_VISIBLE_DEVICES+set}" ]; then
        echo "$CUDA_VISIBLE_DEVICES" | tr -d '[:blank:]' | tr ',' '\n' |
            awk '!/^([0-9]+|GPU-.+|MIG-.+)$/ { exit } { count++ } END { print count + 0 }'
    elif command -v nvidia-smi > /dev/null; then
        nvidia-smi -L 2> /dev/null | grep -c '^GPU ' || true
    else
        echo 0
    fi
}

# threads_per_rank RANKS: the share of this process's cores that each of RANKS ranks gets.
threads_per_rank() {
    local share=$(($(nproc) / $1))
    echo $((share > 0 ? share : 1))
}
