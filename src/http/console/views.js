// ---- tables, pages, and what went wrong

// Columns are [word, cell, class]; a cell is text or an element.
function table(columns, rows) {
  const head = columns.map(([key, , className]) => told('th', className, key));
  for (const cell of head) cell.scope = 'col';
  const line = (row) => make('tr', '', ...columns.map(([, cell, className]) => make('td', className, cell(row))));
  return make('table', '', make('thead', '', make('tr', '', ...head)), make('tbody', '', ...rows.map(line)));
}
const nothing = (key, ...args) => make('div', 'empty', told('p', '', key, ...args));
const pill = (state, text) => {
  const element = make('span', 'state', text);
  element.dataset.state = state;
  return element;
};
const names = {
  clients: (id) => link(to('clients', id), id, 'mono id'),
  uids: (uid) => link(to('uids', uid), uid, 'mono'),
  groups: (group) => link(to('groups', group), group, 'mono'),
};
// A node that was not given a name has a UUID.
const node = (id) => {
  const element = make('span', 'mono id', /^[0-9a-f]{8}-[0-9a-f-]{27}$/.test(id) ? id.slice(0, 8) : id);
  element.title = id;
  return element;
};
const clientColumns = [
  ['column.client', (client) => names.clients(client.client_id)],
  ['column.uid', (client) => (client.uid === null ? told('span', 'hint', 'uid.none') : names.uids(client.uid))],
  ['column.node', (client) => node(client.node)],
  ['column.ip', (client) => make('span', 'mono', client.ip ?? '')],
  ['column.since', (client) => (client.connected_at ? moment(client.connected_at) : '')],
];
const PAGE = 50;
const MOST_LISTED = 100000;

// What a view needs, or the first answer that failed.
class Failed extends Error {
  constructor(outcome) {
    super('');
    this.outcome = outcome;
  }
}
async function good(asked) {
  const outcome = await asked;
  if (!outcome.ok) throw new Failed(outcome);
  return outcome.json;
}
const result = async (op, body) => (await good(post(op, body))).result;
async function profiles(ids) {
  return ids.length ? (await good(get(`console/clients?client_id=${ids.join()}`))).clients : [];
}

// Pages forth and back: of a listing only the way forth is known.
function makePages(place, turned) {
  let cursors = [null];
  let following = null;
  const element = (name) => $(`${place}-${name}`);
  element('next').addEventListener('click', () => {
    cursors.push(following);
    turned();
  });
  element('before').addEventListener('click', () => {
    cursors.pop();
    turned();
  });
  return {
    begin() { cursors = [null]; },
    cursor: () => (cursors.at(-1) === null ? {} : { cursor: cursors.at(-1) }),
    show(next) {
      following = next ?? null;
      element('pages').hidden = following === null && cursors.length === 1;
      element('next').disabled = following === null;
      element('before').disabled = cursors.length === 1;
      say(element('page'), 'page', cursors.length);
    },
  };
}

// What a view asks for; of two that are under way the later one counts. What was said stays until the next answer.
function makeAsking(place, said) {
  let turn = 0;
  return async (ask, render) => {
    const mine = ++turn;
    place.classList.add('busy');
    try {
      const found = await ask();
      if (mine !== turn) return;
      said.replaceChildren();
      refusal({});
      render(found);
    } catch (failed) {
      if (mine !== turn) return;
      if (!(failed instanceof Failed)) throw failed;
      show(said, failed.outcome);
    } finally {
      if (mine === turn) place.classList.remove('busy');
    }
  };
}

// ---- nodes

