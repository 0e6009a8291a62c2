<?php

// Bind, push, queue, and see who is online: php push.php <client_id>

$client = $argv[1];
$redis = new Redis(); // phpredis
$redis->connect('127.0.0.1', (int) (getenv('REDIS_PORT') ?: 7279), 5, null, 0, 20); // seconds: to connect, for an answer
// With Predis (2.0 or newer) these lines instead, and below xadd('mg:tasks', $fields) for xAdd('mg:tasks', '*', …):
// require 'vendor/autoload.php';
// $redis = new Predis\Client('tcp://127.0.0.1:7279', ['read_write_timeout' => 20]);

// Bind with certainty: by a queued task, and wait for its answer. After a bindUid that is only published, on mg:cmd,
// the next PUBLISH, on another channel, may come first, and finds nobody.
$bind = ['op' => 'batch', 'commands' => [
    ['op' => 'bindUid', 'client_id' => $client, 'uid' => 42],
    ['op' => 'joinGroup', 'client_id' => $client, 'group' => 'room-1'],
    ['op' => 'setSession', 'client_id' => $client, 'session' => ['name' => 'Ann']],
]];
$replyTo = 'mg:reply:' . bin2hex(random_bytes(16));
$redis->xAdd('mg:tasks', '*', ['command' => json_encode($bind), 'reply_to' => $replyTo]);
$reply = $redis->blPop($replyTo, 10);
if (!$reply) {
    throw new RuntimeException('no node has answered; the task stays in the queue');
}
if (array_column(json_decode($reply[1], true)['results'] ?? [], 'result') !== [true, true, true]) {
    throw new RuntimeException("not bound: $reply[1]");
}
echo "bound\n";

// To the uid: on how many nodes it is. 0 is nobody: store the message, or send a mail.
echo 'nodes ', $redis->publish('mg:uid:42', json_encode(['type' => 'mail', 'unread' => 3])), "\n";

// To the group, but not to the uid that is typing. To all of it is a plain PUBLISH on mg:group:room-1.
$message = ['type' => 'typing', 'uid' => 42];
$typing = ['op' => 'sendToGroup', 'group' => 'room-1', 'message' => $message, 'exclude_uid' => [42]];
$redis->publish('mg:cmd', json_encode($typing));

// In two seconds, whatever has become of this program by then.
$later = ['op' => 'sendToUid', 'uid' => 42, 'message' => 'later'];
$redis->xAdd('mg:tasks', '*', ['command' => json_encode($later), 'delay' => 2000]);

// Who is online: plain sets and hashes, to read and never to write.
echo 'online ', implode(' ', $redis->sMembers('mg:uid:42:clients')), "\n";
echo 'room-1 ', implode(' ', $redis->sMembers('mg:group:room-1:clients')), "\n";
echo 'session ', $redis->hGet("mg:client:$client", 'session'), "\n";
