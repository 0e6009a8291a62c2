<?php

// The workers that run Events.php: php start_businessworker.php start

use GatewayWorker\BusinessWorker;
use Workerman\Worker;

require __DIR__ . '/vendor/autoload.php';
require __DIR__ . '/Events.php';

$worker = new BusinessWorker();
$worker->name = 'chat';
$worker->count = 2;
$worker->eventHandler = 'Events';
// Where Moongate's Register listens (MOONGATE_REGISTER_LISTEN), and the key that it was given.
$worker->registerAddress = getenv('REGISTER_ADDRESS') ?: '127.0.0.1:1238';
$worker->secretKey = getenv('MOONGATE_SECRET_KEY') ?: '';

Worker::runAll();
