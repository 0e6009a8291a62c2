<?php

// The portal of a shop: customers order, staff move the orders on. It was here before, with its own login and its own
// database; what was added so that pages show things at once is marked: `// push` on a line, or a part of its own.

require __DIR__ . '/Push.php'; // push

define('SECRET', setting('APP_SECRET'));
define('DATA', setting('DATA')); // where the database is
const USERS = [
    1 => ['name' => 'Mei', 'role' => 'staff'],
    42 => ['name' => 'Ann', 'role' => 'customer'],
    43 => ['name' => 'Bob', 'role' => 'customer'],
];
const LAST_STEP = 3; // 0 received, 1 packed, 2 sent, 3 delivered
const TABLES = '
    CREATE TABLE IF NOT EXISTS orders
        (id INTEGER PRIMARY KEY, uid TEXT, item TEXT, step INTEGER DEFAULT 0, at INTEGER, unread INTEGER DEFAULT 0);
    CREATE TABLE IF NOT EXISTS notices (id TEXT PRIMARY KEY, text TEXT, at INTEGER);
    CREATE TABLE IF NOT EXISTS reports
        (id TEXT PRIMARY KEY, at INTEGER, step0 INTEGER, step1 INTEGER, step2 INTEGER, step3 INTEGER);
    CREATE TABLE IF NOT EXISTS presence (uid TEXT PRIMARY KEY, seq INTEGER, online INTEGER, seen INTEGER DEFAULT 0);
';

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

function db(string $sql, array $values = []): PDOStatement
{
    static $pdo;
    if (!$pdo) {
        $pdo = new PDO('sqlite:' . DATA . '/portal.db', null, null, [PDO::ATTR_DEFAULT_FETCH_MODE => PDO::FETCH_ASSOC]);
        $pdo->exec(TABLES);
    }
    $statement = $pdo->prepare($sql);
    foreach ($values as $place => $value) {
        $statement->bindValue($place + 1, $value, is_int($value) ? PDO::PARAM_INT : PDO::PARAM_STR);
    }
    $statement->execute();
    return $statement;
}

// ---- Who asks, and for what

/** The user whom the cookie names, if it was made here. */
function user(string $role = ''): array
{
    preg_match('/\bportal=(\d+)\.(\w+)/', $_SERVER['HTTP_COOKIE'] ?? '', $is);
    if (!$is || !hash_equals(sign($is[1]), $is[2]) || !isset(USERS[$is[1]])) {
        throw new Refused('log in, please', 401);
    }
    $user = ['uid' => $is[1]] + USERS[$is[1]];
    if ($role && $user['role'] !== $role) {
        throw new Refused("only for $role", 403);
    }
    return $user;
}

function sign(string $uid): string
{
    return hash_hmac('sha256', "user $uid", SECRET);
}

function set_cookie(string $value, string $more = ''): void
{
    header("Set-Cookie: portal=$value; Path=/; HttpOnly; SameSite=Strict$more");
}

function text(array $in, string $name): string
{
    $text = is_string($in[$name] ?? null) ? trim($in[$name]) : '';
    if ($text === '' || strlen($text) > 300) {
        throw new Refused($name, 400);
    }
    return $text;
}

function number(array $in, string $name, int $least, int $most): int
{
    $number = $in[$name] ?? null;
    if (!is_int($number) || $number < $least || $number > $most) {
        throw new Refused($name, 400);
    }
    return $number;
}

// ---- What pages ask

/** A user is believed here; a real application asks for a password. */
function login(array $in): array
{
    $uid = text($in, 'uid');
    $user = USERS[$uid] ?? throw new Refused('uid', 403);
    set_cookie("$uid." . sign($uid));
    if ($user['role'] === 'staff') {
        schedule(); // push
    }
    return ['ok' => true];
}

/** Ends his connections, too: those of pages that are logged in elsewhere come back. */
function logout(): array
{
    $me = user();
    set_cookie('', '; Max-Age=0');
    push()->close($me['uid']); // push
    return ['ok' => true];
}

