// Invite-only swarms: members, invitations, reserved names.

import { request, segment } from './api.js';
import { copyText, el, get, iconButton, setText, svg } from './dom.js';
import { date, duration, idNode, number, short, time, visible } from './format.js';
import { t } from './language.js';
import { qrCode } from './qr.js';
import { Table } from './rows.js';
import { act, field, openDialog, toast } from './shell.js';

const HOUR_MS = 3_600_000;
const RIGHTS = { full: 'full', read_only: 'read-only' };

let members;
let invitations;

function revoke(member) {
  openDialog({
    title: t('Revoke the membership?'),
    body: [
      el('p', {}, t('Peer'), ' ', el('code', { class: 'wrap' }, member.peer)),
      el('p', { class: 'muted' }, t('The peer cannot join again, and the other peers disconnect it within one lease. Its invitation is cancelled. This cannot be undone.')),
    ],
    action: t('Revoke'),
    destroy: true,
    submit: async () => {
      await request('DELETE', `/members/${segment(member.peer)}`);
      toast(t('Membership of {peer} revoked', { peer: short(member.peer) }));
      await loadAccess();
    },
  });
}

/** Draws a QR code with the quiet zone of four modules. */
function drawCode(text) {
  const modules = qrCode(text);
  if (modules === null) return null;
  const size = modules.length + 8;
  let path = '';
  modules.forEach((row, y) => row.forEach((isDark, x) => { if (isDark) path += `M${x + 4} ${y + 4}h1v1h-1z`; }));
  return svg('svg', { class: 'qr', viewBox: `0 0 ${size} ${size}`, role: 'img', 'aria-label': t('QR code of the invitation'), 'shape-rendering': 'crispEdges' }, svg('path', { d: path }));
}

/** Shows a new invitation. It is a secret, so it is only in this dialog. */
function showInvitation({ invitation, uses, expires_ms }) {
  const line = el('textarea', { readonly: true, rows: '5', class: 'mono', 'aria-label': t('Invitation') });
  line.value = invitation;
  const code = drawCode(invitation);
  const copy = el('button', {
    type: 'button', class: 'primary', autofocus: true,
    on: { click: async () => { await copyText(invitation); setText(copy, t('Copied')); } },
  }, t('Copy invitation'));
  openDialog({
    title: t('Invitation'),
    body: [
      el('p', { class: 'muted' }, t('Anyone with this line can join, so transmit it like a password. It is not shown again.')),
      line,
      ...(code ? [code] : []),
      el('p', { class: 'small muted' }, `${t('Uses')}: ${number(uses)} · ${t('valid until {time}', { time: time(expires_ms) })} · `, el('code', {}, 'enjambre join LINE')),
      copy,
    ],
    close: t('Close'),
  });
}

function invite() {
  const lifetime = el('select', { name: 'hours' },
    ...[[1, '1 h'], [24, '24 h'], [168, duration(7 * 86400)], [720, duration(30 * 86400)]].map(([hours, text]) => el('option', { value: hours, selected: hours === 24 }, text)));
  openDialog({
    title: t('Invite peers'),
    body: [
      el('div', { class: 'pair' },
        field(t('Uses'), el('input', { type: 'number', name: 'uses', min: '1', max: '1000', value: '1', required: true })),
        field(t('Valid for'), lifetime)),
      el('label', { class: 'check' }, el('input', { type: 'checkbox', name: 'read_only' }), t('Download only: peers that join cannot publish')),
    ],
    action: t('Create invitation'),
    submit: async (form) => {
      const body = { uses: Number(form.get('uses')), lifetime_ms: Number(form.get('hours')) * HOUR_MS, read_only: form.has('read_only'), trackers: [] };
      showInvitation(await request('POST', '/invitations', { body }));
      await loadAccess();
    },
  });
}

