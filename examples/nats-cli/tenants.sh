#!/bin/sh
# Tenants: one stream that holds the clockings of several tenants, made by JetStream itself. Those of the feeds stay as they are.
#
#   go run ./cmd/clockbridge demo           # in one terminal, from the top of the repository
#   sh examples/nats-cli/tenants.sh PROTIME_DEMO_CLOCKINGS [STREAM...]
#
# A stream of that name that is there already, as from the Go example, has to go first: nats stream rm ALL_CLOCKINGS
for stream; do
  set -- "$@" --source "$stream"
  shift
done
exec nats stream add ALL_CLOCKINGS "$@" --defaults