/** All that a page shows. It asks when it is loaded, and whenever it was bound: what was pushed before that it has missed. */
function home(): array
{
    $me = user();
    $home = ['me' => $me, 'notices' => db('SELECT * FROM notices ORDER BY at DESC LIMIT 20')->fetchAll()];
    if ($me['role'] === 'customer') {
        return $home + ['orders' => db('SELECT * FROM orders WHERE uid = ? ORDER BY id DESC LIMIT 200', [$me['uid']])->fetchAll()];
    }
    return $home + [
        'orders' => db('SELECT * FROM orders ORDER BY id DESC LIMIT 200')->fetchAll(),
        'users' => USERS,
        'presence' => db('SELECT * FROM presence')->fetchAll(),
        'reports' => db('SELECT * FROM reports ORDER BY at DESC LIMIT 5')->fetchAll(),
    ];
}

function order(array $in): array
{
    $me = user('customer');
    $sql = 'INSERT INTO orders (uid, item, at) VALUES (?, ?, ?) RETURNING *';
    $order = db($sql, [$me['uid'], text($in, 'item'), time()])->fetch();
    push()->toUser($me['uid'], ['type' => 'order', 'order' => $order]); // push
    push()->toGroup('staff', ['type' => 'order', 'order' => $order]); // push
    return ['order' => $order];
}

/** An order moves on, and never back, however often and by however many it is clicked. */
function step(array $in): array
{
    user('staff');
    [$id, $step] = [number($in, 'id', 1, PHP_INT_MAX), number($in, 'step', 1, LAST_STEP)];
    // Unread until somebody was told, or it would not be when this program ends in between.
    $sql = 'UPDATE orders SET step = ?, unread = 1 WHERE id = ? AND step < ? RETURNING *';
    $order = db($sql, [$step, $id, $step])->fetch();
    if (!$order) {
        throw new Refused('it has been done already', 409);
    }
    $told = push()->toUser($order['uid'], ['type' => 'order', 'order' => $order]); // push
    push()->toGroup('staff', ['type' => 'order', 'order' => $order]); // push
    if ($told) { // push; nobody was there: he sees it at his next login, and here is the place for a mail
        db('UPDATE orders SET unread = 0 WHERE id = ? AND step = ?', [$id, $step]);
    }
    return ['order' => $order, 'told' => $told > 0];
}

/** He has seen what is new, and his other pages need not show it as new any longer. */
function read(): array
{
    $me = user();
    db('UPDATE orders SET unread = 0 WHERE uid = ?', [$me['uid']]);
    push()->toUser($me['uid'], ['type' => 'read']); // push
    return ['ok' => true];
}

/** Something will happen: it is announced now, and said once more when it is due. */
function announce(array $in): array
{
    user('staff');
    $seconds = number($in, 'seconds', 1, 7 * 86400);
    $notice = ['id' => bin2hex(random_bytes(8)), 'text' => text($in, 'text'), 'at' => time() + $seconds];
    // push: when this fails, nothing is promised
    push()->later("notice-$notice[id]", $seconds, ['type' => 'due', 'notice' => $notice]);
    db('INSERT INTO notices VALUES (?, ?, ?)', array_values($notice));
    push()->toAll(['type' => 'notice', 'notice' => $notice]); // push
    return ['notice' => $notice];
}

function withdraw(array $in): array
{
    user('staff');
    $id = text($in, 'id');
    push()->cancel("notice-$id"); // push: false once it was said, which is no mistake
    db('DELETE FROM notices WHERE id = ?', [$id]);
    push()->toAll(['type' => 'withdrawn', 'id' => $id]); // push
    return ['id' => $id];
}

// ---- Added for push, from here to HTTP

function push(): Push
{
    static $push;
    return $push ??= new Push(explode(' ', getenv('APIS')), (string) getenv('MOONGATE_API_TOKEN'));
}

/** A page has connected. Whose it is says the cookie, and nothing that stands in the request. */
function bind(array $in): array
{
    $me = user();
    push()->bind(text($in, 'client_id'), $me['uid'], $me['role'], ['type' => 'PORTAL_BIND', 'uid' => $me['uid']]);
    return ['ok' => true];
}

