// The downloads of a peer: list, order, details.

import { every, request, segment } from './api.js';
import { PieceMap, RateGraph, SOURCE_COLOURS } from './canvas.js';
import { beforeFrame, el, get, icon, iconButton, setAttribute, setText } from './dom.js';
import { count, duration, idNode, nameNode, number, percent, rate, size, visible } from './format.js';
import { t } from './language.js';
import { Rows, Table } from './rows.js';
import { act, openDialog, toast } from './shell.js';

const STATES = {
  queued: 'Queued', searching: 'Searching', active: 'Active', paused: 'Paused', disk_full: 'Disk full', complete: 'Complete',
  failed: 'Failed',
};
const TAGS = { complete: 'good', disk_full: 'bad', failed: 'bad', searching: 'warn' };
const PAUSABLE = ['queued', 'searching', 'active', 'disk_full'];

const path = (download, action = '') => `/downloads/${segment(download.id)}${action}`;

let downloads = [];
/** Number of downloads with a position: those of the queue that are not finished. */
let length = 0;
let rows;
/** The row that is dragged. */
let dragged = null;

function announce(text) {
  setText(get('announcement'), text);
}

async function move(download, position) {
  if (download.position === null || position === null || position < 0 || position >= length) return;
  const moved = await act(() => request('PATCH', path(download), { body: { position } }));
  if (moved) {
    announce(t('{name}: position {position} of {total}', { name: visible(download.name), position: position + 1, total: length }));
    await load();
  }
}

function toggle(download) {
  act(async () => {
    await request('POST', path(download, PAUSABLE.includes(download.state) ? '/pause' : '/resume'));
    await load();
  });
}

function cancel(download) {
  const isOver = ['complete', 'failed'].includes(download.state);
  const remove = async (keep) => {
    await request('DELETE', `${path(download)}?keep=${keep}`);
    await load();
  };
  if (isOver) {
    act(() => remove(true));
    return;
  }
  openDialog({
    title: t('Cancel the download?'),
    body: [
      el('p', {}, nameNode(download.name, download.kind)),
      el('label', { class: 'check' }, el('input', { type: 'checkbox', name: 'keep', checked: true }), t('Keep the {size} that have been received', { size: size(download.done) })),
    ],
    action: t('Cancel download'),
    close: t('Back'),
    destroy: true,
    submit: (form) => remove(form.has('keep')),
  });
}

