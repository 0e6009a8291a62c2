<?php

// The application of the customer service. It runs behind examples/run customer-service.
//
// What lasts stands in a database: who there is, who talks with whom, what was said. Moongate tells the pages. They may
// miss what is pushed, as they ask for what they have not: when they connect, and when a message names one before it
// that they do not know.
//
// SQLite stands for your MySQL. One transaction at a time is what everything here rests on: so it is decided once who
// serves whom, and the ids of messages grow in the order in which they can be seen.

define('SECRET', setting('APP_SECRET'));
define('GRACE', getenv('GRACE') ?: 15); // seconds in which who has lost his connection may come back, and nobody notices
define('EVERY', (int) (getenv('STATISTICS_EVERY') ?: 60)); // seconds from one row of statistics to the next
const MOST = 3; // conversations that an agent has at once

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
function batch(array $commands): void
{
    $header = ['Content-Type: application/json', 'Authorization: Bearer ' . getenv('MOONGATE_API_TOKEN')];
    $post = ['method' => 'POST', 'header' => $header, 'content' => json(['commands' => $commands]), 'timeout' => 5];
    foreach (explode(' ', getenv('APIS') ?: 'http://127.0.0.1:7273 http://127.0.0.1:7283') as $api) {
        $answer = @file_get_contents("$api/api/batch", false, stream_context_create(['http' => $post]));
        $results = json_decode((string) $answer, true)['results'] ?? [['error' => ['code' => 'no answer', 'status' => 503]]];
        $error = array_column($results, 'error')[0] ?? null;
        if (!$error) {
            return;
        }
    }
    throw new Refused($error['code'], $error['status']);
}

/** Says something to a uid or a group; on how many nodes somebody hears it. */
function publish(string $target, array $message): int
{
    static $redis; // phpredis
    if (!$redis) {
        $redis = new Redis();
        $redis->connect('127.0.0.1', (int) (getenv('REDIS_PORT') ?: 7279), 5, null, 0, 5);
    }
    return $redis->publish("mg:$target", json($message));
}

// ---- The database

