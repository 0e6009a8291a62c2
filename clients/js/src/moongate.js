// The page's end of Moongate: a WebSocket that comes back.
//
// This file is the only source. `node build.js` makes dist/moongate.js of it, the same without comments, and
// dist/moongate.classic.js, for pages without modules. So that old browsers understand it, and taking comments out needs no
// parser, it is ES5 but for the one `export`, and a comment has its lines to itself.

// The end was meant: whoever came back would undo it, and two tabs that replace each other would never stop. 1000 is an
// ordinary end, 4000 what closeClient says, 4001 another login of a single uid.
var FINAL = [1000, 4000, 4001];

// Whoever came back at once would meet the same again: protocol broken, no UTF-8, a limit passed, too large, an error,
// too slow or no worker there.
var LATER = [1002, 1007, 1008, 1009, 1011, 1013];

// A connection that held for so many milliseconds was a good one, and waits begin anew. If an open one were enough, a node
// that lets everybody in and closes them at once would see them all within a second, for ever.
var STABLE = 10000;

export function Moongate(url, options) {
  var gate = this;
  var listeners = { init: [], open: [], message: [], json: [], close: [] };
  var urls = [].concat(url);
  // Whose turn it is: after each end the next one's.
  var place = 0;
  // What was said and could not go out yet.
  var queue = [];
  var socket = null;
  // When it was opened, unix milliseconds.
  var opened = 0;
  // How many ends there were since the last good connection.
  var ends = 0;
  // Counts what was begun, so that what comes late of something given up, such as a token, is known for what it is.
  var turn = 0;
  // While it connects: its deadline. While it waits: the next attempt.
  var timer;
  var silence;

  options = options || {};
  var heartbeat = options.heartbeat;

  function setting(name, usual) {
    return options[name] === undefined ? usual : options[name];
  }

  // A mistake in the application is told as uncaught, as it would be without us, and does not harm what comes after.
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
    // What is said while a socket closes, browsers take and drop.
    return gate.state === "open" && socket.readyState === 1;
  }

  // Gives up whatever is under way; what it still says nobody hears.
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

  // Stays away until connect() is called.
  function leave() {
    drop("closed");
    // It was said by whoever was logged in then.
    queue = [];
    watch("removeEventListener");
  }

  function attempt() {
    drop("connecting");
    gate.url = urls[place % urls.length];
    var mine = turn;
    // A handshake that nobody answers fails after minutes, a request for a token perhaps never.
    timer = setTimeout(function () {
      end(1006, "timeout");
    }, setting("timeout", 20000));

    function dial(token) {
      if (mine !== turn) return;
      var query = token ? (gate.url.indexOf("?") < 0 ? "?" : "&") + "token=" + encodeURIComponent(token) : "";
      try {
        socket = new WebSocket(gate.url + query);
      } catch (error) {
        // No address of a WebSocket, or ws: on a page of https: the next attempt would find the same.
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
    // What its listeners send goes ahead of what has waited: a login, say.
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
    // What nobody wants parsed is not.
    if (typeof data === "string" && (listeners.json.length || data.indexOf('"init"') > 0)) {
      try {
        json = JSON.parse(data);
      } catch (error) {
        // Then it is a message and no more.
      }
    }
    if (json && json.type === "init" && json.client_id) {
      gate.clientId = json.client_id;
      return emit("init", json);
    }
    emit("message", data);
    if (json !== undefined) emit("json", json);
  }

  // Pings of WebSocket never reach a page: only where the gateway sends PING_DATA can it know a dead connection by its
  // silence. What the page says counts, too: who speaks is not asked for a sign of life.
  function listen() {
    clearTimeout(silence);
    if (!heartbeat) return;
    silence = setTimeout(function () {
      // A page that was asleep hears first what has come meanwhile.
      silence = setTimeout(function () {
        end(1006, "silent");
      }, 1000);
    }, heartbeat.timeout || 60000);
  }

  // A connection or an attempt has ended: when is the next?
  function end(code, reason, error) {
    if (opened && Date.now() - opened >= STABLE) ends = 0;
    opened = 0;
    place++;
    var power = Math.max(ends, LATER.indexOf(code) < 0 ? 0 : 3);
    var most = Math.min(setting("maxDelay", 30000), setting("minDelay", 1000) * Math.pow(2, power));
    // At first anywhere in the first second, as many may have lost the same node; then in the upper half.
    var least = power ? most / 2 : 0;
    var delay = FINAL.indexOf(code) < 0 ? least + Math.random() * (most - least) : null;
    var close = { code: code, reason: reason, error: error, attempts: ++ends, delay: delay };
    drop("waiting");
    if (options.retry) {
      var wish = guarded(options.retry, close);
      if (wish !== undefined) close.delay = wish;
    }
    // It may have been told to close, or to connect, meanwhile.
    if (gate.state === "waiting") {
      if (typeof close.delay === "number") timer = setTimeout(attempt, close.delay);
      else leave();
    }
    emit("close", close);
  }

  // The browser knows some things before a timer does: timers of a page that nobody sees are late.
  function wake(event) {
    var type = event.type;
    // A page that its user has left may be kept for the way back, with its socket: whoever pushes would take it for here.
    if (type === "offline" || type === "pagehide") {
      if (gate.state === "connecting" || gate.state === "open") end(1006, type === "offline" ? type : "left");
      return;
    }
    // That was not the gateway's fault.
    if (type !== "visibilitychange") ends = 0;
    if (gate.state === "waiting" && (type !== "visibilitychange" || !document.hidden)) attempt();
  }

  // Only windows and workers have such events, and only windows a document.
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
    // As the gateway's own commands: text and bytes as they are, an object or array as its JSON.
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
    // This throws where a page may not say so: before anything has changed.
    if (socket) socket.close(code, reason);
    leave();
    emit("close", { code: code, reason: reason, attempts: ends, delay: null });
  };

  gate.state = "closed";
  gate.clientId = null;
  gate.connect();
}
