# Airflow without torch or Ray: DAGs, the bridge to Ray's Jobs API, and the library's base (contracts, spec, store).
# Build from the repository root: docker build -f infra/images/airflow.Dockerfile -t damage-atlas-airflow .
FROM python:3.11-slim-bookworm

# A further package index, where one is needed behind a firewall.
ARG PIP_EXTRA_INDEX_URL=""
ENV PYTHONUNBUFFERED=1 \
    PIP_NO_CACHE_DIR=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_ROOT_USER_ACTION=ignore \
    AIRFLOW_HOME=/opt/airflow

# The folders exist with their owner, so that volumes mounted on them start out writable.
RUN useradd --uid 10001 --create-home atlas \
    && install -d -o atlas -g atlas /opt/airflow /opt/airflow/logs /opt/airflow/login /opt/damage-atlas

# Dependencies first, against empty packages: a change of code does not install them again.
WORKDIR /opt/damage-atlas/source
COPY pyproject.toml requirements.lock infra/images/database-drivers.txt ./
COPY lib/airflow_ray_jobs/pyproject.toml lib/airflow_ray_jobs/
RUN mkdir -p lib/damage_atlas workers \
    && touch README.md lib/damage_atlas/__init__.py workers/__init__.py \
    && touch lib/airflow_ray_jobs/README.md lib/airflow_ray_jobs/__init__.py \
    && pip install -c requirements.lock -r database-drivers.txt '.[airflow]' ./lib/airflow_ray_jobs \
    && pip uninstall -y damage-atlas airflow-ray-jobs && rm -rf lib workers build

COPY lib lib
COPY workers workers
RUN pip install --no-deps . ./lib/airflow_ray_jobs && rm -rf build
COPY infra/images/ready.py /opt/damage-atlas/ready.py

# By number, so that Kubernetes can see that it is not root.
USER 10001
WORKDIR /opt/damage-atlas
CMD ["airflow", "version"]
