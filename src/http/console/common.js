// ---- what all views share

const $ = (id) => document.getElementById(id);
const MAX_ROWS = 500;
const MAX_TEXT = 4000;
const MAX_BYTES = 256;

const kept = {
  get(key) { try { return sessionStorage.getItem(key); } catch { return null; } },
  set(key, value) { try { value ? sessionStorage.setItem(key, value) : sessionStorage.removeItem(key); } catch { /* storage is switched off: nothing is kept */ } },
};
// What the gateway says of itself: where clients connect, and whether it has a token.
let gateway = {};
try { gateway = JSON.parse($('listen').textContent); } catch { /* served by something else: the usual port */ }

// ---- words

let language = kept.get('moongate.language') ?? (/^zh\b/i.test(navigator.language) ? 'zh' : 'en');
if (!(language in words)) language = 'en';

const word = (key, args) => words[language][key].replace(/\{(\d)\}/g, (_, n) => args?.[n] ?? '');
// The key and its arguments stay on the element, so that a change of language reaches it.
function say(element, key, ...args) {
  element.dataset.i18n = key;
  if (args.length) element.dataset.args = JSON.stringify(args); else delete element.dataset.args;
  element.textContent = word(key, args);
  return element;
}
function translate() {
  document.documentElement.lang = language === 'zh' ? 'zh-CN' : 'en';
  for (const element of document.querySelectorAll('[data-i18n]')) {
    element.textContent = word(element.dataset.i18n, element.dataset.args ? JSON.parse(element.dataset.args) : []);
  }
  for (const element of document.querySelectorAll('[data-hint]')) element.placeholder = word(element.dataset.hint);
  for (const element of document.querySelectorAll('[data-name]')) element.setAttribute('aria-label', word(element.dataset.name));
  const other = language === 'zh' ? 'en' : 'zh';
  $('language').textContent = other === 'zh' ? '中文' : 'English';
  $('language').lang = other;
}

// ---- elements: foreign words only ever become text

function make(tag, className, ...inside) {
  const element = document.createElement(tag);
  if (className) element.className = className;
  element.append(...inside.filter((part) => part !== undefined && part !== null));
  return element;
}
const told = (tag, className, key, ...args) => say(make(tag, className), key, ...args);
function link(hash, text, className = '') {
  const element = make('a', className, text);
  element.href = hash;
  return element;
}
const to = (view, ...names) => `#/${[view, ...names.map(encodeURIComponent)].join('/')}`;

// ---- numbers and times, as the language has them

const locale = () => (language === 'zh' ? 'zh-CN' : 'en-GB');
const number = (n) => new Intl.NumberFormat(locale(), { maximumFractionDigits: n < 10 && n % 1 ? 1 : 0 }).format(n);
function bytes(n) {
  if (n < 1024) return `${n} B`;
  return n < 1048576 ? `${(n / 1024).toFixed(1)} KiB` : `${(n / 1048576).toFixed(1)} MiB`;
}
const pad = (n, width = 2) => String(n).padStart(width, '0');
const clock = (at) => `${pad(at.getHours())}:${pad(at.getMinutes())}:${pad(at.getSeconds())}`;
const day = (at) => `${at.getFullYear()}-${pad(at.getMonth() + 1)}-${pad(at.getDate())} ${clock(at)}`;
const units = [['day', 86400000], ['hour', 3600000], ['minute', 60000], ['second', 1000]];
function ago(at) {
  const past = Date.now() - at;
  const [unit, size] = units.find(([, size]) => Math.abs(past) >= size) ?? units[3];
  return new Intl.RelativeTimeFormat(locale(), { numeric: 'auto' }).format(-Math.trunc(past / size), unit);
}
// The two largest units.
function span(ms) {
  const first = units.findIndex(([, size]) => ms >= size);
  if (first < 0) return word('unit.second', [0]);
  const part = ([unit, size], rest) => word(`unit.${unit}`, [Math.floor(rest / size)]);
  const [, size] = units[first];
  return part(units[first], ms) + (units[first + 1] ? ` ${part(units[first + 1], ms % size)}` : '');
}
function moment(at) {
  const element = make('time', 'mono', day(new Date(at)));
  element.dateTime = new Date(at).toISOString();
  element.title = ago(at);
  return element;
}

// ---- the HTTP API

