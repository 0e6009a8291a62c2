// ---- try it: a client of its own, named and sent to

const tryView = (() => {
const MASK = '•'.repeat(8);
let received = 0;
const log = makeLog($('log'), $('nothing'), () => {
  if (received === 1) say($('tally'), 'tally.one');
  else if (received) say($('tally'), 'tally.many', received.toLocaleString('en'));
  else { $('tally').textContent = ''; delete $('tally').dataset.i18n; }
});
$('clear').addEventListener('click', () => {
  received = 0;
  log.clear();
});

let socket = null;
let clientId = '';
let groups = new Set();

function setState(name, ...key) {
  $('state').dataset.state = name;
  say($('state'), ...(key.length ? key : [`state.${name}`]));
  $('step-connect').classList.toggle('done', name === 'open');
}
function setClient(id) {
  clientId = id;
  $('client-id').textContent = id;
  for (const button of ['bind', 'join', 'leave']) $(button).disabled = !id;
  aim();
}
function forget() {
  groups = new Set();
  $('my-uid').replaceChildren();
  $('my-groups').replaceChildren();
  $('step-name').classList.remove('done');
  for (const place of ['bind-answer', 'group-answer']) $(place).replaceChildren();
  setClient('');
}
function connect() {
  const before = socket;
  socket = null;
  before?.close(1000);
  forget();
  setState('connecting');
  const url = $('ws-url').value.trim();
  let mine;
  try {
    mine = new WebSocket(url);
  } catch (error) {
    setState('closed');
    log.add('error', () => ({ body: String(error.message ?? error) }));
    return;
  }
  socket = mine;
  mine.binaryType = 'arraybuffer';
  let opened = false;
  mine.addEventListener('open', () => {
    opened = true;
    // The query may hold a token.
    log.add('open', () => ({ body: url.replace(/[?#].*$/s, '') }));
    if (mine === socket) setState('open');
  });
  mine.addEventListener('message', ({ data }) => {
    received += 1;
    if (typeof data === 'string') log.add('text', () => describeText(data)); else log.add('binary', () => describeBinary(data));
    if (mine !== socket || clientId) return;
    const id = typeof data === 'string' ? clientIdOf(data) : '';
    if (id) {
      $('bind-answer').replaceChildren();
      setClient(id);
    } else if (!$('bind-answer').childElementCount) {
      $('bind-answer').append(told('span', 'hint', 'no-init'));
    }
  });
  mine.addEventListener('close', ({ code, reason }) => {
    const ending = `${code}${reason ? ` ${reason}` : ''}`;
    log.add('close', () => ({ body: ending, more: words.en[`code.${code}`] ? [[`code.${code}`]] : [] }));
    if (mine !== socket) return;
    socket = null;
    forget();
    if (opened) setState('closed', 'state.code', ending);
    else setState('closed');
  });
}
function clientIdOf(text) {
  try {
    const said = JSON.parse(text);
    return typeof said?.client_id === 'string' ? said.client_id : '';
  } catch {
    return '';
  }
}
$('connect-form').addEventListener('submit', (event) => {
  event.preventDefault();
  connect();
});

async function ask(place, op, body, hint) {
  place.classList.add('busy');
  const asker = clientId;
  const outcome = await call(op, body);
  show(place, outcome, ...(outcome.ok ? hint(outcome) : []));
  // The client may be another one by now.
  return outcome.ok && asker === clientId;
}

// ---- who this is

$('bind-form').addEventListener('submit', async (event) => {
  event.preventDefault();
  const uid = $('uid').value;
  if (await ask($('bind-answer'), 'bindUid', { client_id: clientId, uid }, () => ['bind.done', uid])) {
    $('my-uid').replaceChildren(make('span', 'chip', uid));
    $('step-name').classList.add('done');
  }
});
$('group-form').addEventListener('submit', async (event) => {
  event.preventDefault();
  const group = $('group').value;
  if (await ask($('group-answer'), 'joinGroup', { client_id: clientId, group }, () => ['join.done', group])) {
    groups.add(group);
    showGroups();
    $('step-name').classList.add('done');
  }
});
$('leave').addEventListener('click', async () => {
  const group = $('group').value;
  if (await ask($('group-answer'), 'leaveGroup', { client_id: clientId, group }, () => ['leave.done', group])) {
    groups.delete(group);
    showGroups();
  }
});
function showGroups() {
  $('my-groups').replaceChildren(...Array.from(groups, (group) => make('span', 'chip', group)));
}

// ---- send

const kind = $('target-kind');
const target = $('target');
const message = $('message');
const ops = { uid: 'sendToUid', group: 'sendToGroup', client: 'sendToClient', all: 'sendToAll' };
// What was typed as the target of each kind; until then it follows the fields of step 2.
const typed = {};

function aim() {
  const named = { uid: typed.uid ?? $('uid').value, group: typed.group ?? $('group').value, client: clientId, all: '' };
  target.value = named[kind.value];
  target.readOnly = kind.value === 'client';
  target.disabled = kind.value === 'all';
  say(document.querySelector('label[for="target"]'), `target.${kind.value}`);
  showCurl();
}
function sending() {
  const body = { message: message.value };
  if (kind.value === 'uid') return { uid: target.value, ...body };
  if (kind.value === 'group') return { group: target.value, ...body };
  if (kind.value === 'client') return { client_id: target.value, ...body };
  return body;
}
kind.addEventListener('change', aim);
target.addEventListener('input', () => {
  typed[kind.value] = target.value;
  showCurl();
});
for (const field of ['uid', 'group']) $(field).addEventListener('input', aim);
message.addEventListener('input', () => {
  message.dataset.touched = '';
  showCurl();
});
message.addEventListener('keydown', (event) => {
  if (event.key !== 'Enter' || event.shiftKey || event.altKey || event.isComposing || event.keyCode === 229) return;
  event.preventDefault();
  $('send-form').requestSubmit();
});
$('send-form').addEventListener('submit', (event) => {
  event.preventDefault();
  ask($('answer'), ops[kind.value], sending(), ({ json }) => {
    $('step-send').classList.add('done');
    return heardBy(json?.result?.nodes);
  });
});

// ---- the same as a command line

const quoted = (text) => `'${text.replaceAll("'", `'\\''`)}'`;
function curl(secret) {
  // JSON leaves some characters that act on a terminal, or turn its text around.
  const json = JSON.stringify(sending()).replace(/[\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff]/g, (c) => `\\u${c.charCodeAt(0).toString(16).padStart(4, '0')}`);
  const lines = [`curl ${quoted(api(ops[kind.value]))}`];
  if (secret) lines.push(`-H ${quoted(`Authorization: Bearer ${secret}`)}`);
  lines.push(`-H ${quoted('Content-Type: application/json')}`, `-d ${quoted(json)}`);
  return lines.join(' \\\n  ');
}
// The screen shows dots for the token; what is copied holds it.
function showCurl() {
  $('curl').textContent = curl(token.value.trim() ? MASK : '');
}
async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    // Over plain HTTP from elsewhere there is no clipboard object.
    const area = make('textarea', '');
    area.value = text;
    area.style.position = 'fixed';
    area.style.opacity = '0';
    document.body.append(area);
    area.select();
    const done = document.execCommand('copy');
    area.remove();
    $('copy').focus();
    return done;
  }
}
let copied = 0;
$('copy').addEventListener('click', async () => {
  say($('copy'), await copy(curl(token.value.trim())) ? 'copied' : 'uncopied');
  clearTimeout(copied);
  copied = setTimeout(() => say($('copy'), 'copy'), 1600);
});
$('curl').addEventListener('copy', (event) => {
  event.preventDefault();
  event.clipboardData.setData('text/plain', String(getSelection()).replaceAll(`Bearer ${MASK}`, () => `Bearer ${token.value.trim().replaceAll("'", `'\\''`)}`));
});

// ---- its view

$('ws-url').value = `${gateway.scheme ?? 'ws'}://${location.hostname || '127.0.0.1'}:${gateway.port ?? 7272}/`;
let begun = false;
return {
  // It is a client from the moment it is first looked at.
  show() {
    if (!begun) connect();
    begun = true;
  },
  render() {
    if (message.dataset.touched === undefined) message.value = word('message.first');
    showCurl();
  },
  tokenChanged: showCurl,
};
})();
