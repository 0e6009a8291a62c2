#!/bin/sh
# Queues one of each kind: ./enqueue.sh <client_id>
set -eu
client=$1
port=${REDIS_PORT:-7279}

# Queues a task: its fields and their values in turn.
add() {
    redis-cli -p "$port" XADD mg:tasks '*' "$@" >/dev/null
}

# Queues a command, and waits for what HTTP would answer.
ask() {
    reply_to=mg:reply:$(od -An -N16 -tx1 /dev/urandom | tr -d ' ')
    add command "$1" reply_to "$reply_to"
    redis-cli -p "$port" --raw BLPOP "$reply_to" 10 | sed 1d
}

send() {
    printf '{"op":"sendToUid","uid":42,"message":"%s"}' "$1"
}

# Bind, then push: two commands in one batch, in this order. When it is answered, both are done.
bind='{"op":"bindUid","client_id":"'$client'","uid":42}'
ask '{"op":"batch","commands":['"$bind,$(send bound)"']}'

# Now, in two seconds, and at a time (unix ms).
add command "$(send now)"
add command "$(send later)" delay 2000
add command "$(send 'on time')" at "$(($(redis-cli -p "$port" --raw TIME | head -1) * 1000 + 1000))"

# Twice with one id: once.
add command "$(send once)" id "order-17-paid-$client"
add command "$(send once)" id "order-17-paid-$client"

# Every second, until it is cancelled: in four seconds, by a task.
add command "$(send tick)" id tick cron '* * * * * *' tz Europe/Berlin
add command '{"op":"cancelTask","id":"tick"}' delay 4000

# A task that waits is cancelled by its id.
add command "$(send never)" id "never-$client" delay 1500
ask '{"op":"cancelTask","id":"never-'"$client"'"}' >/dev/null

# Work for the application itself: POSTed to WEBHOOK_URL as event `task`, at most three times.
add webhook '{"mail":"welcome","to":42}' max_attempts 3
