#!/bin/sh
# Durable: a consumer that JetStream remembers by name. Started again, it goes on where it was.
#
#   go run ./cmd/clockbridge demo           # in one terminal, from the top of the repository
#   sh examples/nats-cli/durable.sh         # in another
#
# Each message is acknowledged when it was printed; with one on its way at a time, none overtakes it.
nats consumer info PROTIME_DEMO_CLOCKINGS payroll-cli >/dev/null 2>&1 ||
  nats consumer add PROTIME_DEMO_CLOCKINGS payroll-cli --pull --deliver all --ack explicit --max-pending 1 --defaults || exit
while nats consumer next PROTIME_DEMO_CLOCKINGS payroll-cli --timeout 1h; do :; done
