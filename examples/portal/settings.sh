# shellcheck shell=bash disable=SC2034,SC2154
# Sourced by examples/run: what the nodes are told for the portal, and what there is to open.

export MOONGATE_INIT_MESSAGE='{"type":"SERVER_INIT","client_id":"{client_id}","message":"Welcome to the shop.","timestamp":{timestamp}}'

# The page's own heartbeat is what keeps its connection: where PING_DATA is set, only messages are signs of life. A page that says
# nothing is asked after 55 to 83 s, and cut 28 s later.
export MOONGATE_PING_INTERVAL=${MOONGATE_PING_INTERVAL:-55s} MOONGATE_PING_DATA='{"type":"ping"}'

# The application hears who comes and goes, and of its nightly job; it is not asked who is let in.
export MOONGATE_EVENTS=webhook:bound+unbound+close
export MOONGATE_WEBHOOK_URL=$app/hook
MOONGATE_WEBHOOK_SECRET=${MOONGATE_WEBHOOK_SECRET:-$(od -An -N32 -tx1 /dev/urandom | tr -d ' \n')}
export MOONGATE_WEBHOOK_SECRET

pages="  Open the shop as a customer, at node 1   $app/
  and as one of the staff, at node 2       ${app/127.0.0.1/localhost}/?node=2
                                           (another name of this machine, so another cookie)"
modules=pdo_sqlite
