# The Airflow image with the DAGs and plugins of this checkout, for Kubernetes; docker-compose.yml mounts them instead.
# So a rollout has one version of everything, and no pod needs a way to a git server.
# Build from the repository root, after the Airflow image:
# docker build -f infra/images/dags.Dockerfile -t damage-atlas-airflow:0.1.0 .
ARG AIRFLOW_IMAGE=damage-atlas-airflow:local
FROM ${AIRFLOW_IMAGE}

COPY dags /opt/damage-atlas/dags
COPY infra/airflow /opt/damage-atlas/infra/airflow
