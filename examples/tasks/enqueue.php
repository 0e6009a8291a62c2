<?php

// Queues one of each kind: php enqueue.php <client_id>

$client = $argv[1];
$redis = new Redis(); // phpredis
$redis->connect('127.0.0.1', (int) (getenv('REDIS_PORT') ?: 7279));
// With Predis these lines instead, and below xadd('mg:tasks', $fields) for xAdd('mg:tasks', '*', $fields):
// require 'vendor/autoload.php';
// $redis = new Predis\Client('tcp://127.0.0.1:7279', ['read_write_timeout' => 20]);

/** Queues a command; the fields beside it are those of the table in docs/tasks.md. */
function add(array $command, array $more = []): void
{
    global $redis;
    $fields = ['command' => json_encode($command, JSON_UNESCAPED_UNICODE)] + $more;
    $redis->xAdd('mg:tasks', '*', $fields);
}

/** Queues a command and waits for what HTTP would answer. */
function ask(array $command): array
{
    global $redis;
    $replyTo = 'mg:reply:' . bin2hex(random_bytes(16));
    add($command, ['reply_to' => $replyTo]);
    $answer = $redis->blPop($replyTo, 10);
    if (!$answer) {
        throw new RuntimeException('no node has answered; the task stays in the queue');
    }
    return json_decode($answer[1], true);
}

$send = fn ($message) => ['op' => 'sendToUid', 'uid' => 42, 'message' => $message];

// Bind, then push: two commands in one batch, in this order. When it is answered, both are done.
$bind = ['op' => 'bindUid', 'client_id' => $client, 'uid' => 42];
echo json_encode(ask(['op' => 'batch', 'commands' => [$bind, $send('bound')]])), "\n";

// Now, in two seconds, and at a time (unix ms).
add($send('now'));
add($send('later'), ['delay' => 2000]);
[$seconds, $micros] = $redis->time();
add($send('on time'), ['at' => $seconds * 1000 + intdiv($micros, 1000) + 1000]);

// Twice with one id: once.
for ($i = 0; $i < 2; $i++) {
    add($send('once'), ['id' => "order-17-paid-$client"]);
}

// Every second, until it is cancelled: in four seconds, by a task.
add($send('tick'), ['id' => 'tick', 'cron' => '* * * * * *', 'tz' => 'Europe/Berlin']);
add(['op' => 'cancelTask', 'id' => 'tick'], ['delay' => 4000]);

// A task that waits is cancelled by its id.
add($send('never'), ['id' => "never-$client", 'delay' => 1500]);
ask(['op' => 'cancelTask', 'id' => "never-$client"]);

// Work for the application itself: POSTed to WEBHOOK_URL as event `task`, at most three times.
$mail = json_encode(['mail' => 'welcome', 'to' => 42]);
$redis->xAdd('mg:tasks', '*', ['webhook' => $mail, 'max_attempts' => 3]);
