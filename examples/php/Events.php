<?php

use GatewayWorker\Lib\Gateway;

/**
 * A chat room, as a BusinessWorker runs it. Clients say, in JSON:
 *
 *     {"type": "login", "name": "Ann", "room": "1"}
 *     {"type": "say", "text": "hi all"}
 *     {"type": "private", "to": "Bob", "text": "psst"}
 */
class Events
{
    /** Somebody has connected, and learns its id. */
    public static function onConnect($client_id)
    {
        Gateway::sendToCurrentClient(self::json('init', ['client_id' => $client_id]));
    }

    public static function onMessage($client_id, $message)
    {
        $said = json_decode($message, true);
        // What is no text, or too long for a name, counts as not said.
        $get = fn ($key, $most) => is_string($said[$key] ?? null) && strlen($said[$key]) <= $most ? $said[$key] : '';
        [$me, $room] = [$_SESSION['name'] ?? '', $_SESSION['room'] ?? ''];

        switch ($get('type', 16)) {
            case 'login':
                [$name, $room] = [$get('name', 64), $get('room', 64)];
                if ($me || !$name || !$room) {
                    break;
                }
                // Whoever says a name is believed: a real application asks for a token here.
                $_SESSION = ['name' => $name, 'room' => $room];
                Gateway::bindUid($client_id, $name);
                Gateway::joinGroup($client_id, $room);
                $online = array_column(Gateway::getClientSessionsByGroup($room), 'name');
                // This callback's own $_SESSION is stored when it returns.
                $online = array_values(array_unique([...$online, $name]));
                Gateway::sendToGroup($room, self::json('joined', ['name' => $name, 'online' => $online]));
                break;
            case 'say':
                if ($me) {
                    Gateway::sendToGroup($room, self::json('said', ['name' => $me, 'text' => $get('text', 4096)]));
                }
                break;
            case 'private':
                $to = $get('to', 64);
                if ($me && Gateway::isUidOnline($to)) {
                    Gateway::sendToUid([$to, $me], self::json('private', ['name' => $me, 'to' => $to, 'text' => $get('text', 4096)]));
                } elseif ($me) {
                    Gateway::sendToCurrentClient(self::json('offline', ['name' => $to]));
                }
                break;
        }
    }

    /** Somebody has left, and is in no group any more; $_SESSION is what it was. */
    public static function onClose($client_id)
    {
        if (isset($_SESSION['room'])) {
            Gateway::sendToGroup($_SESSION['room'], self::json('left', ['name' => $_SESSION['name']]));
        }
    }

    private static function json(string $type, array $fields): string
    {
        return json_encode(['type' => $type] + $fields, JSON_UNESCAPED_UNICODE);
    }
}
