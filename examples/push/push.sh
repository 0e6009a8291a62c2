#!/bin/sh
# Bind, push, queue, and see who is online: ./push.sh <client_id>
set -eu
client=$1

redis() {
    redis-cli -p "${REDIS_PORT:-7279}" --raw "$@"
}

# Bind with certainty: by a queued task, and wait for its answer. After a bindUid that is only published, on mg:cmd,
# the next PUBLISH, on another channel, may come first, and finds nobody.
bind='{"op":"batch","commands":[
    {"op":"bindUid","client_id":"'$client'","uid":42},
    {"op":"joinGroup","client_id":"'$client'","group":"room-1"},
    {"op":"setSession","client_id":"'$client'","session":{"name":"Ann"}}
]}'
reply_to=mg:reply:$(od -An -N16 -tx1 /dev/urandom | tr -d ' ')
redis XADD mg:tasks '*' command "$bind" reply_to "$reply_to" >/dev/null
reply=$(redis BLPOP "$reply_to" 10 | sed 1d)
case $reply in
    '') echo 'no node has answered; the task stays in the queue' >&2; exit 1 ;;
    '{"results":[{"result":true},{"result":true},{"result":true}]}') echo bound ;;
    *) echo "not bound: $reply" >&2; exit 1 ;;
esac

# To the uid: on how many nodes it is. 0 is nobody: store the message, or send a mail.
echo "nodes $(redis PUBLISH mg:uid:42 '{"type":"mail","unread":3}')"

# To the group, but not to the uid that is typing. To all of it is a plain PUBLISH on mg:group:room-1.
message='{"type":"typing","uid":42}'
redis PUBLISH mg:cmd '{"op":"sendToGroup","group":"room-1","message":'"$message"',"exclude_uid":[42]}' >/dev/null

# In two seconds, whatever has become of this program by then.
redis XADD mg:tasks '*' command '{"op":"sendToUid","uid":42,"message":"later"}' delay 2000 >/dev/null

# Who is online: plain sets and hashes, to read and never to write.
echo "online $(redis SMEMBERS mg:uid:42:clients | paste -sd ' ' -)"
echo "room-1 $(redis SMEMBERS mg:group:room-1:clients | paste -sd ' ' -)"
echo "session $(redis HGET "mg:client:$client" session)"
