// The page of a file at a tracker: providers, versions, publisher, and the map of its swarm.

import { request, segment } from './api.js';
import { copyText, el, get, iconButton, svg } from './dom.js';
import { count, date, idNode, nameNode, number, short, size, time, visible } from './format.js';
import { t } from './language.js';
import { Table } from './rows.js';
import { describe, toast } from './shell.js';

/** Number of providers in the drawing of a swarm; the table has all of them. */
const DRAWN_PROVIDERS = 24;

/** Draws a swarm: a circle of providers around the file. A tracker knows of a provider only whether it has the whole file. */
function drawSwarm(providers) {
  const drawn = providers.slice(0, DRAWN_PROVIDERS);
  const radius = drawn.length > 12 ? 13 : 17;
  const links = [];
  const circles = [];
  drawn.forEach(({ peer, complete }, index) => {
    const angle = (index / drawn.length) * 2 * Math.PI - Math.PI / 2;
    const [cx, cy] = [120 + 92 * Math.cos(angle), 120 + 92 * Math.sin(angle)];
    links.push(svg('line', { x1: 120, y1: 120, x2: cx, y2: cy }));
    circles.push(svg('circle', { cx, cy, r: radius, class: 'hub' }), svg('circle', { cx, cy, r: radius, class: complete ? 'complete' : 'partial' }));
    if (drawn.length <= 12) circles.push(svg('text', { x: cx, y: cy + 4 }, short(peer).slice(0, 4)));
  });
  return svg('svg', { class: 'ring', viewBox: '0 0 240 240', role: 'img', 'aria-label': count(providers.length, 'provider', 'providers') },
    ...links, ...circles, svg('circle', { cx: 120, cy: 120, r: 26, class: 'hub' }), svg('text', { x: 120, y: 124 }, number(providers.length)));
}

const row = (label, ...value) => [el('dt', {}, label), el('dd', {}, ...value)];

function show(file) {
  const providers = [...file.providers].sort((a, b) => Number(b.complete) - Number(a.complete));
  const list = el('div');
  new Table(list, {
    label: t('Providers'),
    key: ({ peer }) => peer,
    empty: t('No peer offers this file now.'),
    columns: [
      { label: t('Provider'), kind: 'main', node: ({ peer, endpoints }) => el('div', {}, idNode(peer), el('div', { class: 'small muted wrap' }, endpoints.map(visible).join(', '))) },
      { label: t('Has'), node: ({ complete }) => el('span', { class: `tag ${complete ? 'good' : 'warn'}` }, complete ? t('whole file') : t('a part')) },
    ],
  }).set(providers);
  const versions = file.versions ?? [];
  const history = el('div');
  if (versions.length > 0) {
    new Table(history, {
      label: t('Versions'),
      key: ({ id, version }) => `${version} ${id}`,
      empty: '',
      columns: [
        { label: t('Version'), text: ({ version }) => number(version) },
        { label: t('Id'), kind: 'main', node: ({ id }) => el('a', { href: `#file/${id}` }, el('code', {}, id.slice(0, 16))) },
        { label: t('Size'), kind: 'n', text: (version) => size(version.size) },
        { label: t('Published'), text: ({ published_ms }) => date(published_ms) },
        { label: t('Publisher'), node: ({ publisher }) => (publisher ? idNode(publisher) : el('span')) },
      ],
    }).set(versions);
  }
  get('file').replaceChildren(
    el('div', { class: 'spread' }, el('h3', { id: 'file-title', tabindex: '-1' }, nameNode(file.name, file.kind)),
      el('span', { class: 'line' }, iconButton('link', t('Copy id'), async () => { await copyText(file.id); toast(t('Id copied')); }))),
    el('dl', { class: 'facts' }, ...row(t('Id'), el('code', {}, file.id)), ...row(t('Size'), size(file.size)),
      ...row(t('Version'), number(file.version)), ...row(t('Published'), time(file.published_ms)),
      ...row(t('Publisher'), el('code', {}, file.publisher ?? '?'))),
    el('h3', {}, t('Swarm')),
    el('div', { class: 'swarm' }, providers.length > 0 && drawSwarm(providers), list),
    ...(versions.length > 0 ? [el('h3', {}, t('Versions')), history] : []),
  );
}

/** Shows the file of this id. */
export async function openFile(id, signal) {
  get('file').replaceChildren(el('p', { class: 'empty' }, t('Loading')));
  try {
    show(await request('GET', `/files/${segment(id)}`, { signal }));
    get('file-title').focus({ preventScroll: true });
  } catch (error) {
    if (!signal.aborted) get('file').replaceChildren(el('p', { class: 'empty', role: 'alert' }, describe(error)));
  }
}
