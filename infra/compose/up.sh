#!/bin/sh
# Build the images, start docker-compose.yml and wait until every service is healthy. Safe to repeat.
# Settings in .env or the environment: AIRFLOW_PORT, IMAGES_FOLDER, RAY_HEAD_CPUS, RAY_WORKER_CPUS, COMPOSE_FILE
# (further compose files, separated by colons), RAY_NODE_MEMORY, COMPOSE_PROFILES=gpu, COMPOSE_PROFILES=metrics with
# AIRFLOW_METRICS=True, GRAFANA_PORT.
set -eu
limit_s=600
cd "$(dirname "$0")/../.."

if docker compose version >/dev/null 2>&1; then
    compose="docker compose"
elif command -v docker-compose >/dev/null; then
    compose="docker-compose"
else
    echo "Docker Compose is missing. Install Docker with its compose plugin, then run this again." >&2
    exit 2
fi

infra/compose/make-env.sh
in_env() { sed -n "s/^$1=//p" .env; }
case ",${COMPOSE_PROFILES:-$(in_env COMPOSE_PROFILES)}," in
*,metrics,*) metrics=yes ;;
*) metrics=no ;;
esac
if [ "$metrics" = yes ] && [ "${AIRFLOW_METRICS:-$(in_env AIRFLOW_METRICS)}" != True ]; then
    echo "The profile metrics needs AIRFLOW_METRICS=True in .env, or Airflow sends no figures." >&2
    exit 2
fi
# Docker would make missing folders itself, owned by root.
mkdir -p dags infra/archives infra/airflow/plugins var/images
# The containers run as a user of their own: a checkout made under a strict umask would be closed to them.
chmod -R a+rX dags infra lib workers

$compose build
# On an overloaded host Ray gives up on its own start after 30 s, its container tries again, and docker-compose 1.29 waits
# for no second try.
tries=1
until $compose up -d; do
    [ "$tries" -lt 3 ] || exit 1
    tries=$((tries + 1))
    sleep 30
done

waited_s=0
while :; do
    # Name and state of every container that has a health check and has not passed it.
    waiting=$($compose ps -q -a | xargs docker inspect --format \
        '{{with .State.Health}}{{if ne .Status "healthy"}}{{$.Name}} {{.Status}}{{end}}{{end}}' | sed '/^$/d; s#^/##')
    [ -n "$waiting" ] || break
    if [ "$waited_s" -ge "$limit_s" ]; then
        printf 'Not healthy after %s s:\n%s\nLook at: %s logs SERVICE\n' "$limit_s" "$waiting" "$compose" >&2
        exit 1
    fi
    sleep 5
    waited_s=$((waited_s + 5))
done
port=$(in_env AIRFLOW_PORT)
echo "Airflow: http://localhost:${AIRFLOW_PORT:-${port:-8080}}  user admin, password: AIRFLOW_ADMIN_PASSWORD in .env"
if [ "$metrics" = yes ]; then
    port=$(in_env GRAFANA_PORT)
    echo "Grafana: http://localhost:${GRAFANA_PORT:-${port:-3000}}  user admin, password: GRAFANA_ADMIN_PASSWORD in .env"
fi
