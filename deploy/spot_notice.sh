#!/usr/bin/env bash
# Waits until the cloud wants this spot instance back (AWS and Google Cloud say it 120 and 30 s
# before), and tells Ray, so that training saves its state in time:
#
#   RAY_AUTH_MODE=token bash spot_notice.sh HEAD:6379
#
# The metadata address can only be reached from the instance itself.
set -euo pipefail
head=${1:?the address of the head, HOST:PORT}
metadata=${METADATA:-http://169.254.169.254}
aws=$metadata/latest
google=$metadata/computeMetadata/v1/instance/preempted

taken_back() {
    local token
    if token=$(curl -sf -m 2 -X PUT -H 'X-aws-ec2-metadata-token-ttl-seconds: 60' "$aws/api/token"); then
        curl -sf -m 2 -H "X-aws-ec2-metadata-token: $token" "$aws/meta-data/spot/instance-action" >/dev/null
    else
        [[ $(curl -sf -m 2 -H 'Metadata-Flavor: Google' "$google") == TRUE ]]
    fi
}

exec 9>"${TMPDIR:-/tmp}/spot_notice.lock"
flock -n 9 || exit 0 # one runs already
until taken_back; do
    sleep "${EVERY_SECONDS:-5}"
done
# Without the node's id, the command would first have to start a driver here, which can hang.
node=$(tr '\0' '\n' <"/proc/$(pgrep -xo raylet)/cmdline" | sed -n 's/^--node_id=//p')
exec ray drain-node --address "$head" --node-id "$node" --reason DRAIN_NODE_REASON_PREEMPTION \
    --reason-message 'the spot instance is taken back' --deadline-remaining-seconds 110
