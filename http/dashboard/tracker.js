// The page of a tracker.

import { every, request, segment } from './api.js';
import { loadAccess, startAccess } from './members.js';
import { el, get, setText } from './dom.js';
import { openFile } from './file.js';
import { count, date, duration, idNode, latency, nameNode, number, short, size, visible } from './format.js';
import { t } from './language.js';
import { Table } from './rows.js';
import { act, openDialog, start } from './shell.js';

/** Pause after a letter before a search, so that fast typing sends few requests. */
const TYPING_MS = 120;
const PAGE = 100;
/** The largest page of peers. */
const MAX_PEERS = 1000;

let catalogue;
let peers;
let pins;
let latencies;
let isInviteOnly = false;

// Search

let search = new AbortController();
let found = [];

/** Shows the number of files found so far. */
function showCount(isSearching, next) {
  const sum = next === null ? count(found.length, 'file', 'files') : `${number(found.length)}+ ${t('files')}`;
  setText(get('catalogue-sum'), isSearching ? `${sum} · ${t('Searching')}` : sum);
  setText(catalogue.empty, isSearching ? t('Searching') : t('No file matches.'));
}

/** Searches from the start or from a cursor, and shows what each response adds. Ends the previous search. */
async function searchFiles(cursor) {
  search.abort();
  search = new AbortController();
  const { signal } = search;
  const query = new URLSearchParams({ pattern: get('pattern').value.trim(), limit: String(PAGE) });
  const wanted = (cursor === null ? 0 : found.length) + PAGE;
  let [next, isSearching] = [cursor, true];
  const proceed = () => act(() => searchFiles(next));
  get('catalogue').setAttribute('aria-busy', 'true');
  try {
    do {
      if (next !== null) query.set('cursor', next);
      const page = await request('GET', `/files?${query}`, { signal });
      if (next === null) {
        found = [];
        catalogue.reset();
        get('catalogue').scrollTop = 0;
      }
      found = [...found, ...page.files];
      next = page.next;
      // A large catalogue is searched in several requests.
      isSearching = next !== null && found.length < wanted;
      catalogue.load = isSearching || next === null ? null : proceed;
      catalogue.set(found);
      showCount(isSearching, next);
    } while (isSearching);
  } catch (error) {
    if (signal.aborted) return;
    showCount(false, next);
    if (next !== null) catalogue.load = proceed;
    throw error;
  } finally {
    if (!signal.aborted) get('catalogue').removeAttribute('aria-busy');
  }
}

function startSearch() {
  catalogue = new Table(get('catalogue'), {
    label: t('Catalogue'),
    key: ({ id, name, version }) => `${name} ${id} ${version}`,
    empty: t('No file matches.'),
    columns: [
      { label: t('Name'), kind: 'main', node: (file) => el('a', { href: `#file/${file.id}` }, nameNode(file.name, file.kind)), depends: ({ id, name }) => [id, name] },
      { label: t('Size'), kind: 'n', text: (file) => size(file.size) },
      { label: t('Providers'), kind: 'n', text: ({ providers }) => number(providers) },
      { label: t('Version'), kind: 'n', text: ({ version }) => number(version) },
      { label: t('Publisher'), node: ({ publisher }) => idNode(publisher), depends: ({ publisher }) => publisher },
      { label: t('Published'), kind: 'n', text: ({ published_ms }) => date(published_ms) },
    ],
  });
  let timer;
  get('pattern').addEventListener('input', () => {
    clearTimeout(timer);
    timer = setTimeout(() => act(() => searchFiles(null)), TYPING_MS);
  });
  get('search').addEventListener('submit', (event) => {
    event.preventDefault();
    clearTimeout(timer);
    act(() => searchFiles(null));
  });
}

let opened = new AbortController();
function showHash() {
  opened.abort();
  opened = new AbortController();
  const id = /^#file\/([0-9a-f]+)$/.exec(location.hash)?.[1];
  get('file-panel').hidden = id === undefined;
  get('catalogue-panel').hidden = id !== undefined;
  if (id === undefined) return;
  document.body.dataset.view = 'a';
  openFile(id, opened.signal);
}

// Cards