function db(): PDO
{
    static $db;
    if (!$db) {
        $db = new PDO('sqlite:' . getenv('DATA') . '/desk.db');
        // people.state: `here`, `away` (for less than GRACE), `gone`; `out`: an agent who has logged out, a visitor on
        // the blacklist. A visitor waits when his conversation has no agent; the lowest id is the first.
        $db->query('PRAGMA user_version')->fetchColumn() || $db->exec("BEGIN IMMEDIATE;
            CREATE TABLE IF NOT EXISTS people (uid TEXT PRIMARY KEY, name TEXT, state TEXT, seq INTEGER DEFAULT 0,
                notice TEXT DEFAULT '');
            CREATE TABLE IF NOT EXISTS conversations (id INTEGER PRIMARY KEY, visitor TEXT, agent TEXT, began INTEGER,
                ended INTEGER, rating INTEGER, comment TEXT, rated INTEGER);
            CREATE INDEX IF NOT EXISTS last ON conversations (visitor, id);
            CREATE INDEX IF NOT EXISTS ended ON conversations (ended);
            CREATE UNIQUE INDEX IF NOT EXISTS one_each ON conversations (visitor) WHERE ended IS NULL;
            CREATE TABLE IF NOT EXISTS messages (id INTEGER PRIMARY KEY AUTOINCREMENT, prev INTEGER, visitor TEXT,
                author TEXT, name TEXT, text TEXT, at INTEGER, unread INTEGER, key TEXT, UNIQUE (author, key));
            CREATE INDEX IF NOT EXISTS thread ON messages (visitor, id);
            CREATE TABLE IF NOT EXISTS statistics (at INTEGER PRIMARY KEY, online INTEGER, waiting INTEGER, began INTEGER,
                ended INTEGER, rating REAL);
            CREATE TABLE IF NOT EXISTS clock (version INTEGER);
            INSERT INTO clock SELECT 0 WHERE NOT EXISTS (SELECT 1 FROM clock);
            PRAGMA user_version = 1;
            COMMIT");
    }
    return $db;
}

function run(string $sql, string|int|float|null ...$values): PDOStatement
{
    $statement = db()->prepare($sql);
    foreach ($values as $place => $value) {
        $statement->bindValue($place + 1, $value, is_int($value) ? PDO::PARAM_INT : PDO::PARAM_STR);
    }
    $statement->execute();
    return $statement;
}

function rows(string $sql, string|int|float|null ...$values): array
{
    return run($sql, ...$values)->fetchAll(PDO::FETCH_ASSOC);
}

/** Unix time in milliseconds, as nodes say it. */
function now(): int
{
    return (int) (microtime(true) * 1000);
}

/** Has the database to itself (in MySQL: BEGIN; SELECT version FROM clock FOR UPDATE); then does what is for `later`. */
function transaction(callable $what): mixed
{
    db()->exec('BEGIN IMMEDIATE');
    try {
        $result = $what();
        db()->exec('COMMIT');
    } catch (Throwable $error) {
        db()->exec('ROLLBACK');
        throw $error;
    }
    foreach (later() as $do) {
        $do();
    }
    return $result;
}

/** Keeps what is to be done when the transaction stands; without it, hands out what was kept. */
function later(?callable $do = null): array
{
    static $kept = [];
    $all = $kept;
    $kept = $do ? [...$kept, $do] : [];
    return $all;
}

// ---- Who talks with whom

/** A visitor's last conversation. */
function conversation(string $visitor): ?array
{
    return rows('SELECT * FROM conversations WHERE visitor = ? ORDER BY id DESC LIMIT 1', $visitor)[0] ?? null;
}

/** The one that is not over. */
function ongoing(string $visitor): ?array
{
    return rows('SELECT * FROM conversations WHERE visitor = ? AND ended IS NULL', $visitor)[0] ?? null;
}

/** It is refused to a visitor who has none, and to an agent who does not serve him. */
function must_be_in(array $me, string $visitor): void
{
    $ongoing = ongoing($visitor);
    if (!$ongoing || $me['uid'] !== $visitor && $me['uid'] !== $ongoing['agent']) {
        throw new Refused('no such conversation', 409);
    }
}

/** The agent with the fewest conversations, of those who can take one more; or this one, if he can. */
function free(string $uid = ''): ?array
{
    return rows("SELECT uid, name, count(visitor) AS has FROM people LEFT JOIN conversations ON agent = uid AND ended IS NULL
        WHERE uid LIKE 'agent-%' AND state = 'here' AND notice = '' AND ? IN ('', uid)
        GROUP BY uid HAVING has < " . MOST . ' ORDER BY has, uid LIMIT 1', $uid)[0] ?? null;
}

function give(string $visitor, array $agent, string $note): void
{
    run('UPDATE conversations SET agent = ? WHERE visitor = ? AND ended IS NULL', $agent['uid'], $visitor);
    store($visitor, '', $agent['name'], $note);
}

/** What each visitor with a conversation would be told of it: who serves him, or how many are ahead of him. */
function standing(): array
{
    $ahead = 0;
    $standing = [];
    foreach (rows('SELECT visitor, agent FROM conversations WHERE ended IS NULL ORDER BY id') as $one) {
        $standing[$one['visitor']] = $one['agent'] ?? $ahead++;
    }
    return $standing;
}

/** Does what may change who talks with whom: then those who wait get agents, and who is concerned hears how things are. */
function change(callable $what): mixed
{
    return transaction(function () use ($what) {
        [$stood, $desk] = [standing(), desk()];
        run('UPDATE clock SET version = version + 1');
        $result = $what();
        $waiting = rows('SELECT visitor FROM conversations WHERE agent IS NULL AND ended IS NULL ORDER BY id');
        while ($waiting && ($agent = free())) {
            give(array_shift($waiting)['visitor'], $agent, 'assigned');
        }
        $stands = standing();
        foreach ($stood + $stands as $visitor => $_) {
            if (($stood[$visitor] ?? null) !== ($stands[$visitor] ?? null)) {
                tell($visitor);
                if (is_string($stood[$visitor] ?? 0) || is_string($stands[$visitor] ?? 0)) { // his agent, and not his place
                    later(fn () => regroup($visitor));
                }
            }
        }
        if (($now = desk()) !== $desk) {
            $news = ['type' => 'desk', 'version' => version()] + $now;
            later(fn () => publish('group:agents', $news));
        }
        return $result;
    });
}

/** Of two pictures of how things are the one with the higher version is the newer. */
function version(): int
{
    return run('SELECT version FROM clock')->fetchColumn();
}

/** How things are for a visitor. */
function state(string $visitor): array
{
    $it = conversation($visitor);
    $agent = rows('SELECT uid, name, notice FROM people WHERE uid = ?', $it['agent'] ?? '')[0] ?? null;
    $state = match (true) {
        !$it => 'new',
        !$it['ended'] => $agent ? 'open' : 'waiting',
        default => $agent && !$it['rating'] ? 'ended' : 'over',
    };
    $ahead = $state === 'waiting' ? standing()[$visitor] : null;
    return ['type' => 'state', 'version' => version(), 'state' => $state, 'agent' => $agent, 'ahead' => $ahead];
}

function tell(string $visitor): void
{
    $state = state($visitor);
    later(fn () => publish("uid:$visitor", $state));
}

/** How things are for the agents. Who is away for less than GRACE is not missed. */
function desk(): array
{
    return [
        'agents' => rows("SELECT uid, name, notice FROM people
            WHERE uid LIKE 'agent-%' AND state IN ('here', 'away') ORDER BY name"),
        'waiting' => run('SELECT count(*) FROM conversations WHERE agent IS NULL AND ended IS NULL')->fetchColumn(),
        'conversations' => rows("SELECT visitor, agent, name, state IN ('here', 'away') AS here
            FROM conversations JOIN people ON uid = visitor WHERE agent IS NOT NULL AND ended IS NULL ORDER BY id"),
        'ended' => rows('SELECT id, agent, name, rating, comment FROM conversations JOIN people ON uid = visitor
            WHERE agent IS NOT NULL AND ended IS NOT NULL ORDER BY ended DESC LIMIT 30'),
        'minutes' => rows('SELECT * FROM statistics ORDER BY at DESC LIMIT 7'),
    ];
}

/** Puts a visitor's clients into his agent's group, and takes them out of all others, as long as that changes meanwhile. */
function regroup(string $visitor): void
{
    do {
        $group = ongoing($visitor)['agent'] ?? null;
        $others = array_column(rows("SELECT uid FROM people WHERE uid LIKE 'agent-%' AND uid IS NOT ?", $group), 'uid');
        $leave = $others ? [['op' => 'leaveGroup', 'uid' => $visitor, 'group' => $others]] : [];
        $join = $group ? [['op' => 'joinGroup', 'uid' => $visitor, 'group' => $group]] : [];
        $leave || $join ? batch([...$leave, ...$join]) : null;
    } while ($group !== (ongoing($visitor)['agent'] ?? null));
}

// ---- What is said

const MESSAGE = 'id, prev, visitor, author, name, text, at, unread';

/** A message to or from a visitor, or (of no author) a note of what has happened: stored first, then pushed. Its id. */
function store(string $visitor, string $author, string $name, string $text, ?string $key = null): int
{
    $prev = run('SELECT max(id) FROM messages WHERE visitor = ?', $visitor)->fetchColumn() ?? 0;
    // An agent's is unread until somebody has heard it.
    $unread = (int) is_agent($author);
    run('INSERT INTO messages (prev, visitor, author, name, text, at, unread, key) VALUES (?, ?, ?, ?, ?, ?, ?, ?)',
        $prev, $visitor, $author, $name, $text, now(), $unread, $key);
    return push((int) db()->lastInsertId());
}

function message(int $id): array
{
    return ['type' => 'message'] + rows('SELECT ' . MESSAGE . ' FROM messages WHERE id = ?', $id)[0];
}

function push(int $id): int
{
    $message = message($id);
    $agent = conversation($message['visitor'])['agent'] ?? null;
    later(function () use ($message, $agent) {
        $heard = publish("uid:$message[visitor]", $message);
        if ($heard && $message['unread']) {
            run('UPDATE messages SET unread = 0 WHERE id = ?', $message['id']);
            $message['unread'] = 0;
        }
        if ($agent) {
            publish("uid:$agent", $message);
        }
    });
    return $id;
}

// ---- Who asks, and for what

function sign(string $text): string
{
    return hash_hmac('sha256', $text, SECRET);
}

function set_cookie(string $as, string $uid): void
{
    $value = bin2hex($uid);
    header("Set-Cookie: $as=$value." . sign("$as $value") . '; Path=/; HttpOnly; SameSite=Strict');
}

/** Whom a cookie names, if it was made here, and he may come. */
function who(mixed $as, array $cookies): array
{
    $cookie = in_array($as, ['visitor', 'agent'], true) && is_string($cookies[$as] ?? null) ? $cookies[$as] : '';
    $is_ours = preg_match('/^((?:[0-9a-f]{2})+)\.(\w+)$/D', $cookie, $is) && hash_equals(sign("$as $is[1]"), $is[2]);
    $person = $is_ours ? rows('SELECT * FROM people WHERE uid = ?', hex2bin($is[1]))[0] ?? null : null;
    if (!$person) {
        throw new Refused('who are you?', 401);
    }
    if ($person['state'] === 'out') {
        throw new Refused('you are out', $as === 'agent' ? 401 : 403);
    }
    return $person;
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

function is_agent(string $uid): bool
{
    return str_starts_with($uid, 'agent-');
}

/** The visitor whom it is about: himself, or whom an agent names. */
function about(array $in, array $me): string
{
    return is_agent($me['uid']) ? text($in, 'visitor', 64) : $me['uid'];
}

// ---- What pages ask: $me is whom the cookie names. What stands in CHANGES runs in a `change`.

const ASKED = ['hello' => '', 'login' => '', 'enter' => 'any', 'messages' => 'any', 'say' => 'any', 'finish' => 'any',
    'rate' => 'visitor', 'logout' => 'agent', 'transfer' => 'agent', 'notice' => 'agent', 'block' => 'agent'];
const CHANGES = ['finish', 'rate', 'logout', 'transfer', 'notice', 'block'];

/** A visitor says his name, and gets a cookie. */
function hello(array $in): void
{
    $uid = 'visitor-' . bin2hex(random_bytes(8));
    run("INSERT INTO people (uid, name, state) VALUES (?, ?, 'gone')", $uid, text($in, 'name', 60));
    set_cookie('visitor', $uid);
}

/** An agent's name is believed here; a real application asks for a password, and has long had a cookie of its own. */
function login(array $in): void
{
    $name = text($in, 'name', 60);
    run("INSERT INTO people (uid, name, state) VALUES (?, ?, 'gone')
        ON CONFLICT (uid) DO UPDATE SET state = 'gone' WHERE state = 'out'", "agent-$name", $name);
    // The same again changes nothing; a real application does this when it is deployed.
    batch([['op' => 'addTask', 'id' => 'statistics', 'cron' => EVERY < 60 ? '*/' . EVERY . ' * * * * *' : '* * * * *', 'webhook' => ['do' => 'statistics']]]);
    set_cookie('agent', "agent-$name");
}

/** Out on all his pages, and gone at once: who logs out does not come back in a moment. */
function logout(array $in, array $me): void
{
    run("UPDATE people SET state = 'out', notice = '' WHERE uid = ?", $me['uid']);
    leave($me['uid']);
    later(fn () => batch([['op' => 'closeUid', 'uid' => $me['uid']]]));
}

/** A page asks how things are, at first and whenever it has connected. Its client is bound by then: see `connect`. */
function enter(array $in, array $me): array
{
    $it = ['me' => ['uid' => $me['uid'], 'name' => $me['name']]];
    if (is_agent($me['uid'])) {
        return transaction(fn () => $it + ['version' => version()] + desk());
    }
    regroup($me['uid']);
    return transaction(fn () => $it + state($me['uid']));
}

/** What was said after a message that a page has. */
function messages(array $in, array $me): array
{
    [$visitor, $after] = [about($in, $me), (int) ($in['after'] ?? 0)];
    return transaction(function () use ($me, $visitor, $after) {
        $agent = conversation($visitor)['agent'] ?? null;
        if (!in_array($me['uid'], [$visitor, $agent], true)) {
            throw new Refused('no such conversation', 409);
        }
        $found = 'SELECT ' . MESSAGE . ' FROM messages WHERE visitor = ? AND id > ? ORDER BY id LIMIT 200';
        $found = rows($found, $visitor, $after);
        $upto = end($found)['id'] ?? 0;
        $read = 'UPDATE messages SET unread = 0 WHERE visitor = ? AND unread AND id <= ?';
        if ($me['uid'] === $visitor && run($read, $visitor, $upto)->rowCount() && $agent) {
            later(fn () => publish("uid:$agent", ['type' => 'read', 'visitor' => $visitor, 'upto' => $upto]));
        }
        return ['messages' => $found];
    });
}

/** A visitor's first words begin a conversation. The page makes up `key`: a message that comes again is not said twice. */
function say(array $in, array $me): array
{
    [$visitor, $text, $key] = [about($in, $me), text($in, 'text', 3000), text($in, 'key', 64)];
    $begins = $me['uid'] === $visitor && !ongoing($visitor);
    $say = function () use ($me, $visitor, $text, $key, $begins) {
        if ($said = run('SELECT id FROM messages WHERE author = ? AND key = ?', $me['uid'], $key)->fetchColumn()) {
            return push($said);
        }
        if ($begins && !ongoing($visitor)) {
            run('INSERT INTO conversations (visitor, began) VALUES (?, ?)', $visitor, now());
            // Who is not connected, or not yet, is waited for like one who has lost his connection.
            if (run("UPDATE people SET state = 'away' WHERE uid = ? AND state = 'gone'", $visitor)->rowCount()) {
                $task = expiry($visitor, $me['seq'], '-' . db()->lastInsertId());
                later(fn () => batch([$task]));
            }
        }
        must_be_in($me, $visitor);
        return store($visitor, $me['uid'], $me['name'], $text, $key);
    };
    // Only a conversation that begins concerns others.
    return message($begins ? change($say) : transaction($say));
}

function finish(array $in, array $me): void
{
    $visitor = about($in, $me);
    must_be_in($me, $visitor);
    store($visitor, '', $me['name'], 'ended');
    run('UPDATE conversations SET ended = ? WHERE visitor = ? AND ended IS NULL', now(), $visitor);
}

/** A visitor says, once, how it was. */
function rate(array $in, array $me): void
{
    [$rating, $comment] = [$in['rating'] ?? null, $in['comment'] ?? ''];
    if (!in_array($rating, [1, 2, 3, 4, 5], true) || !is_string($comment) || strlen($comment) > 1000) {
        throw new Refused('rating', 400);
    }
    if (state($me['uid'])['state'] !== 'ended') {
        throw new Refused('nothing to rate', 409);
    }
    $id = conversation($me['uid'])['id'];
    run('UPDATE conversations SET rating = ?, comment = ?, rated = ? WHERE id = ?', $rating, $comment, now(), $id);
    tell($me['uid']);
}

function transfer(array $in, array $me): void
{
    [$visitor, $to] = [about($in, $me), text($in, 'to', 70)];
    must_be_in($me, $visitor);
    $agent = $to === $me['uid'] ? null : free($to);
    give($visitor, $agent ?? throw new Refused('busy', 409), 'transferred');
}

/** To all whom he serves, until he takes it back; meanwhile he gets nobody new. */
function notice(array $in, array $me): void
{
    $notice = ($in['notice'] ?? null) === '' ? '' : text($in, 'notice', 300);
    run('UPDATE people SET notice = ? WHERE uid = ?', $notice, $me['uid']);
    $news = ['type' => 'notice', 'version' => version(), 'agent' => $me['uid'], 'notice' => $notice];
    later(fn () => publish("group:$me[uid]", $news));
}

/** Puts a visitor on the blacklist. */
function block(array $in, array $me): void
{
    finish($in, $me);
    $visitor = about($in, $me);
    run("UPDATE people SET state = 'out' WHERE uid = ?", $visitor);
    later(fn () => batch([['op' => 'closeUid', 'uid' => $visitor, 'code' => 4403, 'reason' => 'blocked']]));
}

// ---- What nodes ask, and tell: the webhook. What is answered with 5xx they tell again.

function webhook(array $event): array
{
    $task = $event['payload']['do'] ?? '';
    return match ($event['event']) {
        'connect' => ['commands' => connect($event)],
        'bound', 'unbound' => change(fn () => presence($event)),
        'task' => change(fn () => $task === 'gone' ? gone($event['payload']) : statistics($event)),
    } ?? [];
}

/** Who comes in, and as whom. `init` is said last: a page that hears it misses nothing from then on. */
function connect(array $event): array
{
    $as = $event['query']['as'] ?? '';
    try {
        $me = who($as, $event['cookies']);
    } catch (Refused $refused) {
        throw new Refused($refused->getMessage(), 403);
    }
    $client = ['client_id' => $event['client_id']];
    $join = $as === 'agent' ? [['op' => 'joinGroup', 'group' => 'agents'] + $client] : [];
    $init = ['op' => 'sendToClient', 'message' => ['type' => 'init'] + $client] + $client;
    return [...$join, ['op' => 'bindUid', 'uid' => $me['uid']] + $client, $init];
}

/** Keeps who is here. Events may come late, or twice: what has a lower seq than what is known is old. */
function presence(array $event): void
{
    [$uid, $seq] = [$event['uid'], $event['seq']];
    $was = rows('SELECT state, seq FROM people WHERE uid = ?', $uid)[0] ?? null;
    if (!$was || $seq < $was['seq']) {
        return;
    }
    $here = $event['event'] === 'bound' || !$event['last'];
    $is = match (true) {
        $was['state'] === 'out' => 'out',
        $here => 'here',
        $was['state'] === 'here' => 'away',
        default => $was['state'],
    };
    run('UPDATE people SET state = ?, seq = ? WHERE uid = ?', $is, $seq, $uid);
    $command = match (true) {
        $is === 'out' && $here => ['op' => 'closeUid', 'uid' => $uid], // he was let in a moment before
        $is === 'here' && $was['state'] === 'away' => ['op' => 'cancelTask', 'id' => "gone-$uid-$was[seq]"],
        $is === 'away' => expiry($uid, $seq),
        default => null,
    };
    $command && later(fn () => batch([$command]));
}

/** The task that says that somebody was away for GRACE. */
function expiry(string $uid, int $seq, string $more = ''): array
{
    $task = ['do' => 'gone', 'uid' => $uid, 'seq' => $seq];
    return ['op' => 'addTask', 'id' => "gone-$uid-$seq$more", 'delay' => GRACE * 1000, 'webhook' => $task];
}

/** He did not come back in time. A task may come twice, or though it was cancelled: then seq or state have changed. */
function gone(array $who): void
{
    $gone = run("UPDATE people SET state = 'gone' WHERE uid = ? AND seq = ? AND state = 'away'", $who['uid'], $who['seq']);
    if ($gone->rowCount()) {
        leave($who['uid']);
    }
}

/** A visitor waits no more. An agent's wait again, and go first: their conversations are older than of any who waits. */
function leave(string $uid): void
{
    foreach (rows('SELECT visitor FROM conversations WHERE agent = ? AND ended IS NULL', $uid) as ['visitor' => $visitor]) {
        run('UPDATE conversations SET agent = NULL WHERE visitor = ? AND ended IS NULL', $visitor);
        store($visitor, '', '', 'requeued');
    }
    run('UPDATE conversations SET ended = ? WHERE visitor = ? AND agent IS NULL AND ended IS NULL', now(), $uid);
}

/** A row for each time that the cron says; the task's id ends with it: "statistics@1795218600000". */
function statistics(array $event): void
{
    $at = (int) substr(strrchr($event['id'], '@'), 1);
    $then = 'BETWEEN ' . ($at - EVERY * 1000 + 1) . " AND $at"; // and not since the last row: a task may be overtaken
    run("INSERT INTO statistics SELECT $at,
        (SELECT count(*) FROM people WHERE uid LIKE 'agent-%' AND state IN ('here', 'away')),
        (SELECT count(*) FROM conversations WHERE agent IS NULL AND ended IS NULL),
        (SELECT count(*) FROM conversations WHERE began $then), (SELECT count(*) FROM conversations WHERE ended $then),
        (SELECT avg(rating) FROM conversations WHERE rated $then) WHERE true ON CONFLICT DO NOTHING");
}

// ---- HTTP

function json(array $value): string
{
    return json_encode($value, JSON_UNESCAPED_UNICODE | JSON_THROW_ON_ERROR);
}

/** The body, if a node has signed it in the last minutes. */
function signed(string $body): string
{
    preg_match('/^t=(\d+),v1=(\w+)$/D', $_SERVER['HTTP_MOONGATE_SIGNATURE'] ?? '', $is) || $is = ['', '0', ''];
    $secret = setting('MOONGATE_WEBHOOK_SECRET');
    if (!hash_equals(hash_hmac('sha256', "$is[1].$body", $secret), $is[2]) || abs(time() - $is[1]) > 300) {
        throw new Refused('not signed', 400);
    }
    return $body;
}

[$method, $path] = [$_SERVER['REQUEST_METHOD'], substr(parse_url($_SERVER['REQUEST_URI'], PHP_URL_PATH), 1)];
$page = ['' => 'visitor.html', 'agent' => 'agent.html'][$path] ?? '';
if ($method === 'GET' && $page) {
    header('Content-Type: text/html; charset=utf-8');
    $nodes = htmlspecialchars(getenv('NODES') ?: 'ws://127.0.0.1:7272/ ws://127.0.0.1:7282/');
    $shared = str_replace('__NODES__', $nodes, file_get_contents(__DIR__ . '/shared.html'));
    echo str_replace('__SHARED__', $shared, file_get_contents(__DIR__ . "/$page"));
    return;
}
const FILES = [
    'moongate.js' => ['text/javascript', '/../../clients/js/dist/moongate.classic.js'],
    'style.css' => ['text/css', '/../style.css'],
];
if ($method === 'GET' && isset(FILES[$path])) {
    header('Content-Type: ' . FILES[$path][0]);
    readfile(__DIR__ . FILES[$path][1]);
    return;
}
try {
    $as = ASKED[$path] ?? null;
    if ($method !== 'POST' || $as === null && $path !== 'webhook') {
        throw new Refused('no such page', 404);
    }
    $body = file_get_contents('php://input');
    $in = json_decode($path === 'webhook' ? signed($body) : $body, true);
    if (!is_array($in)) {
        throw new Refused('this is no JSON', 400);
    }
    $me = $as ? who($as === 'any' ? $in['as'] ?? '' : $as, $_COOKIE) : [];
    $answer = in_array($path, CHANGES) ? change(fn () => $path($in, $me)) : $path($in, $me);
} catch (Refused $refused) {
    http_response_code($refused->getCode());
    $answer = ['error' => $refused->getMessage()];
} catch (RedisException | PDOException $error) {
    error_log($error->getMessage());
    http_response_code(503);
    $answer = ['error' => 'try again'];
}
header('Content-Type: application/json');
echo json($answer ?? ['ok' => true]);