/** Creates the row of a download. */
function createRow(first) {
  let download = first;
  let detail = null;
  const name = el('button', { type: 'button', class: 'link', 'aria-expanded': 'false', on: { click: () => expand(detail === null) } });
  const tag = el('span', { class: 'tag' });
  const side = el('span', { class: 'side num' });
  const fill = el('div');
  const bar = el('div', { class: 'bar', role: 'progressbar', 'aria-valuemin': '0', 'aria-valuemax': '100' }, fill);
  const note = { done: el('span', { class: 'num' }), providers: el('span'), error: el('span', { class: 'error' }) };
  const label = visible(first.name);
  const pause = iconButton('pause', '', () => toggle(download));
  const up = iconButton('up', `${t('Move up')} ${label}`, () => move(download, download.position - 1), { title: t('Move up') });
  const down = iconButton('down', `${t('Move down')} ${label}`, () => move(download, download.position + 1), { title: t('Move down') });
  const stop = iconButton('close', `${t('Cancel')} ${label}`, () => cancel(download), { title: t('Cancel') });
  const grip = el('span', { class: 'grip muted', draggable: 'true', 'aria-hidden': 'true', title: t('Drag to change the order') }, icon('grip'));
  const node = el('li', { class: 'download' }, el('div', { class: 'main' },
    el('div', { class: 'name-cell' }, grip, name, tag), side, bar,
    el('div', { class: 'note' }, note.done, note.providers, note.error),
    el('div', { class: 'tools' }, up, down, pause, stop)));

  grip.addEventListener('dragstart', (event) => {
    dragged = download;
    event.dataTransfer.effectAllowed = 'move';
    event.dataTransfer.setData('application/x-enjambre-download', download.id);
    event.dataTransfer.setDragImage(node, 12, 12);
  });
  grip.addEventListener('dragend', () => { dragged = null; });
  node.addEventListener('dragover', (event) => {
    if (dragged === null) return;
    event.preventDefault();
    node.classList.add('target');
  });
  node.addEventListener('dragleave', () => node.classList.remove('target'));
  node.addEventListener('drop', (event) => {
    node.classList.remove('target');
    if (dragged === null) return;
    event.preventDefault();
    if (dragged !== download) move(dragged, download.position);
  });
  node.addEventListener('keydown', (event) => {
    const step = { ArrowUp: -1, ArrowDown: 1 }[event.key];
    if (!event.altKey || step === undefined) return;
    event.preventDefault();
    move(download, download.position + step);
  });

  function expand(isOpen) {
    setAttribute(name, 'aria-expanded', String(isOpen));
    if (!isOpen) {
      detail.close();
      detail.node.remove();
      detail = null;
      return;
    }
    detail = createDetail(download);
    node.append(detail.node);
  }

  let pauses = null;
  return {
    node,
    close: () => detail?.close(),
    paint: (item) => {
      download = item;
      const share = item.size > 0 ? item.done / item.size : item.state === 'complete' ? 1 : 0;
      if (name.firstChild === null) name.append(nameNode(item.name, item.kind));
      setText(tag, t(STATES[item.state] ?? item.state));
      setAttribute(tag, 'class', `tag ${TAGS[item.state] ?? ''}`);
      tag.hidden = item.state === 'active';
      const isActive = item.state === 'active';
      setText(side, isActive ? [rate(item.rate), item.eta_seconds === null ? '' : duration(item.eta_seconds)].filter(Boolean).join(' · ') : '');
      fill.style.transform = `scaleX(${share})`;
      setAttribute(bar, 'class', `bar ${item.state}`);
      setAttribute(bar, 'aria-valuenow', String(Math.floor(share * 100)));
      setAttribute(bar, 'aria-label', `${t('Progress')} ${label}`);
      setText(note.done, item.state === 'complete' ? size(item.size) : `${percent(share)} · ${t('{done} of {total}', { done: size(item.done), total: size(item.size) })}`);
      setText(note.providers, isActive || item.state === 'searching' ? count(item.providers, 'provider', 'providers') : '');
      setText(note.error, item.error ? visible(item.error) : '');
      const isPausable = PAUSABLE.includes(item.state);
      if (pauses !== isPausable) {
        pauses = isPausable;
        const text = isPausable ? t('Pause') : t('Resume');
        pause.replaceChildren(icon(isPausable ? 'pause' : 'play'));
        pause.title = text;
        setAttribute(pause, 'aria-label', `${text} ${label}`);
      }
      // Keeps its place, so that bars of all rows have one length.
      pause.style.visibility = item.state === 'complete' ? 'hidden' : '';
      const isOfCommand = item.origin === 'command';
      pause.disabled = isOfCommand;
      stop.disabled = isOfCommand && !['complete', 'failed'].includes(item.state);
      if (isOfCommand) pause.title = stop.title = t('Started by a command, which controls it');
      up.disabled = item.position === null || item.position === 0;
      down.disabled = item.position === null || item.position === length - 1;
      grip.draggable = item.position !== null;
    },
  };
}

