// The library of a peer, and publishing of dropped files.

import { request, segment, upload } from './api.js';
import { copyText, el, get, icon, iconButton, setAttribute, setText } from './dom.js';
import { count, nameNode, number, percent, size, visible } from './format.js';
import { t } from './language.js';
import { Table } from './rows.js';
import { act, describe, gatewayLinks, openDialog, toast } from './shell.js';

const PLACES = { database: 'Database', files: 'Files on disk', linked: 'Linked' };
const REASONS = { missing: 'file missing', changed: 'file changed', unreadable: 'file not readable' };

let files = [];
/** The stored bytes of downloads, by id. They change more often than `files`. */
let arriving = new Map();
let table;

const stored = ({ id, size, pieces, available_pieces }) => arriving.get(id) ?? (pieces === 0 ? size : Math.round((size * available_pieces) / pieces));

function verify(file, button) {
  button.disabled = true;
  setText(get('announcement'), t('Verifying {name}', { name: visible(file.name) }));
  act(async () => {
    const { results } = await request('POST', `/library/${segment(file.id)}/verify`);
    const sum = (kind) => results.reduce((total, result) => total + result[kind], 0);
    const text = `${visible(file.name)}: ${count(sum('good'), 'valid piece', 'valid pieces')}`;
    if (sum('bad') > 0) toast(`${text}, ${count(sum('bad'), 'damaged piece', 'damaged pieces')}`, 'bad');
    else toast(sum('missing') > 0 ? `${text}, ${t('{n} missing', { n: number(sum('missing')) })}` : text);
    await load();
  }).finally(() => { button.disabled = false; });
}

function remove(file) {
  openDialog({
    title: t('Remove from the library?'),
    body: [
      el('p', {}, nameNode(file.name, file.kind), ' ', el('span', { class: 'muted' }, size(file.size))),
      el('p', { class: 'muted' }, file.content === 'linked' ? t('The linked file itself remains. This peer no longer offers it.') : t('The content is deleted on this machine. Other peers keep theirs.')),
    ],
    action: t('Remove'),
    destroy: true,
    submit: async () => {
      // A name selects the newest of several files; an id selects all names of one.
      const isAmbiguous = files.some((other) => other.name === file.name && other.id !== file.id);
      await request('DELETE', `/library/${segment(isAmbiguous ? file.id : file.name)}`);
      await load();
    },
  });
}

function tools(file) {
  const name = visible(file.name);
  const check = iconButton('check', `${t('Verify')} ${name}`, () => verify(file, check), { title: t('Verify') });
  return el('div', {}, ...gatewayLinks(file.id, file.name, icon('open'), copyText), check,
    iconButton('trash', `${t('Remove')} ${name}`, () => remove(file), { title: t('Remove') }));
}

function nameCell(file) {
  const node = nameNode(file.name, file.kind);
  if (file.withdrawn) node.append(' ', el('span', { class: 'tag bad' }, t(REASONS[file.withdrawn] ?? file.withdrawn)));
  else if (file.available_pieces < file.pieces) node.append(' ', el('span', { class: 'tag' }, t('a part')));
  if (file.path) node.append(el('div', { class: 'small muted wrap' }, visible(file.path)));
  return node;
}

function paint() {
  const filter = get('library-filter').value.trim().toLowerCase();
  table.set(filter === '' ? files : files.filter(({ name }) => name.toLowerCase().includes(filter)));
}

/** The space by location, as a bar and a list. */
function paintUsage() {
  const usage = Object.keys(PLACES).map((place, index) => ({ place, index, bytes: 0, files: 0 }));
  for (const file of files) {
    const row = usage.find(({ place }) => place === file.content);
    if (row) {
      row.bytes += stored(file);
      row.files += 1;
    }
  }
  const total = usage.reduce((sum, { bytes }) => sum + bytes, 0);
  get('usage').replaceChildren(...usage.filter(({ bytes }) => bytes > 0).map(({ index, bytes }) => {
    const part = el('div', { class: `s${index}` });
    part.style.flexGrow = String(bytes / total);
    return part;
  }));
  get('usage-list').replaceChildren(...usage.filter((row) => row.files > 0).map(({ place, index, bytes, files }) => el('li', {},
    el('div', {}, el('span', { class: `swatch s${index}`, 'aria-hidden': 'true' }), ' ', t(PLACES[place]), ' ', el('span', { class: 'muted' }, count(files, 'file', 'files'))),
    el('span', { class: 'num' }, size(bytes)))));
  get('usage-empty').hidden = total > 0;
  setText(get('library-sum'), files.length === 0 ? '' : `${count(files.length, 'file', 'files')} · ${size(total)}`);
}

