<?php

/**
 * An application's way to Moongate, over HTTP: one file, without dependencies, for PHP 7.4 and newer. Copy it, and give it
 * your namespace.
 *
 * What sends (`to…`) is best effort: it never throws, and answers 0 when nobody is there, and as well when no node
 * answers. Then the application goes on: it has stored the thing, and the page shows it at its next load. Whatever else
 * throws a RuntimeException, whose code is the HTTP status. A uid is an integer or a string: 42 and "42" are one.
 *
 * A node that does not answer in time may still have done it, and the next one does it again. So a message says how
 * things are ("order 7 is sent") and not what to add to them ("one more"): heard twice, it does no harm.
 */
class Push
{
    private array $apis;
    private string $token;
    private float $timeout;
    /** Until then no node is asked: a request with many pushes waits once for a gateway that is away. */
    private float $away = 0;

    /**
     * @param string[] $apis    addresses of nodes, or of the balancer before them, such as http://10.0.0.5:7273
     * @param float    $timeout seconds until the next one is asked
     */
    public function __construct(array $apis, string $token = '', float $timeout = 1.0)
    {
        [$this->apis, $this->token, $this->timeout] = [$apis, $token, $timeout];
    }

    /** Makes a page's client its user's, and says so to the page: what is pushed after this reaches it. */
    public function bind(string $client, $uid, string $group, array $hello): void
    {
        $this->ask('batch', ['commands' => [
            ['op' => 'bindUid', 'client_id' => $client, 'uid' => $uid],
            ['op' => 'joinGroup', 'client_id' => $client, 'group' => $group],
            ['op' => 'sendToClient', 'client_id' => $client, 'message' => $hello],
        ]]);
    }

    /** To all pages of a user, on all devices; on how many nodes they are. At 0 store it as unread, or send a mail. */
    public function toUser($uid, array $message): int
    {
        return $this->send('sendToUid', ['uid' => $uid, 'message' => $message]);
    }

    public function toGroup(string $group, array $message): int
    {
        return $this->send('sendToGroup', ['group' => $group, 'message' => $message]);
    }

    public function toAll(array $message): int
    {
        return $this->send('sendToAll', ['message' => $message]);
    }

    /** Closes all connections of a user; his pages hear 4000. */
    public function close($uid): int
    {
        return $this->send('closeUid', ['uid' => $uid]);
    }

    /** Has the nodes say something to everybody in so many seconds. An id is good once. */
    public function later(string $id, int $seconds, array $message): void
    {
        $command = ['op' => 'sendToAll', 'message' => $message];
        $this->ask('addTask', ['id' => $id, 'delay' => $seconds * 1000, 'command' => $command]);
    }

    /** Has the application told of `$job` whenever `$cron` says, once among all nodes. The same id replaces the schedule. */
    public function every(string $id, string $cron, string $zone, array $job): void
    {
        $this->ask('addTask', ['id' => $id, 'cron' => $cron, 'tz' => $zone, 'webhook' => $job]);
    }

    /** Calls off what `later` or `every` has arranged; false when it is over, or was never there. */
    public function cancel(string $id): bool
    {
        return $this->ask('cancelTask', ['id' => $id]);
    }

    /** The event that a request of a node tells; null when the node did not sign it, or minutes ago. */
    public static function event(string $body, string $signature, string $secret): ?array
    {
        preg_match('/^t=(\d+),v1=(\w+)$/D', $signature, $is);
        $good = $is && $secret !== '' && hash_equals(hash_hmac('sha256', "$is[1].$body", $secret), $is[2]) && abs(time() - $is[1]) < 300;
        return $good ? json_decode($body, true) : null;
    }

    private function send(string $op, array $fields): int
    {
        try {
            return $this->ask($op, $fields)['nodes'];
        } catch (\RuntimeException $error) {
            error_log("push: $op: " . $error->getMessage());
            return 0;
        }
    }

    /** What a node answers, the first that does. */
    private function ask(string $op, array $fields)
    {
        $body = json_encode($fields, JSON_UNESCAPED_UNICODE | JSON_THROW_ON_ERROR);
        $header = ['Content-Type: application/json', "Authorization: Bearer $this->token"];
        $http = ['method' => 'POST', 'header' => $header, 'content' => $body, 'timeout' => $this->timeout, 'ignore_errors' => true];
        foreach (microtime(true) < $this->away ? [] : $this->apis as $api) {
            $answer = @file_get_contents("$api/api/$op", false, stream_context_create(['http' => $http]));
            $answer = json_decode((string) $answer, true);
            $error = isset($answer['code']) ? $answer : array_column($answer['results'] ?? [], 'error')[0] ?? null;
            if ($error && $error['status'] < 500) {
                throw new \RuntimeException($error['code'], $error['status']); // any node would say so
            }
            if ($answer && !$error) {
                return $answer['result'] ?? null;
            }
        }
        $this->away = microtime(true) + 5;
        throw new \RuntimeException('the gateway does not answer', 503);
    }
}