const nodesView = (() => {
  const KEPT = 300000;
  const charts = [['rate.in', 'in'], ['rate.out', 'out'], ['rate.connects', 'connects'], ['rate.closes', 'closes']];
  let last = null;
  let timer = 0;
  // What each node had counted at the last look, and its rates since the one before.
  let before = new Map();
  let samples = [];
  const asking = makeAsking($('nodes'), $('nodes-said'));

  function look() {
    clearTimeout(timer);
    asking(() => good(get('nodes')), take).finally(() => {
      clearTimeout(timer);
      if (current === nodesView && document.visibilityState === 'visible') timer = setTimeout(look, 2000);
    });
  }
  function take(json) {
    const counted = new Map();
    const sum = { at: json.at, in: 0, out: 0, connects: 0, closes: 0 };
    let measured = false;
    for (const now of json.nodes) {
      const key = `${now.node} ${now.started_at}`;
      const was = before.get(key);
      const ms = was ? now.uptime_ms - was.now.uptime_ms : 0;
      let rates = was?.rates;
      if (ms > 0) {
        const of = (field) => Math.max(0, (now[field] - was.now[field]) * 1000 / ms);
        const connects = Math.max(0, (now.clients + now.closed - was.now.clients - was.now.closed) * 1000 / ms);
        const processor = now.cpu_ms === null ? null : Math.max(0, (now.cpu_ms - was.now.cpu_ms) / ms);
        rates = { in: of('messages_in'), out: of('deliveries'), closes: of('closed'), connects, processor };
      }
      counted.set(key, { now: ms > 0 || !was ? now : was.now, rates });
      if (rates && now.age_ms < 5000) {
        measured = true;
        for (const [, name] of charts) sum[name] += rates[name];
      }
    }
    before = counted;
    if (measured) samples = [...samples, sum].filter((sample) => sample.at > json.at - KEPT);
    last = json;
    render();
  }
  function render() {
    if (!last) return;
    const { nodes, redis } = last;
    $('redis').hidden = !redis;
    if (redis) {
      $('redis').dataset.state = redis.up ? 'open' : 'closed';
      say($('redis'), redis.up ? 'redis.up' : 'redis.away');
    }
    const rates = (it) => before.get(`${it.node} ${it.started_at}`)?.rates;
    const total = (of) => nodes.reduce((sum, it) => sum + (of(it) ?? 0), 0);
    const percent = (part) => `${number(part * 100)} %`;
    const tile = (key, value) => make('div', '', told('dt', '', key), make('dd', '', value));
    $('tiles').replaceChildren(
      tile('nodes.clients', number(total((it) => it.clients))),
      tile('nodes.nodes', told('span', '', 'nodes.ready', nodes.filter(isReady).length, nodes.length)),
      tile('nodes.memory', bytes(total((it) => it.memory))),
      tile('nodes.processor', samples.length ? percent(total((it) => rates(it)?.processor)) : '—'),
    );
    $('charts').replaceChildren(...charts.map(([key, name]) => chart(key, name)));
    const rate = (name) => (it) => (rates(it) ? number(rates(it)[name]) : '—');
    $('nodes').replaceChildren(table([
      ['column.node', (it) => node(it.node)],
      ['column.state', state],
      ['column.clients', (it) => number(it.clients), 'number'],
      ['column.uids', (it) => number(it.uids), 'number'],
      ['column.groups', (it) => number(it.groups), 'number'],
      ['column.in', rate('in'), 'number'],
      ['column.out', rate('out'), 'number'],
      ['column.dropped', (it) => number(it.dropped), 'number'],
      ['column.memory', (it) => (it.memory === null ? '—' : bytes(it.memory)), 'number'],
      ['column.processor', (it) => (rates(it)?.processor == null ? '—' : percent(rates(it).processor)), 'number'],
      ['column.uptime', (it) => span(it.uptime_ms), 'number'],
      ['column.version', (it) => make('span', 'mono', it.version)],
    ], nodes));
  }
  const isReady = (it) => it.ready.startsWith('ready') && it.age_ms < 5000;
  function state(it) {
    if (it.age_ms >= 5000) return say(pill('closed'), 'node.silent', span(it.age_ms));
    return it.ready === 'ready' ? say(pill('open'), 'node.ready') : pill(isReady(it) ? '' : 'closed', it.ready);
  }
  // The line of the last five minutes; a gap where nobody looked.
  function chart(key, name) {
    const WIDTH = 300;
    const HEIGHT = 64;
    const card = make('figure', 'card chart');
    const [now, most] = [samples.at(-1)?.[name], Math.max(0, ...samples.map((sample) => sample[name]))];
    const shown = samples.length ? make('span', '', number(now), told('small', '', 'rate.second')) : told('span', 'hint', 'rate.wait');
    card.append(make('figcaption', '', told('span', 'hint', key), shown));
    const svg = (tag, attributes) => {
      const element = document.createElementNS('http://www.w3.org/2000/svg', tag);
      for (const [attribute, value] of Object.entries(attributes)) element.setAttribute(attribute, value);
      return element;
    };
    const label = word('rate.told', [word(key), number(now ?? 0), number(most)]);
    const drawing = svg('svg', { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: 'none', role: 'img', 'aria-label': label });
    // A minute at first, growing to five.
    const shownFor = Math.max(60000, samples.length ? last.at - samples[0].at : 0);
    const x = (sample) => (WIDTH * (1 - (last.at - sample.at) / shownFor)).toFixed(1);
    const y = (sample) => (HEIGHT - 2 - (HEIGHT - 6) * (most ? sample[name] / most : 0)).toFixed(1);
    let pieces = [];
    samples.forEach((sample, place) => {
      if (!place || sample.at - samples[place - 1].at > 10000) pieces.push([]);
      pieces.at(-1).push(sample);
    });
    pieces = pieces.filter((piece) => piece.length > 1);
    for (const piece of pieces) {
      const line = piece.map((sample) => `${x(sample)},${y(sample)}`).join(' ');
      drawing.append(svg('polygon', { points: `${x(piece[0])},${HEIGHT} ${line} ${x(piece.at(-1))},${HEIGHT}` }), svg('polyline', { points: line }));
    }
    card.append(drawing, told('small', 'hint', 'rate.most', number(most)));
    return card;
  }
  document.addEventListener('visibilitychange', () => {
    if (current === nodesView && document.visibilityState === 'visible') look();
  });
  return { section: 'view-nodes', show: look, refresh: look, render };
})();

