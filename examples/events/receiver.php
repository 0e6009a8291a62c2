<?php

// Hears what clients do, by webhook: PHP_CLI_SERVER_WORKERS=4 php -S 127.0.0.1:8000 receiver.php

$secret = getenv('MOONGATE_WEBHOOK_SECRET') ?: 'secret';
$body = file_get_contents('php://input');
preg_match('/^t=(\d+),v1=(\w+)$/', $_SERVER['HTTP_MOONGATE_SIGNATURE'] ?? '', $is) || $is = ['', '0', ''];
$signed = hash_equals(hash_hmac('sha256', "$is[1].$body", $secret), $is[2]) && abs(time() - $is[1]) <= 300;

$event = $signed ? json_decode($body, true) : ['event' => 'forged'];
$commands = [];
$say = fn ($message) => ['op' => 'sendToClient', 'client_id' => $event['client_id'], 'message' => $message];
if (!$signed) {
    http_response_code(400);
} elseif ($event['event'] === 'connect') {
    $name = $event['query']['name'] ?? '';
    if ($name === '') { // a real application looks at a cookie or a token here
        http_response_code(403);
    } else {
        $commands = [['op' => 'bindUid', 'client_id' => $event['client_id'], 'uid' => $name], $say("welcome, $name")];
    }
} elseif ($event['event'] === 'message' && isset($event['data'])) {
    $commands = [$say('you said: ' . $event['data'])];
} else {
    error_log($event['event'] . ' ' . json_encode($event['payload'] ?? $event['uid'], JSON_UNESCAPED_UNICODE));
}
header('Content-Type: application/json');
echo json_encode(['commands' => $commands]);
