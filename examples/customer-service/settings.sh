# shellcheck shell=bash disable=SC2034,SC2154
# Sourced by examples/run: what the nodes are told for the customer service, and what there is to open.

# Who may come is asked of the application, who comes and goes is told it, and tasks are brought to it.
export MOONGATE_EVENTS=webhook:connect+bound+unbound MOONGATE_WEBHOOK_URL=$app/webhook
MOONGATE_WEBHOOK_SECRET=${MOONGATE_WEBHOOK_SECRET:-$(od -An -N32 -tx1 /dev/urandom | tr -d ' \n')}
export MOONGATE_WEBHOOK_SECRET
# The application says `init` itself, when the client is bound; one that did not come so far is closed, and comes again.
export MOONGATE_INIT_MESSAGE='' MOONGATE_UNAUTHED_TIMEOUT=5s
# Cookies decide who comes: so no pages but ours.
export MOONGATE_ALLOWED_ORIGINS=$app,${app/127.0.0.1/localhost}

pages="  Come as a visitor   $app/
  work as an agent    $app/agent
  and at node 2       ${app/127.0.0.1/localhost}/?node=2 and ${app/127.0.0.1/localhost}/agent?node=2
                      (another name of this machine, so other cookies: two visitors, two agents in one browser)"
modules="redis pdo_sqlite"