// ---- lists: clients, uids, groups, tasks, and what was found

const listView = (() => {
  let kind = 'clients';
  let more = [];
  let shown = null;
  const pages = makePages('list', refresh);
  const asking = makeAsking($('list'), $('list-said'));

  const bySize = (path, columns, empty) => ({
    async ask() {
      const query = new URLSearchParams({ limit: PAGE, ...pages.cursor() });
      const { items, cursor, total, complete } = await good(get(`console/${path}?${query}`));
      return { rows: items, cursor, count: total, columns, empty: [empty], note: complete ? null : ['sizes.part'] };
    },
  });
  const count = ['column.clients', (item) => number(item.clients), 'number'];
  const kinds = {
    clients: {
      async ask() {
        const all = await result('getAllClientIdCount', {});
        const found = { count: all, columns: clientColumns, empty: ['clients.none'] };
        if (all > MOST_LISTED) return { ...found, rows: [], empty: ['clients.many', number(all)] };
        const { items, cursor } = await result('getAllClientIdList', { limit: PAGE, ...pages.cursor() });
        return { ...found, cursor, rows: await profiles(items) };
      },
    },
    uids: bySize('uids', [['column.uid', (item) => names.uids(item.name)], count], 'uids.none'),
    groups: bySize('groups', [['column.group', (item) => names.groups(item.name)], count], 'groups.empty'),
    tasks: {
      async ask() {
        const state = more[0] ? { state: more[0] } : {};
        const { items, cursor } = await result('listTasks', { ...state, limit: PAGE, ...pages.cursor() });
        return { rows: items, cursor, columns: taskColumns, empty: ['tasks.none'] };
      },
    },
    find: {
      // One found is shown at once.
      async ask() {
        const [text] = more;
        const asked = [['uids', { op: 'isUidOnline', uid: text }], ['groups', { op: 'getClientIdCountByGroup', group: text }]];
        if (/^[0-9a-f]{20}$/i.test(text)) asked.push(['clients', { op: 'isOnline', client_id: text.toLowerCase() }]);
        const { results } = await good(post('batch', { commands: asked.map(([, command]) => command) }));
        // A name that is none is nobody's; what else went wrong says nothing about it.
        const error = results.find((each) => each.error && each.error.code !== 'invalid_request')?.error;
        if (error) throw new Failed({ ok: false, status: error.status, json: error, text: '' });
        const rows = asked.filter((_, place) => results[place].result).map(([of]) => ({ of, name: of === 'clients' ? text.toLowerCase() : text }));
        if (rows.length === 1) location.replace(to(rows[0].of, rows[0].name));
        return { rows, columns: [['find.title', (row) => make('span', '', told('span', 'hint', `tab.${row.of}`), ' ', names[row.of](row.name))]], empty: ['find.none', text] };
      },
    },
  };

  // ---- tasks

  const taskColumns = [
    ['column.task', (task) => make('span', 'mono', task.id)],
    ['column.state', (task) => say(pill({ done: 'open', dead: 'closed' }[task.state] ?? ''), `state.${task.state}`)],
    ['column.what', what],
    ['column.attempts', (task) => number(task.attempts), 'number'],
    ['column.due', (task) => (task.next_at ? moment(task.next_at) : '')],
    ['column.deed', deed, 'deed'],
  ];
  function what({ task, reason }) {
    const op = typeof task.command === 'object' ? task.command?.op : undefined;
    const about = task.webhook !== undefined ? word('tasks.webhook') : String(op ?? '—');
    const title = [about, task.cron].filter(Boolean).join(' · ');
    const details = make('details', '', make('summary', 'mono', title), make('pre', 'mono', JSON.stringify(task, null, 2)));
    return reason ? make('div', '', details, make('p', 'hint reason', reason)) : details;
  }
  function deed({ id, state }) {
    const deeds = { dead: ['tasks.retry', 'retryTask', 'tasks.retried', 'tasks.unretried'], waiting: ['tasks.cancel', 'cancelTask', 'tasks.cancelled', 'tasks.uncancelled'] };
    if (!(state in deeds)) return '';
    const [key, op, done, undone] = deeds[state];
    const button = told('button', 'small', key);
    button.type = 'button';
    button.addEventListener('click', async () => {
      button.disabled = true;
      const outcome = await post(op, { id });
      if (outcome.ok) await refresh();
      show($('list-said'), outcome, ...(outcome.ok ? [outcome.json.result ? done : undone, id] : []));
      button.disabled = false;
    });
    return button;
  }
  function states() {
    const all = [null, 'waiting', 'running', 'done', 'dead'];
    const one = (state) => {
      const choice = told('a', 'button small', state ? `state.${state}` : 'tasks.all');
      choice.href = state ? to('tasks', state) : to('tasks');
      if (state === (more[0] ?? null)) choice.setAttribute('aria-current', 'true');
      return choice;
    };
    $('list-states').replaceChildren(...(kind === 'tasks' ? all.map(one) : []));
  }

  function refresh() {
    return asking(kinds[kind].ask, (found) => {
      shown = found;
      pages.show(found.cursor);
      render();
    });
  }
  function render() {
    if (!shown) return;
    const { rows, columns, empty, note, count: all } = shown;
    $('list').replaceChildren(rows.length ? table(columns, rows) : nothing(...empty));
    $('list-count').textContent = all === undefined ? '' : number(all);
    $('list-note').hidden = !note;
    if (note) say($('list-note'), ...note);
  }
  return {
    section: 'view-list',
    show([of, ...rest]) {
      [kind, more, shown] = [of, rest, null];
      say($('title-list'), kind === 'find' ? 'find.title' : `tab.${kind}`);
      for (const place of ['list', 'list-said', 'list-count']) $(place).replaceChildren();
      $('list-note').hidden = true;
      pages.begin();
      pages.show(null);
      states();
      return refresh();
    },
    refresh,
    render,
  };
})();