/** Creates the details of a download, which are read every second. */
function createDetail({ id, name }) {
  const canvas = el('canvas', { role: 'img', 'aria-label': `${t('Map of pieces')} ${visible(name)}` });
  const graphCanvas = el('canvas', { class: 'graph', role: 'img', 'aria-label': `${t('Download rate')} ${visible(name)}` });
  const closed = new AbortController();
  const map = new PieceMap(canvas, closed.signal);
  const graph = new RateGraph(graphCanvas, ['accent-fill'], closed.signal);
  const sourceList = el('div');
  const table = new Table(sourceList, {
    label: t('Sources'),
    key: ({ peer }) => peer,
    empty: t('No source sends pieces now.'),
    columns: [
      { label: t('Source'), kind: 'main', depends: ({ peer, index }) => [peer, index], node: ({ peer, index, endpoint }) => el('span', { title: visible(endpoint ?? '') }, el('span', { class: `swatch s${index % SOURCE_COLOURS}`, 'aria-hidden': 'true' }), ' ', idNode(peer)) },
      { label: t('State'), depends: ({ state }) => state, node: ({ state }) => health(state) },
      { label: t('Rate'), kind: 'n', text: (source) => rate(source.rate) },
      { label: t('Received'), kind: 'n', text: (source) => size(source.received_bytes) },
    ],
  });
  const key = (kind, text) => el('span', {}, el('i', { class: `swatch ${kind}` }), text);
  const facts = el('p', { class: 'small muted wrap' }, 'id ', el('code', {}, id));
  const pieces = el('div', { hidden: true }, canvas, el('div', { class: 'legend' }, key('', t('stored before')), key('s0', t('by source')), key('flight', t('requested')), key('missing', t('missing'))));
  const node = el('div', { class: 'detail' }, pieces,
    el('div', { class: 'grid' }, sourceList, el('div', {}, el('h3', {}, t('Download rate')), graphCanvas)), facts);
  const stop = every(1000, async () => {
    try {
      const found = await request('GET', path({ id }));
      pieces.hidden = found.pieces === null;
      if (found.pieces) map.set(found.pieces.map);
      graph.add([found.rate]);
      table.set(found.sources.map((source, index) => ({ ...source, index })));
    } catch { /* The list tells that the download, or the node, is gone. */ }
  });
  return { node, close: () => { stop(); closed.abort(); } };
}

const HEALTH = { active: 'good', busy: 'warn', connecting: '', backed_off: 'warn', idle: '', banned: 'bad' };
const health = (state) => el('span', { class: `tag ${HEALTH[state] ?? ''}` }, t(visible(String(state).replaceAll('_', ' '))));

function summary() {
  const of = (states) => downloads.filter(({ state }) => states.includes(state)).length;
  const active = of(['active', 'searching']);
  const queued = of(['queued', 'paused']);
  const parts = [];
  if (active > 0) parts.push(t('{n} active', { n: number(active) }));
  if (queued > 0) parts.push(t('{n} waiting', { n: number(queued) }));
  return parts.join(' · ');
}

const paint = () => {
  length = downloads.filter(({ position }) => position !== null).length;
  rows.set(downloads);
  setText(get('downloads-sum'), summary());
  get('downloads-empty').hidden = downloads.length > 0;
};

/** States of the last list, to announce ends. */
let states = new Map();

/** Shows this list. @param {any[]} list */
export function setDownloads(list) {
  for (const { id, state, name } of list) {
    const before = states.get(id);
    if (before !== undefined && before !== state && ['complete', 'failed', 'disk_full'].includes(state)) {
      announce(`${visible(name)}: ${t(STATES[state])}`);
    }
  }
  states = new Map(list.map(({ id, state }) => [id, state]));
  downloads = list;
  beforeFrame(paint);
}

export async function load() {
  setDownloads((await request('GET', '/downloads')).downloads);
}

/** The sum of the rates. */
export const downloadRate = () => downloads.reduce((sum, download) => sum + (download.state === 'active' ? download.rate : 0), 0);

/** Suggests names of the catalogue while the user types. */
function startSuggestions() {
  const input = get('query');
  let search = new AbortController();
  let timer;
  input.addEventListener('input', () => {
    clearTimeout(timer);
    search.abort();
    search = new AbortController();
    const { signal } = search;
    const pattern = input.value.trim();
    if (pattern.length < 2) return;
    timer = setTimeout(async () => {
      try {
        const { files } = await request('GET', `/files?${new URLSearchParams({ pattern, limit: '12' })}`, { signal });
        get('suggestions').replaceChildren(...files.map(({ name, size: bytes }) => el('option', { value: name }, size(bytes))));
      } catch { /* Suggestions are not necessary. */ }
    }, 200);
  });
}

export function startDownloads() {
  startSuggestions();
  rows = new Rows(get('downloads'), ({ id }) => id, createRow);
  get('start').addEventListener('submit', (event) => {
    event.preventDefault();
    const input = get('query');
    const query = input.value.trim();
    if (query === '') return;
    act(async () => {
      const started = await request('POST', '/downloads', { body: { query } });
      input.value = '';
      toast(t('Download of {name} added', { name: visible(started.name) }));
      await load();
    });
  });
}
