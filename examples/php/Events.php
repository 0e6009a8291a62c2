<?php

use GatewayWorker\Lib\Gateway;

/**
 * A chat room, run by a BusinessWorker. Clients say, in JSON:
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
        // What is no text counts as not said.
        $get = fn ($key, $most = 64) => is_string($said[$key] ?? null) && strlen($said[$key]) <= $most ? $said[$key] : '';
        [$type, $name, $room, $to, $text] = [$get('type'), $get('name'), $get('room'), $get('to'), $get('text', 4096)];
        $me = $_SESSION['name'] ?? '';

        if ($type === 'login' && !$me && $name && $room) {
            // Whoever says a name is believed. A real application asks for a token here.
            $_SESSION = ['name' => $name, 'room' => $room];
            Gateway::bindUid($client_id, $name);
            Gateway::joinGroup($client_id, $room);
            // The sessions of the others: one's own is stored when this function returns.
            $online = array_column(Gateway::getClientSessionsByGroup($room), 'name');
            $online = array_values(array_unique([...$online, $name]));
            Gateway::sendToGroup($room, self::json('joined', ['name' => $name, 'online' => $online]));
        } elseif ($type === 'say' && $me && $text) {
            Gateway::sendToGroup($_SESSION['room'], self::json('said', ['name' => $me, 'text' => $text]));
        } elseif ($type === 'private' && $me && $text && $to !== $me) {
            if (Gateway::isUidOnline($to)) {
                Gateway::sendToUid([$to, $me], self::json('private', ['name' => $me, 'to' => $to, 'text' => $text]));
            } else {
                Gateway::sendToCurrentClient(self::json('offline', ['name' => $to]));
            }
        }
    }

    /** Somebody has left, and is in no group any more. The session is what it was. */
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