// ---- one: a client, a uid, a group

const oneView = (() => {
  let kind = 'clients';
  let name = '';
  let shown = null;
  const pages = makePages('one', refresh);
  const asking = makeAsking($('one'), $('one-said'));
  const fields = { clients: 'client_id', uids: 'uid', groups: 'group' };
  const sends = { clients: 'sendToClient', uids: 'sendToUid', groups: 'sendToGroup' };
  const asks = {
    async clients() {
      return { profile: (await profiles([name]))[0] };
    },
    async uids() {
      const ids = await result('getClientIdByUid', { uid: name });
      return { rows: await profiles(ids.slice(0, PAGE)), all: ids.length };
    },
    async groups() {
      const { items, cursor } = await result('getClientIdListByGroup', { group: name, limit: PAGE, ...pages.cursor() });
      return { rows: await profiles(items), cursor };
    },
  };
  const gone = { clients: 'client.gone', uids: 'uid.gone', groups: 'group.gone' };

  function refresh() {
    return asking(asks[kind], (found) => {
      shown = found;
      pages.show(found.cursor);
      render();
    });
  }
  function render() {
    if (!shown) return;
    const { profile, rows, all } = shown;
    if (profile) $('one').replaceChildren(sheet(profile));
    else if (rows?.length) $('one').replaceChildren(table(clientColumns, rows));
    else $('one').replaceChildren(nothing(gone[kind]));
    if (all > PAGE) $('one').append(told('p', 'hint', 'one.first', PAGE, all));
  }
  function sheet(client) {
    const groups = client.groups.length
      ? make('span', 'chips', ...client.groups.map((group) => link(to('groups', group), group, 'chip')))
      : told('span', 'hint', 'groups.none');
    const session = client.session === null
      ? told('span', 'hint', 'session.none')
      : make('pre', 'mono', JSON.stringify(client.session, null, 2));
    const line = (key, value) => make('div', '', told('dt', '', key), make('dd', '', value));
    const since = client.connected_at ? make('span', '', moment(client.connected_at), ' ', make('span', 'hint', ago(client.connected_at))) : '—';
    return make('dl', 'sheet',
      line('column.uid', client.uid === null ? told('span', 'hint', 'uid.none') : names.uids(client.uid)),
      line('column.groups', groups),
      line('session', session),
      line('column.node', node(client.node)),
      line('column.ip', make('span', 'mono', client.ip ?? '—')),
      line('column.since', since));
  }
  $('push').addEventListener('submit', async (event) => {
    event.preventDefault();
    const outcome = await call(sends[kind], { [fields[kind]]: name, message: $('push-message').value });
    show($('push-said'), outcome, ...(outcome.ok ? heardBy(outcome.json?.result?.nodes) : []));
  });
  return {
    section: 'view-one',
    show([of, one]) {
      [kind, name, shown] = [of, one, null];
      say($('kind-one'), `column.${{ clients: 'client', uids: 'uid', groups: 'group' }[kind]}`);
      $('title-one').textContent = name;
      $('one-tail').href = to('tail', fields[kind], name);
      for (const place of ['one', 'one-said', 'push-said']) $(place).replaceChildren();
      pages.begin();
      pages.show(null);
      return refresh();
    },
    refresh,
    render,
  };
})();