function cancelInvitation(invitation) {
  openDialog({
    title: t('Cancel the invitation?'),
    body: [el('p', {}, el('code', {}, invitation.id.slice(0, 16)))],
    action: t('Cancel invitation'),
    close: t('Back'),
    destroy: true,
    submit: async () => {
      await request('DELETE', `/invitations/${segment(invitation.id)}`);
      await loadAccess();
    },
  });
}

function presence(member) {
  if (member.revoked_ms !== null && member.revoked_ms !== undefined) return el('span', { class: 'tag bad', title: time(member.revoked_ms) }, t('revoked'));
  if (member.online) return el('span', { class: 'tag good' }, t('online'));
  return el('span', { class: 'muted' }, member.last_seen_ms ? date(member.last_seen_ms) : t('long ago'));
}

export async function loadAccess() {
  const [found, open] = await Promise.all([request('GET', '/members'), request('GET', '/invitations')]);
  members.set(found.members);
  invitations.set(open.invitations);
  get('member-ids').replaceChildren(...found.members.filter(({ revoked_ms }) => !revoked_ms).map(({ peer }) => el('option', { value: peer })));
}

export function startAccess() {
  members = new Table(get('members'), {
    label: t('Members'),
    key: ({ peer }) => peer,
    empty: t('No peer has joined. Invite the first one.'),
    columns: [
      { label: t('Peer'), kind: 'main', node: ({ peer }) => idNode(peer), depends: ({ peer }) => peer },
      { label: t('Rights'), text: ({ rights }) => t(RIGHTS[rights] ?? rights) },
      { label: t('Joined'), text: ({ joined_ms }) => date(joined_ms) },
      { label: t('Last seen'), node: presence, depends: ({ revoked_ms, online, last_seen_ms }) => [revoked_ms, online, last_seen_ms && date(last_seen_ms)] },
      {
        label: t('Actions'), kind: 'tools', depends: ({ peer, revoked_ms }) => [peer, revoked_ms],
        node: (member) => (member.revoked_ms ? el('div')
          : el('div', {}, el('button', { type: 'button', class: 'danger', 'aria-label': `${t('Revoke')} ${short(member.peer)}`, on: { click: () => revoke(member) } }, t('Revoke')))),
      },
    ],
  });
  invitations = new Table(get('invitations'), {
    label: t('Invitations'),
    key: ({ id }) => id,
    empty: t('No invitation is valid.'),
    columns: [
      { label: t('Invitation'), kind: 'main', node: ({ id }) => idNode(id), depends: ({ id }) => id },
      { label: t('Rights'), text: ({ rights }) => t(RIGHTS[rights] ?? rights) },
      { label: t('Uses'), kind: 'n', text: ({ uses }) => number(uses) },
      { label: t('Valid for'), kind: 'n', text: ({ expires_ms }) => duration((expires_ms - Date.now()) / 1000) },
      { label: t('Actions'), kind: 'tools', depends: ({ id }) => id, node: (invitation) => el('div', {}, iconButton('close', `${t('Cancel')} ${short(invitation.id)}`, () => cancelInvitation(invitation), { title: t('Cancel') })) },
    ],
  });
  get('invite').addEventListener('click', invite);
  const reserved = (method) => act(async () => {
    const name = get('reserve-name').value.trim();
    const peer = get('reserve-peer').value.trim();
    await request(method, `/reservations/${segment(name)}`, method === 'PUT' ? { body: { peer } } : {});
    toast(method === 'PUT' ? t('{name} is reserved for {peer}', { name: visible(name), peer: short(peer) }) : t('{name} is released', { name: visible(name) }));
  });
  get('reserve').addEventListener('submit', (event) => {
    event.preventDefault();
    reserved(event.submitter === get('release') ? 'DELETE' : 'PUT');
  });
  // A release needs no peer.
  get('release').addEventListener('click', () => { get('reserve-peer').required = false; });
  get('reserve-button').addEventListener('click', () => { get('reserve-peer').required = true; });
}
