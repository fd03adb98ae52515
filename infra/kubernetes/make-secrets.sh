#!/bin/sh
# Make the secrets `ray` and `airflow` in the namespace damage-atlas, each value made up here and now but the database's
# address, and print Airflow's password. What exists already stays, and is an error.
# Usage: DATABASE_URL=postgresql+psycopg2://USER:PASSWORD@HOST/NAME infra/kubernetes/make-secrets.sh [OPTION OF KUBECTL ...]
set -eu
: "${DATABASE_URL:?the address of the PostgreSQL database of Airflow}"

hex() { od -An -N"$1" -tx1 /dev/urandom | tr -d ' \n'; }
fernet_key() { head -c 32 /dev/urandom | base64 | tr '+/' '-_'; }
# By standard input: arguments of a command are seen by everybody on this machine.
create() { kubectl --namespace damage-atlas create secret generic "$@" --from-env-file=/dev/stdin; }

token=$(hex 32)
password=$(hex 12)
# KubeRay's name for the key of a token.
printf 'auth_token=%s\n' "$token" | create ray "$@"
create airflow "$@" <<END
connection=$DATABASE_URL
fernet-key=$(fernet_key)
api-secret-key=$(hex 32)
jwt-secret=$(hex 64)
admin-password=$password
ray-connection={"conn_type": "ray", "host": "ray-head-svc", "port": 8265, "password": "$token"}
END
echo "Airflow: user admin, password $password" >&2