const token = $('token');
const address = (path) => new URL(path, location.href.replace(/[?#].*$/s, '')).href;
const api = (op) => address(`api/${op}`);

function headers() {
  const secret = token.value.trim();
  if (/[^\x21-\x7e]/.test(secret)) return null;
  return secret ? { Authorization: `Bearer ${secret}` } : {};
}
async function fetched(url, options) {
  const mine = headers();
  if (!mine) return { failed: 'failed.ascii' };
  try {
    const signal = AbortSignal.timeout(15000);
    const answer = await fetch(url, { cache: 'no-store', signal, ...options, headers: { ...mine, ...options?.headers } });
    const text = await answer.text();
    let json;
    try { json = JSON.parse(text); } catch { /* not from this API: shown as it is */ }
    return { ok: answer.ok, status: answer.status, text, json };
  } catch {
    return { failed: 'failed.silent' };
  }
}
const get = (path) => fetched(address(path));
const post = (op, body) => fetched(api(op), { method: 'POST', headers: { 'Content-Type': 'application/json' }, body: JSON.stringify(body) });

// One call after the other's answer: then they also happen in this order.
let queue = Promise.resolve();
function call(op, body) {
  const mine = queue.then(() => post(op, body));
  queue = mine;
  return mine;
}

function show(place, outcome, ...hint) {
  const { failed, ok, status, text, json } = outcome;
  place.classList.toggle('bad', !ok);
  place.classList.remove('busy');
  place.replaceChildren();
  if (!failed) place.append(make('span', 'code', String(status)));
  if (ok && place.dataset.full !== undefined) place.append(make('span', 'body', text));
  if (ok === false) {
    if (json?.code) place.append(make('span', 'code', json.code));
    place.append(make('span', 'detail', json?.detail ?? json?.title ?? text.slice(0, 300)));
  }
  const key = failed ? [failed] : status === 401 ? ['failed.token'] : ok ? hint : [];
  if (key.length) place.append(told('span', failed ? '' : 'hint', ...key));
  refusal(outcome);
}
// Marks the token where it is what was wrong.
function refusal({ failed, status }) {
  const refused = status === 401 || failed === 'failed.ascii';
  if (refused) {
    $('secret').hidden = false;
    token.setAttribute('aria-invalid', 'true');
  } else {
    token.removeAttribute('aria-invalid');
  }
}
const heardBy = (nodes) => (nodes === undefined ? [] : nodes === 0 ? ['sent.none'] : nodes === 1 ? ['sent.one'] : ['sent.many', nodes]);

// ---- logs: a flood is painted some times a second, not once per message, and what is never painted is not even looked at

function makeLog(list, empty, painted) {
  let waiting = [];
  let flushing = 0;
  function paint() {
    flushing = 0;
    const rows = document.createDocumentFragment();
    for (const entry of waiting) rows.prepend(logRow(entry));
    waiting = [];
    list.prepend(rows);
    while (list.childElementCount > MAX_ROWS) list.lastElementChild.remove();
    turn();
  }
  function turn() {
    list.hidden = !list.childElementCount;
    empty.hidden = !list.hidden;
    painted?.();
  }
  return {
    add(kind, describe, at = new Date()) {
      waiting.push({ kind, describe, at });
      if (waiting.length > MAX_ROWS) waiting.shift();
      flushing ||= setTimeout(paint, 30);
    },
    clear() {
      waiting = [];
      list.replaceChildren();
      turn();
    },
  };
}
function logRow({ kind, describe, at }) {
  const { body, size, more } = describe();
  const element = make('div', 'row new');
  element.dataset.kind = kind;
  const time = make('time', '', `${clock(at)}.${pad(at.getMilliseconds(), 3)}`);
  time.dateTime = at.toISOString();
  element.append(time, told('span', 'kind', `row.${kind}`), make('span', 'body', body), make('span', 'size', size ?? ''));
  for (const line of more ?? []) element.append(told('span', 'more', ...line));
  return element;
}
function describeText(text, length = new Blob([text]).size) {
  let shown = text.slice(0, MAX_TEXT);
  if (shown.length < text.length && /[\ud800-\udbff]$/.test(shown)) shown = shown.slice(0, -1);
  return {
    body: shown,
    size: bytes(length),
    more: shown.length < text.length ? [['clipped.text', shown.length, text.length]] : [],
  };
}
function describeBinary(buffer, length = buffer.byteLength) {
  const shown = new Uint8Array(buffer).subarray(0, MAX_BYTES);
  return {
    body: Array.from(shown, (byte) => byte.toString(16).padStart(2, '0')).join(' '),
    size: bytes(length),
    more: shown.length < length ? [['clipped.binary', shown.length, length]] : [],
  };
}
