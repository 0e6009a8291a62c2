/* Moongate's client for browsers, 0.1.0. MIT OR Apache-2.0 */
var Moongate = (function () {
"use strict";
var FINAL = [1000, 4000, 4001];
var LATER = [1002, 1007, 1008, 1009, 1011, 1013];
var STABLE = 10000;
function Moongate(url, options) {
var gate = this;
var listeners = { init: [], open: [], message: [], json: [], close: [] };
var urls = [].concat(url);
var place = 0;
var queue = [];
var socket = null;
var opened = 0;
var ends = 0;
var turn = 0;
var timer;
var silence;
options = options || {};
var heartbeat = options.heartbeat;
function setting(name, usual) {
return options[name] === undefined ? usual : options[name];
}
function guarded(call, value) {
try {
return call(value);
} catch (error) {
setTimeout(function () {
throw error;
});
}
}
function emit(name, value) {
listeners[name].forEach(function (listener) {
guarded(listener, value);
});
}
function isOpen() {
return gate.state === "open" && socket.readyState === 1;
}
function drop(state) {
turn++;
clearTimeout(timer);
clearTimeout(silence);
if (socket) {
socket.onopen = socket.onmessage = socket.onclose = null;
socket.close();
socket = null;
}
gate.clientId = null;
gate.state = state;
}
function leave() {
drop("closed");
queue = [];
watch("removeEventListener");
}
function attempt() {
drop("connecting");
gate.url = urls[place % urls.length];
var mine = turn;
timer = setTimeout(function () {
end(1006, "timeout");
}, setting("timeout", 20000));
function dial(token) {
if (mine !== turn) return;
var query = token ? (gate.url.indexOf("?") < 0 ? "?" : "&") + "token=" + encodeURIComponent(token) : "";
try {
socket = new WebSocket(gate.url + query);
} catch (error) {
leave();
throw error;
}
socket.binaryType = "arraybuffer";
socket.onopen = onOpen;
socket.onmessage = onMessage;
socket.onclose = function (event) {
end(event.code, event.reason);
};
}
function fail(error) {
if (mine === turn) end(1006, "no token", error);
}
var token = options.token;
if (typeof token === "function") {
try {
token = token();
} catch (error) {
return fail(error);
}
}
if (token && token.then) token.then(dial, fail);
else dial(token);
}
function onOpen() {
clearTimeout(timer);
opened = Date.now();
gate.state = "open";
listen();
emit("open");
while (queue.length && isOpen()) socket.send(queue.shift());
}
function onMessage(event) {
var data = event.data;
var json;
listen();
if (heartbeat && data === heartbeat.ping) {
if (heartbeat.pong && isOpen()) socket.send(heartbeat.pong);
return;
}
if (typeof data === "string" && (listeners.json.length || data.indexOf('"init"') > 0)) {
try {
json = JSON.parse(data);
} catch (error) {
}
}
if (json && json.type === "init" && json.client_id) {
gate.clientId = json.client_id;
return emit("init", json);
}
emit("message", data);
if (json !== undefined) emit("json", json);
}
function listen() {
clearTimeout(silence);
if (!heartbeat) return;
silence = setTimeout(function () {
silence = setTimeout(function () {
end(1006, "silent");
}, 1000);
}, heartbeat.timeout || 60000);
}
function end(code, reason, error) {
if (opened && Date.now() - opened >= STABLE) ends = 0;
opened = 0;
place++;
var power = Math.max(ends, LATER.indexOf(code) < 0 ? 0 : 3);
var most = Math.min(setting("maxDelay", 30000), setting("minDelay", 1000) * Math.pow(2, power));
var least = power ? most / 2 : 0;
var delay = FINAL.indexOf(code) < 0 ? least + Math.random() * (most - least) : null;
var close = { code: code, reason: reason, error: error, attempts: ++ends, delay: delay };
drop("waiting");
if (options.retry) {
var wish = guarded(options.retry, close);
if (wish !== undefined) close.delay = wish;
}
if (gate.state === "waiting") {
if (typeof close.delay === "number") timer = setTimeout(attempt, close.delay);
else leave();
}
emit("close", close);
}
function wake(event) {
var type = event.type;
if (type === "offline" || type === "pagehide") {
if (gate.state === "connecting" || gate.state === "open") end(1006, type === "offline" ? type : "left");
return;
}
if (type !== "visibilitychange") ends = 0;
if (gate.state === "waiting" && (type !== "visibilitychange" || !document.hidden)) attempt();
}
function watch(how) {
if (typeof self !== "object" || !self[how]) return;
["online", "offline", "pagehide", "pageshow"].forEach(function (type) {
self[how](type, wake);
});
if (typeof document === "object") document[how]("visibilitychange", wake);
}
gate.on = function (name, listener) {
listeners[name] = listeners[name].concat(listener);
};
gate.off = function (name, listener) {
listeners[name] = listeners[name].filter(function (other) {
return other !== listener;
});
};
gate.send = function (data) {
if (/^\[object (Object|Array)\]$/.test(Object.prototype.toString.call(data))) data = JSON.stringify(data);
if (isOpen()) {
socket.send(data);
listen();
return true;
}
if (gate.state === "closed" || queue.length >= setting("queue", 100)) return false;
queue.push(data);
return true;
};
gate.connect = function () {
if (gate.state === "closed") {
ends = 0;
watch("addEventListener");
attempt();
} else if (gate.state === "waiting") {
attempt();
}
};
gate.close = function (code, reason) {
if (gate.state === "closed") return;
code = code || 1000;
reason = reason || "";
if (socket) socket.close(code, reason);
leave();
emit("close", { code: code, reason: reason, attempts: ends, delay: null });
};
gate.state = "closed";
gate.clientId = null;
gate.connect();
}
return Moongate;
})();
