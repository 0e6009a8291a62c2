<?php

// The application of the chat room; app.py is the same in Python. Both run behind examples/run.
//
// It knows its users by a cookie, and never believes a uid from a page. Changes and questions go to a node of Moongate
// by HTTP, messages through Redis.

define('SECRET', setting('APP_SECRET'));
define('NODES', getenv('NODES') ?: 'ws://127.0.0.1:7272/ ws://127.0.0.1:7282/'); // where pages connect
define('APIS', getenv('APIS') ?: 'http://127.0.0.1:7273 http://127.0.0.1:7283'); // where this program asks
const ROOMS = ['1', '2', '3'];

/** A setting that must be there. An empty answer with 200 would be a yes to whoever asks. */
function setting(string $name): string
{
    if (!getenv($name)) {
        http_response_code(500);
        exit("$name is not set");
    }
    return getenv($name);
}

/** What is not done, with the HTTP status for its code. */
class Refused extends Exception
{
}

// ---- Moongate

/** Has a node carry out commands, in order. Where one cannot, the next is asked: to do these things twice harms nobody. */
function batch(array $commands): array
{
    $header = ['Content-Type: application/json', 'Authorization: Bearer ' . getenv('MOONGATE_API_TOKEN')];
    $post = ['method' => 'POST', 'header' => $header, 'content' => json(['commands' => $commands]), 'timeout' => 5];
    foreach (explode(' ', APIS) as $api) {
        $answer = @file_get_contents("$api/api/batch", false, stream_context_create(['http' => $post]));
        $results = json_decode((string) $answer, true)['results'] ?? [['error' => ['code' => 'no answer', 'status' => 503]]];
        $error = array_column($results, 'error')[0] ?? null;
        if (!$error) {
            return array_column($results, 'result');
        }
        if ($error['status'] < 500) {
            break;
        }
    }
    throw new Refused($error['code'], $error['status']);
}

/** Says something to a group or a uid; on how many nodes somebody hears it. */
function publish(string $target, array $message): int
{
    $redis = new Redis(); // phpredis
    $redis->connect('127.0.0.1', (int) (getenv('REDIS_PORT') ?: 7279), 5, null, 0, 5);
    return $redis->publish("mg:$target", json($message));
}

// ---- Who asks, and for what

function sign(string $text): string
{
    return hash_hmac('sha256', $text, SECRET);
}

/** The user whom the cookie names, if it was made here. */
function user(): array
{
    preg_match('/\bchat=(\w+)\.(\w+)/', $_SERVER['HTTP_COOKIE'] ?? '', $is);
    if (!$is || !hash_equals(sign("user $is[1]"), $is[2])) {
        throw new Refused('log in, please', 401);
    }
    return json_decode(hex2bin($is[1]), true);
}

function set_cookie(string $value, string $more = ''): void
{
    header("Set-Cookie: chat=$value; Path=/; HttpOnly; SameSite=Strict$more");
}

/** A text of the request, of at most so many bytes. */
function text(array $in, string $name, int $most): string
{
    $text = is_string($in[$name] ?? null) ? trim($in[$name]) : '';
    if ($text === '' || strlen($text) > $most) {
        throw new Refused($name, 400);
    }
    return $text;
}

/** The group of the room that the page names. A real application asks here whether this user may enter it. */
function room(array $in): string
{
    if (!in_array($in['room_id'] ?? null, ROOMS, true)) {
        throw new Refused('room_id', 403);
    }
    return 'room-' . $in['room_id'];
}

// ---- What pages ask

/** A name is believed here; a real application asks for a password, and has long had a cookie of its own. */
function login(array $in): array
{
    $me = ['uid' => bin2hex(random_bytes(8)), 'uname' => text($in, 'uname', 60), 'avatar' => text($in, 'avatar', 32)];
    $payload = bin2hex(json($me));
    set_cookie("$payload." . sign("user $payload"));
    return ['ok' => true];
}

/** A page has connected: its client gets a uid, a room and a session, and the room hears of it. */
function bind(array $in): array
{
    [$me, $group, $client] = [user(), room($in), text($in, 'client_id', 20)];
    // What others call this client. They must not know its id, or they could bind it themselves.
    $tab = substr(sign("tab $client"), 0, 16);
    $session = $me + ['room_id' => $in['room_id'], 'tab' => $tab];
    $results = batch([
        ['op' => 'bindUid', 'client_id' => $client, 'uid' => $me['uid']],
        ['op' => 'joinGroup', 'client_id' => $client, 'group' => $group],
        ['op' => 'setSession', 'client_id' => $client, 'session' => $session],
        ['op' => 'getClientSessionsByGroup', 'group' => $group],
    ]);
    // Only now: a page that is gone already was refused above, and nobody would hear that it left.
    publish("group:$group", ['type' => 'login'] + $session);
    return ['me' => $session, 'users' => array_values($results[3])];
}

/** To the room, or to one user. */
function say(array $in): array
{
    [$me, $group] = [user(), room($in)];
    $message = ['type' => 'say', 'text' => text($in, 'text', 3000)] + $me;
    if (!isset($in['to'])) {
        publish("group:$group", $message);
        return ['ok' => true];
    }
    $to = text($in, 'to', 64);
    $message['to'] = $to;
    if (!publish("uid:$to", $message)) {
        throw new Refused('offline', 404); // the moment to store it, or to send a mail
    }
    // The echo: it stands on all tabs of the one who said it.
    if ($to !== $me['uid']) {
        publish("uid:$me[uid]", $message);
    }
    return ['ok' => true];
}

/** A cookie that is gone ends no socket: they are closed, on all tabs. */
function logout(array $in): array
{
    $me = user();
    set_cookie('', '; Max-Age=0');
    batch([['op' => 'closeUid', 'uid' => $me['uid']]]);
    return ['ok' => true];
}

// ---- HTTP

function json(array $value): string
{
    return json_encode($value, JSON_UNESCAPED_UNICODE | JSON_THROW_ON_ERROR);
}

[$method, $path] = [$_SERVER['REQUEST_METHOD'], parse_url($_SERVER['REQUEST_URI'], PHP_URL_PATH)];
if ($method === 'GET' && $path === '/') {
    header('Content-Type: text/html; charset=utf-8');
    echo str_replace('__NODES__', htmlspecialchars(NODES), file_get_contents(__DIR__ . '/index.html'));
    return;
}
const FILES = [
    '/moongate.js' => ['text/javascript', '/../../clients/js/dist/moongate.classic.js'],
    '/style.css' => ['text/css', '/../style.css'],
];
if ($method === 'GET' && isset(FILES[$path])) {
    header('Content-Type: ' . FILES[$path][0]);
    readfile(__DIR__ . FILES[$path][1]);
    return;
}
try {
    if ($method !== 'POST' || !in_array($path, ['/login', '/bind', '/say', '/logout'], true)) {
        throw new Refused('no such page', 404);
    }
    $in = json_decode(file_get_contents('php://input'), true);
    if (!is_array($in)) {
        throw new Refused('this is no JSON', 400);
    }
    $answer = substr($path, 1)($in);
} catch (Refused $refused) {
    http_response_code($refused->getCode());
    $answer = ['error' => $refused->getMessage()];
} catch (RedisException $error) {
    http_response_code(503);
    $answer = ['error' => 'Redis does not answer'];
}
header('Content-Type: application/json');
echo json($answer);
