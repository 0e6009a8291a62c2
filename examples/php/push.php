<?php

// What a web application does, from the command line: php push.php

use GatewayClient\Gateway;

require __DIR__ . '/vendor/autoload.php';

Gateway::$registerAddress = getenv('REGISTER_ADDRESS') ?: '127.0.0.1:1238';
Gateway::$secretKey = getenv('MOONGATE_SECRET_KEY') ?: '';

[$do, $whom, $what] = array_slice($argv, 1) + ['', '', ''];
$message = fn ($text) => json_encode(['type' => 'news', 'text' => $text], JSON_UNESCAPED_UNICODE);

switch ($do) {
    case 'online':
        foreach (Gateway::getAllUidList() as $uid) {
            echo $uid, ': ', implode(' ', Gateway::getClientIdByUid($uid)), "\n";
        }
        echo Gateway::getAllClientIdCount(), " connections\n";
        break;
    case 'bind':
        // On a web site: $whom is $_POST['client_id'], as the page was told it; $what is the user who is logged in.
        Gateway::bindUid($whom, $what);
        break;
    case 'uid':
        // 0 when nobody is there: the moment to store the message, or to send a mail.
        echo Gateway::isUidOnline($whom) ? "online\n" : "offline\n";
        Gateway::sendToUid($whom, $message($what));
        break;
    case 'group':
        Gateway::sendToGroup($whom, $message($what));
        break;
    case 'all':
        Gateway::sendToAll($message($whom));
        break;
    default:
        echo "php push.php online\n",
            "php push.php bind <client_id> <uid>\n",
            "php push.php uid <uid> <text>\n",
            "php push.php group <group> <text>\n",
            "php push.php all <text>\n";
}
