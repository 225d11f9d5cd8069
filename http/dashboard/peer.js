// The page of a peer.

import { every, request, segment } from './api.js';
import { RateGraph } from './canvas.js';
import { el, get, setText } from './dom.js';
import { downloadRate, load as loadDownloads, setDownloads, startDownloads } from './downloads.js';
import { count, date, duration, nameNode, rate, size, visible } from './format.js';
import { load as loadLibrary, setArriving, startLibrary } from './library.js';
import { t } from './language.js';
import { act, openDialog, start, toast } from './shell.js';

const MB = 1e6;

let graph;
/** The last known number of sent bytes and its time. */
let sent = null;
let uploadRate = 0;

function showStatus(status) {
  const now = performance.now();
  if (sent !== null && status.sent_bytes >= sent.bytes && now - sent.at > 200) uploadRate = ((status.sent_bytes - sent.bytes) * 1000) / (now - sent.at);
  sent = { bytes: status.sent_bytes, at: now };
  setText(get('node-id'), visible(status.peer).slice(0, 8));
  get('node-id').title = visible(status.peer);
  setText(get('uptime'), t('running for {time}', { time: duration(status.uptime_seconds) }));
  setText(get('version'), visible(status.version));
  setText(get('sent'), size(status.sent_bytes));
  get('listen').replaceChildren(...status.listen.map((endpoint) => el('div', {}, visible(endpoint))));
  showTrackers(status.trackers);
}

function showTrackers(trackers) {
  const connected = trackers.filter((tracker) => tracker.connected).length;
  setText(get('tracker-state'), connected > 0 ? count(connected, 'tracker', 'trackers') : t('no tracker'));
  get('tracker-dot').className = `dot ${connected > 0 ? 'good' : 'bad'}`;
  get('trackers').replaceChildren(...trackers.map(({ endpoint, connected, problem }) => el('li', {},
    el('div', {}, el('div', { class: 'wrap mono' }, visible(endpoint)), problem && el('div', { class: 'small muted wrap' }, visible(problem))),
    el('span', { class: `tag ${connected ? 'good' : 'bad'}` }, connected ? t('connected') : t('not connected')))));
  get('trackers-empty').hidden = trackers.length > 0;
}

async function loadLimits() {
  const limits = await request('GET', '/limits');
  for (const [id, key] of [['limit-down', 'download_rate'], ['limit-up', 'upload_rate']]) {
    get(id).value = limits[key] === null ? '' : String(limits[key] / MB);
  }
}

async function loadPins() {
  const { pins } = await request('GET', '/pins');
  get('pins').replaceChildren(...pins.map((pin) => el('li', {},
    el('div', {}, pin.name ? nameNode(pin.name) : el('code', { title: pin.id }, pin.id.slice(0, 16)),
      el('div', { class: 'small muted' }, `${size(pin.reserved)} · ${date(pin.pinned_ms)}`)),
    el('span', { class: `tag ${pin.complete ? 'good' : ''}` }, pin.complete ? t('stored') : t('incomplete')),
    el('button', { type: 'button', on: { click: () => unpin(pin) }, 'aria-label': `${t('Unpin')} ${visible(pin.name ?? pin.id)}` }, t('Unpin')))));
  get('pins-empty').hidden = pins.length > 0;
}

function unpin(pin) {
  openDialog({
    title: t('Remove the replica of the tracker?'),
    body: [el('p', {}, pin.name ? nameNode(pin.name) : el('code', {}, pin.id))],
    action: t('Unpin'),
    destroy: true,
    submit: async () => {
      await request('DELETE', `/pins/${segment(pin.id)}`);
      await loadPins();
    },
  });
}

async function loadConfig() {
  const { settings } = await request('GET', '/config');
  get('config').replaceChildren(...Object.entries(settings).map(([key, value]) => el('li', {},
    el('code', { class: 'wrap' }, visible(key)), el('code', { class: 'wrap muted' }, visible(JSON.stringify(value))))));
}

function tick() {
  const down = downloadRate();
  graph.add([down, uploadRate]);
  setText(get('rate-down'), rate(down));
  setText(get('rate-up'), rate(uploadRate));
}

startDownloads();
startLibrary();
graph = new RateGraph(get('graph'), ['accent-fill', 'info-fill']);
get('limits').addEventListener('submit', (event) => {
  event.preventDefault();
  const value = (id) => (get(id).value === '' ? null : Math.round(Number(get(id).value) * MB));
  act(async () => {
    await request('PUT', '/limits', { body: { download_rate: value('limit-down'), upload_rate: value('limit-up') } });
    toast(t('Limits changed until the node restarts'));
  });
});
get('config-box').addEventListener('toggle', ({ target }) => { if (target.open) act(loadConfig); });

let libraryTimer;
start({
  load: () => Promise.all([
    request('GET', '/status').then(showStatus), loadDownloads(), loadLibrary(), loadLimits(),
    // A tracker that is not reachable is not a problem of this page.
    loadPins().catch(() => {}),
  ]),
  events: {
    downloads: ({ downloads }) => {
      setDownloads(downloads);
      setArriving(downloads);
    },
    library: () => {
      clearTimeout(libraryTimer);
      libraryTimer = setTimeout(() => loadLibrary().catch(() => {}), 300);
    },
    status: showStatus,
  },
});
every(1000, tick);