function showStatus(status) {
  setText(get('node-id'), short(visible(status.peer ?? '')));
  get('node-id').title = visible(status.peer ?? '');
  setText(get('count-files'), number(status.files));
  setText(get('count-peers'), number(status.peers));
  setText(get('online'), count(status.peers, 'peer online', 'peers online'));
  setText(get('uptime'), t('running for {time}', { time: duration(status.uptime_seconds) }));
  setText(get('version'), visible(status.version));
  setText(get('admission'), status.admission === 'invite' ? t('invite-only') : t('open'));
  setText(get('backend'), visible(status.backend ?? ''));
  get('listen').replaceChildren(...(status.listen ?? []).map((endpoint) => el('div', {}, visible(endpoint))));
  const store = status.pins;
  get('quota-box').hidden = !store;
  if (store) {
    get('quota').style.transform = `scaleX(${store.quota > 0 ? Math.min(1, store.bytes / store.quota) : 0})`;
    setText(get('quota-text'), t('{used} of {quota} reserved', { used: size(store.bytes), quota: size(store.quota) }));
    setText(get('pins-sum'), number(store.count));
  }
  latencies.set(status.storage ?? []);
  if (isInviteOnly !== (status.admission === 'invite')) {
    isInviteOnly = status.admission === 'invite';
    for (const node of document.querySelectorAll('[data-invite-only]')) node.hidden = !isInviteOnly;
    if (isInviteOnly) act(loadAccess);
  }
}

async function loadPeers() {
  const { peers: list, next } = await request('GET', `/peers?limit=${Math.min(peers.limit, MAX_PEERS)}`);
  peers.load = next && peers.limit < MAX_PEERS ? () => act(loadPeers) : null;
  peers.set(list.map((peer) => ({ ...peer, lease: Math.max(0, Math.round((peer.lease_until_ms - Date.now()) / 1000)) })));
  setText(get('peers-sum'), list.length === 0 ? '' : `${number(list.length)}${next ? '+' : ''}`);
}

async function loadPins() {
  pins.set((await request('GET', '/pins')).pins);
}

function unpin(pin) {
  openDialog({
    title: t('Remove the replica?'),
    body: [el('p', {}, pin.name ? nameNode(pin.name) : el('code', {}, pin.id)), el('p', { class: 'muted' }, t('The tracker deletes its replica. Peers keep theirs.'))],
    action: t('Unpin'),
    destroy: true,
    submit: async () => {
      await request('DELETE', `/pins/${segment(pin.id)}`);
      await loadPins();
    },
  });
}

function startCards() {
  peers = new Table(get('peers'), {
    label: t('Peers'),
    key: ({ peer }) => peer,
    empty: t('No peer is online.'),
    columns: [
      { label: t('Peer'), kind: 'main', depends: ({ peer, endpoints }) => [peer, endpoints], node: ({ peer, endpoints }) => el('div', {}, idNode(peer), el('div', { class: 'small muted wrap' }, endpoints.map(visible).join(', '))) },
      { label: t('Files'), kind: 'n', text: ({ files }) => (files === null || files === undefined ? '' : number(files)) },
      { label: t('Lease'), kind: 'n', text: ({ lease }) => duration(lease) },
    ],
  });
  pins = new Table(get('pins'), {
    label: t('Pins'),
    key: ({ id, peer }) => `${id} ${peer}`,
    empty: t('No file is pinned.'),
    columns: [
      { label: t('File'), kind: 'main', depends: ({ id, name }) => [id, name], node: ({ id, name }) => (name ? nameNode(name) : idNode(id)) },
      { label: t('Reserved'), kind: 'n', text: ({ reserved }) => size(reserved) },
      { label: t('State'), depends: ({ complete }) => complete, node: ({ complete }) => el('span', { class: `tag ${complete ? 'good' : ''}` }, complete ? t('stored') : t('incomplete')) },
      { label: t('Peer'), node: ({ peer }) => idNode(peer), depends: ({ peer }) => peer },
      { label: t('Actions'), kind: 'tools', depends: ({ id }) => id, node: (pin) => el('div', {}, el('button', { type: 'button', 'aria-label': `${t('Unpin')} ${visible(pin.name ?? pin.id)}`, on: { click: () => unpin(pin) } }, t('Unpin'))) },
    ],
  });
  latencies = new Table(get('latencies'), {
    label: t('Latencies of the storage'),
    key: ({ operation }) => operation,
    empty: t('No measurements yet.'),
    columns: [
      { label: t('Operation'), kind: 'main', text: ({ operation }) => visible(operation) },
      { label: t('Calls'), kind: 'n', text: (row) => number(row.count) },
      { label: t('Median'), kind: 'n', text: ({ p50_ms }) => latency(p50_ms) },
      { label: '99 %', kind: 'n', text: ({ p99_ms }) => latency(p99_ms) },
    ],
  });
}

startSearch();
startCards();
startAccess();
addEventListener('hashchange', showHash);
start({
  load: () => Promise.all([request('GET', '/status').then(showStatus), searchFiles(null), loadPins(), isInviteOnly && loadAccess()]),
  events: { status: showStatus },
});
showHash();
every(5000, () => {
  loadPeers().catch(() => {});
  if (isInviteOnly) loadAccess().catch(() => {});
});