// ---- a live tail

const tailView = (() => {
  const log = makeLog($('tail-log'), $('tail-nothing'));
  let running = null;

  function setState(state, ...key) {
    $('tail-state').dataset.state = state;
    say($('tail-state'), ...key);
  }
  function stop() {
    running?.abort();
    running = null;
    setState('closed', 'tail.off');
    turn();
  }
  function turn() {
    $('tail-stop').hidden = !running;
    $('tail-start').hidden = Boolean(running);
    document.querySelector('#tabs a[href="#/tail"]').classList.toggle('running', Boolean(running));
  }
  async function start(kind, name) {
    stop();
    const mine = new AbortController();
    running = mine;
    turn();
    $('tail-said').replaceChildren();
    setState('connecting', 'tail.connecting');
    while (running === mine) {
      const refused = await read(mine, kind, name);
      if (running !== mine) return;
      if (refused) {
        stop();
        show($('tail-said'), refused);
        return;
      }
      setState('connecting', 'tail.lost');
      await new Promise((wake) => setTimeout(wake, 2000));
    }
  }
  // Reads until the connection ends; returns an answer that is none.
  async function read(mine, kind, name) {
    const own = headers();
    if (!own) return { failed: 'failed.ascii' };
    try {
      const query = new URLSearchParams({ [kind]: name });
      const answer = await fetch(address(`console/tail?${query}`), { headers: own, signal: mine.signal, cache: 'no-store' });
      if (!answer.ok) {
        const text = await answer.text();
        let json;
        try { json = JSON.parse(text); } catch { /* not from this API */ }
        return { ok: false, status: answer.status, text, json };
      }
      refusal({});
      const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
      let rest = '';
      for (;;) {
        const { value, done } = await reader.read();
        if (done) return null;
        const events = (rest + value).split('\n\n');
        rest = events.pop();
        for (const event of events) take(JSON.parse(event.replace(/^data: /, '')));
      }
    } catch {
      return null;
    }
  }
  function take(line) {
    if (line.kind === 'tailing') setState('open', ...(line.nodes === 1 ? ['tail.one'] : ['tail.many', line.nodes]));
    else if (line.kind === 'away') setState('connecting', 'tail.away');
    else log.add(line.kind, () => describe(line), new Date(line.at ?? Date.now()));
  }
  function describe(line) {
    const who = line.client_id === undefined ? [] : [names.clients(line.client_id), ' '];
    if (line.kind === 'skipped') return { body: word('skipped', [number(line.count)]) };
    if (line.text !== undefined || line.binary !== undefined) {
      const { body, size } = line.binary === undefined ? describeText(line.text, line.length) : describeBinary(bytesOf(line.binary), line.length);
      const more = [];
      const copied = line.binary === undefined ? new Blob([body]).size : body.split(' ').length;
      if (copied < line.length) more.push(['clipped.binary', copied, line.length]);
      if (line.kind === 'message') more.push(['tail.sockets', line.node.slice(0, 8), line.clients]);
      return { body: make('span', '', ...who, body), size, more };
    }
    const about = { bound: line.uid, unbound: line.uid, joined: line.group, left: line.group, close: `${line.code} ${line.reason}` }[line.kind];
    return { body: make('span', '', ...who, about ?? '') };
  }
  const bytesOf = (base64) => Uint8Array.from(atob(base64), (letter) => letter.charCodeAt(0)).buffer;

  $('tail-form').addEventListener('submit', (event) => {
    event.preventDefault();
    const hash = to('tail', $('tail-kind').value, $('tail-name').value);
    if (location.hash === hash) start($('tail-kind').value, $('tail-name').value);
    else location.hash = hash;
  });
  $('tail-stop').addEventListener('click', stop);
  $('tail-clear').addEventListener('click', log.clear);
  // It goes on while other views are looked at.
  let tailed = '';
  return {
    section: 'view-tail',
    show([, kind, name]) {
      if (kind === undefined || name === undefined) return;
      $('tail-kind').value = kind;
      $('tail-name').value = name;
      if (running && tailed === location.hash) return;
      tailed = location.hash;
      start(kind, name);
    },
    refresh() {
      if (running) return;
      if ($('tail-name').value) start($('tail-kind').value, $('tail-name').value);
    },
  };
})();