export async function load() {
  files = (await request('GET', '/library')).files;
  files.sort((a, b) => a.name.localeCompare(b.name));
  paint();
  paintUsage();
}

export function setArriving(downloads) {
  arriving = new Map(downloads.map(({ id, done }) => [id, done]));
  paintUsage();
}

/** Files that wait for their upload, one at a time. */
const waiting = [];
let isUploading = false;

async function uploadNext() {
  const next = waiting.shift();
  isUploading = next !== undefined;
  if (next === undefined) return;
  const { file, node, fill, bar, note, stop } = next;
  try {
    const published = await upload(file, (share) => {
      fill.style.transform = `scaleX(${share})`;
      setAttribute(bar, 'aria-valuenow', String(Math.floor(share * 100)));
      setText(note, share < 1 ? `${percent(share)} · ${size(file.size)}` : t('Storing'));
    }, stop.signal);
    toast(t('{name} is published', { name: visible(published.name ?? file.name) }));
    node.remove();
    await load();
  } catch (error) {
    if (stop.signal.aborted) node.remove();
    else {
      setText(note, describe(error));
      note.className = 'small error';
      setAttribute(bar, 'class', 'bar failed');
    }
  }
  uploadNext();
}

/** Publishes files of the browser. @param {Iterable<File>} list */
function publish(list) {
  for (const file of list) {
    const name = visible(file.name);
    const stop = new AbortController();
    const fill = el('div');
    const bar = el('div', { class: 'bar', role: 'progressbar', 'aria-label': name, 'aria-valuemin': '0', 'aria-valuemax': '100', 'aria-valuenow': '0' }, fill);
    const note = el('span', { class: 'small muted num' }, t('Waiting'));
    const upload = { file, fill, bar, note, stop };
    const close = iconButton('close', `${t('Cancel')} ${name}`, () => {
      stop.abort();
      if (waiting.includes(upload)) waiting.splice(waiting.indexOf(upload), 1);
      upload.node.remove();
    });
    upload.node = el('li', {}, el('div', { class: 'spread' }, nameNode(file.name), close), bar, note);
    get('uploads').append(upload.node);
    waiting.push(upload);
  }
  if (!isUploading) uploadNext();
}

/** The files of a drop. Directories have no content in a browser. */
function dropped(transfer) {
  const items = [...transfer.items].filter(({ kind }) => kind === 'file');
  if (items.some((item) => item.webkitGetAsEntry?.()?.isDirectory)) {
    toast(t('Directories cannot be dropped; publish them with: enjambre publish DIRECTORY'), 'bad');
    return items.filter((item) => item.webkitGetAsEntry()?.isFile).map((item) => item.getAsFile());
  }
  return [...transfer.files];
}

function startDrop() {
  const hint = get('drop');
  const hasFiles = (event) => event.dataTransfer?.types.includes('Files');
  addEventListener('dragover', (event) => {
    if (!hasFiles(event)) return;
    event.preventDefault();
    event.dataTransfer.dropEffect = 'copy';
    hint.hidden = false;
  });
  addEventListener('dragleave', (event) => { if (event.relatedTarget === null) hint.hidden = true; });
  addEventListener('drop', (event) => {
    if (!hasFiles(event)) return;
    event.preventDefault();
    hint.hidden = true;
    publish(dropped(event.dataTransfer));
  });
}

export function startLibrary() {
  table = new Table(get('library'), {
    label: t('Library'),
    key: ({ id, name }) => `${id} ${name}`,
    empty: t('The library is empty. Drop files here to publish them, or start a download.'),
    columns: [
      { label: t('Name'), kind: 'main', node: nameCell },
      { label: t('Size'), kind: 'n bare', text: (file) => size(file.size) },
      { label: t('Location'), kind: 'bare', text: (file) => t(PLACES[file.content] ?? file.content) },
      { label: t('Actions'), kind: 'tools', node: tools, depends: ({ id, name }) => [id, name] },
    ],
  });
  get('library-filter').addEventListener('input', paint);
  const chooser = get('choose');
  get('publish').addEventListener('click', () => chooser.click());
  chooser.addEventListener('change', () => {
    publish(chooser.files);
    chooser.value = '';
  });
  startDrop();
}
