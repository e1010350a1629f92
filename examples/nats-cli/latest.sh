#!/bin/sh
# Latest: the present state of every clocking, and then each change as it comes.
#
#   go run ./cmd/clockbridge demo           # in one terminal, from the top of the repository
#   sh examples/nats-cli/latest.sh          # in another
exec nats sub 'protime.demo.clockings.*' --stream PROTIME_DEMO_CLOCKINGS --last-per-subject
