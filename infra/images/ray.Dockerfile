# Ray head and workers: the whole library with torch and faiss, for CPUs or, with COMPUTE=gpu, for NVIDIA's GPUs.
# Build from the repository root: docker build -f infra/images/ray.Dockerfile -t damage-atlas-ray .
FROM python:3.11-slim-bookworm

# PyTorch's own index of CPU builds makes this image some 5 GB smaller: without it pip takes the CUDA build.
ARG PIP_EXTRA_INDEX_URL=""
ENV PYTHONUNBUFFERED=1 \
    PIP_NO_CACHE_DIR=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_ROOT_USER_ACTION=ignore \
    RAY_USAGE_STATS_ENABLED=0

RUN apt-get update \
    && apt-get install -y --no-install-recommends libgomp1 \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --uid 10001 --create-home atlas \
    && install -d -o atlas -g atlas /opt/damage-atlas

# Dependencies first, against empty packages: a change of code does not install them again.
WORKDIR /opt/damage-atlas/source
ARG COMPUTE=cpu
COPY pyproject.toml requirements.lock infra/images/gpu.txt ./
RUN mkdir -p lib/damage_atlas workers \
    && touch README.md lib/damage_atlas/__init__.py workers/__init__.py \
    && pip install -c requirements.lock -c gpu.txt ".[$COMPUTE,ray]" \
    && pip uninstall -y damage-atlas && rm -rf lib workers build

COPY lib/damage_atlas lib/damage_atlas
COPY workers workers
RUN pip install --no-deps . && rm -rf build
COPY infra/images/ready.py /opt/damage-atlas/ready.py

# By number, so that Kubernetes can see that it is not root.
USER 10001
WORKDIR /opt/damage-atlas
CMD ["ray", "--version"]