// ---- which view, keys, the token, the language

tryView.section = 'view-try';
let current = null;
function route() {
  // The skip link is none of a view.
  if (location.hash && !location.hash.startsWith('#/')) return;
  let [of, ...rest] = location.hash.slice(2).split('/');
  try { rest = rest.map(decodeURIComponent); } catch { rest = []; }
  const some = rest[0] !== undefined && rest[0] !== '';
  const is = (...kinds) => kinds.includes(of);
  if (is('clients', 'uids', 'groups') && some) current = oneView;
  else if (is('clients', 'uids', 'groups', 'tasks') || (is('find') && some)) current = listView;
  else if (is('nodes')) current = nodesView;
  else if (is('tail')) current = tailView;
  else [of, current] = ['try', tryView];
  for (const view of [tryView, nodesView, listView, oneView, tailView]) $(view.section).hidden = view !== current;
  for (const tab of document.querySelectorAll('#tabs a')) {
    if (tab.hash !== `#/${of}`) tab.removeAttribute('aria-current');
    else {
      tab.setAttribute('aria-current', 'page');
      // Where there is no room for all.
      tab.scrollIntoView({ block: 'nearest', inline: 'center' });
    }
  }
  current.show([of, ...rest]);
}
addEventListener('hashchange', route);

$('search').addEventListener('submit', (event) => {
  event.preventDefault();
  const text = $('find').value.trim();
  if (text) location.hash = to('find', text);
});
for (const place of ['list', 'one']) $(`${place}-again`).addEventListener('click', () => current.refresh());
$('push-message').addEventListener('keydown', (event) => {
  if (event.key !== 'Enter' || event.shiftKey || event.altKey || event.isComposing || event.keyCode === 229) return;
  event.preventDefault();
  $('push').requestSubmit();
});
document.addEventListener('keydown', (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.isComposing) return;
  const at = event.target;
  if (at.matches('input, textarea, select')) {
    if (event.key === 'Escape') at.blur();
    return;
  }
  if (event.key === '/') {
    event.preventDefault();
    $('find').focus();
    $('find').select();
  } else if (event.key === 'r') {
    current.refresh?.();
  } else if (/^[1-7]$/.test(event.key)) {
    location.hash = document.querySelectorAll('#tabs a')[event.key - 1].hash;
  } else if (event.key === 'ArrowDown' || event.key === 'ArrowUp') {
    // From row to row, where the focus is in one.
    const row = at.closest('tbody tr');
    const other = event.key === 'ArrowDown' ? row?.nextElementSibling : row?.previousElementSibling;
    const next = other?.querySelector('a, summary, button');
    if (next) {
      event.preventDefault();
      next.focus();
    }
  }
});

let changed = 0;
function tokenChanged() {
  kept.set('moongate.token', token.value.trim());
  token.removeAttribute('aria-invalid');
  // A link cannot carry the token.
  $('links').hidden = token.value.trim() !== '';
  tryView.tokenChanged();
}
token.addEventListener('input', () => {
  tokenChanged();
  clearTimeout(changed);
  changed = setTimeout(() => current.refresh?.(), 400);
});
token.value = kept.get('moongate.token') ?? '';
$('secret').hidden = !gateway.token && token.value === '';
$('language').addEventListener('click', () => {
  language = language === 'zh' ? 'en' : 'zh';
  kept.set('moongate.language', language);
  translate();
  tryView.render();
  current.render?.();
});

translate();
tryView.render();
tokenChanged();
route();