/** The nightly report. A real application arranges it when it is deployed; to do it again changes nothing. */
function schedule(): void
{
    try {
        push()->every('nightly-report', getenv('REPORT_CRON') ?: '0 2 * * *', 'Asia/Shanghai', ['job' => 'report']);
    } catch (RuntimeException $error) {
        error_log('no nightly report: ' . $error->getMessage());
    }
}

/** What nodes tell, some of it twice. What staff are to hear of it goes back in the answer. */
function hook(string $body): array
{
    $secret = getenv('MOONGATE_WEBHOOK_SECRET') ?: throw new Refused('MOONGATE_WEBHOOK_SECRET is not set', 500);
    $event = Push::event($body, $_SERVER['HTTP_MOONGATE_SIGNATURE'] ?? '', $secret) ?? throw new Refused('signature', 403);
    $message = match ($event['event']) {
        'bound', 'unbound' => presence($event),
        'close' => seen($event),
        'task' => report($event),
        default => null,
    };
    return ['commands' => $message ? [['op' => 'sendToGroup', 'group' => 'staff', 'message' => $message]] : []];
}

/** Two nodes may overtake each other: of one uid the highest seq is the truth. */
function presence(array $event): ?array
{
    $known = ['uid' => $event['uid'], 'seq' => $event['seq'], 'online' => (int) ($event['event'] === 'bound' || !$event['last'])];
    $sql = 'INSERT INTO presence (uid, seq, online) VALUES (?, ?, ?)
            ON CONFLICT DO UPDATE SET seq = excluded.seq, online = excluded.online WHERE excluded.seq >= seq';
    return db($sql, array_values($known))->rowCount() ? ['type' => 'presence'] + $known : null;
}

function seen(array $event): array
{
    db('UPDATE presence SET seen = MAX(seen, ?) WHERE uid = ?', [$event['at'], $event['uid']]);
    return ['type' => 'seen', 'uid' => $event['uid'], 'at' => $event['at']];
}

/** The id is that of this night: a second attempt finds what the first has made. */
function report(array $event): array
{
    $sql = 'INSERT OR IGNORE INTO reports SELECT ?, ?, SUM(step = 0), SUM(step = 1), SUM(step = 2), SUM(step = 3) FROM orders';
    db($sql, [$event['id'], $event['at']]);
    return ['type' => 'report', 'report' => db('SELECT * FROM reports WHERE id = ?', [$event['id']])->fetch()];
}

// ---- HTTP

function json($value): string
{
    return json_encode($value, JSON_UNESCAPED_UNICODE | JSON_THROW_ON_ERROR);
}

[$asked, $body] = [$_SERVER['REQUEST_METHOD'] . parse_url($_SERVER['REQUEST_URI'], PHP_URL_PATH), file_get_contents('php://input')];
if ($asked === 'GET/') {
    header('Content-Type: text/html; charset=utf-8');
    echo str_replace('__NODES__', htmlspecialchars(getenv('NODES')), file_get_contents(__DIR__ . '/index.html')); // push
    return;
}
const FILES = [
    'GET/style.css' => ['text/css', '/../style.css'],
    'GET/moongate.js' => ['text/javascript', '/../../clients/js/dist/moongate.classic.js'], // push
];
if (isset(FILES[$asked])) {
    header('Content-Type: ' . FILES[$asked][0]);
    readfile(__DIR__ . FILES[$asked][1]);
    return;
}
try {
    $in = json_decode($body, true);
    $answer = match ($asked) {
        'GET/home' => home(),
        'POST/hook' => hook($body), // push
        'POST/login', 'POST/logout', 'POST/bind', 'POST/order', 'POST/step', 'POST/read', 'POST/announce', 'POST/withdraw' =>
            substr($asked, 5)(is_array($in) ? $in : throw new Refused('this is no JSON', 400)),
        default => throw new Refused('no such page', 404),
    };
} catch (PDOException $mistake) {
    throw $mistake; // PHP says 500
} catch (Refused | RuntimeException $refused) { // ours, or the gateway's // push
    http_response_code($refused->getCode());
    $answer = ['error' => $refused->getMessage()];
}
header('Content-Type: application/json');
echo json($answer);
