#!/usr/bin/env bash
# Starts MLflow's server with a login, from what is in the environment (compose.yaml,
# kubernetes.yaml).
set -euo pipefail
: "${POSTGRES_PASSWORD:?}" "${ARTIFACTS:?}" "${MLFLOW_ALLOWED_HOSTS:?}"
: "${MLFLOW_AUTH_ADMIN_PASSWORD:?}" "${MLFLOW_FLASK_SERVER_SECRET_KEY:?}"
umask 077
# MLflow would take an empty address for the store's, and find no store there; without one it is AWS.
[[ -n ${MLFLOW_S3_ENDPOINT_URL:-} ]] || unset MLFLOW_S3_ENDPOINT_URL

host=${POSTGRES_HOST:-database}
password=$(python3 -c 'import os, urllib.parse; print(urllib.parse.quote(os.environ["POSTGRES_PASSWORD"], safe=""))')
database="postgresql+psycopg2://mlflow:$password@$host:${POSTGRES_PORT:-5432}/mlflow"

# Passwords go into files and the environment, never into arguments, which every process can read.
cat >"$PWD/auth.ini" <<INI
[mlflow]
default_permission = READ
database_uri = ${database//%/%%}
admin_username = admin
admin_password = ${MLFLOW_AUTH_ADMIN_PASSWORD//%/%%}
authorization_function = mlflow.server.auth:authenticate_request_basic_auth
INI
export MLFLOW_AUTH_CONFIG_PATH="$PWD/auth.ini"
export MLFLOW_BACKEND_STORE_URI=$database
export MLFLOW_ARTIFACTS_DESTINATION=$ARTIFACTS

exec mlflow server --app-name basic-auth --host "${LISTEN:-0.0.0.0}" --port "${PORT:-5000}" \
    --serve-artifacts --allowed-hosts "$MLFLOW_ALLOWED_HOSTS"
