# srum-ds as an image: CUDA, the locked packages, `srum-ds`, `make train` and `make test`, without root.
#
#   docker build --tag srum .
#   docker run --rm --gpus all --ipc=host --volume "$PWD/runs:/home/srum/srum-ds/runs" srum srum-ds train tiny
#   docker run --rm --gpus all --ipc=host --volume "$PWD/runs:/home/srum/srum-ds/runs" srum make train
#
# Without --gpus the same commands run on the CPU. docs/sharing.md says more.

# torch's CUDA build brings its own libraries; of the image come nvcc and the headers that DeepSpeed compiles its ops
# with, of the same major version as requirements.lock (cuda-toolkit).
ARG CUDA_IMAGE=nvidia/cuda:13.0.2-devel-ubuntu24.04
FROM ${CUDA_IMAGE}

SHELL ["/bin/bash", "-o", "pipefail", "-c"]

# Versions are the distribution's: what computes is pinned by requirements.lock.
# hadolint ignore=DL3008
RUN apt-get update \
    && DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends \
        g++ git make openssh-client pdsh python3 python3-dev python3-venv \
    && rm -rf /var/lib/apt/lists/*

# The numbers of the host's user, so that what is written to a mounted folder is theirs:
# --build-arg USER_ID="$(id -u)" --build-arg GROUP_ID="$(id -g)".
ARG USER_ID=10001
ARG GROUP_ID=10001
RUN groupadd --non-unique --gid "${GROUP_ID}" srum \
    && useradd --non-unique --create-home --no-log-init --uid "${USER_ID}" --gid "${GROUP_ID}" srum
USER ${USER_ID}:${GROUP_ID}
WORKDIR /home/srum/srum-ds

# Before the sources: a change of these takes no new download.
COPY --chown=srum:srum requirements.lock ./
RUN python3 -m venv .venv \
    && .venv/bin/python -m pip install --no-cache-dir --disable-pip-version-check --require-hashes \
        --requirement requirements.lock

COPY --chown=srum:srum . .
# All is there already but srum-ds itself and DeepSpeed's CPU op: they are made here, once.
RUN make setup && mkdir -p runs

ENV PATH=/home/srum/srum-ds/.venv/bin:${PATH} \
    PYTHONUNBUFFERED=1
CMD ["srum-ds", "train", "tiny"]
