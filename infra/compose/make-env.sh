#!/bin/sh
# Write the secrets of docker-compose.yml into .env, each made up here and now; what is set already stays.
# Usage: infra/compose/make-env.sh [FILE]
set -eu
file=${1:-$(dirname "$0")/../../.env}
umask 077
touch "$file"
chmod 600 "$file"

hex() { od -An -N"$1" -tx1 /dev/urandom | tr -d ' \n'; }
fernet_key() { head -c 32 /dev/urandom | base64 | tr '+/' '-_'; }
ensure() { grep -q "^$1=." "$file" || printf '%s=%s\n' "$1" "$2" >>"$file"; }

# Volumes keep their names when the checkout moves.
ensure COMPOSE_PROJECT_NAME damage-atlas
ensure POSTGRES_PASSWORD "$(hex 24)"
ensure AIRFLOW_ADMIN_PASSWORD "$(hex 12)"
ensure AIRFLOW_FERNET_KEY "$(fernet_key)"
ensure AIRFLOW_API_SECRET_KEY "$(hex 32)"
ensure AIRFLOW_JWT_SECRET "$(hex 64)"
ensure GRAFANA_ADMIN_PASSWORD "$(hex 12)"
ensure RAY_AUTH_TOKEN "$(hex 32)"
# Not called AWS_*: variables of the shell win over .env, and keys of a real account must not slip in.
ensure S3_ACCESS_KEY "$(hex 10)"
ensure S3_SECRET_KEY "$(hex 20)"
