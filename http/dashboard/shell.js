// What both pages have: language, connection state, login, messages, dialogs, views, log.

import { fileUrl, onNeedToken, Problem, request, setToken, subscribe } from './api.js';
import { el, get, iconButton, setAttribute, setText } from './dom.js';
import { duration, timeOfDay, visible } from './format.js';
import { language, setLanguage, t, translate } from './language.js';

/** Shows a message. Errors stay until they are closed. @param {string} text @param {'good' | 'bad'} [kind] */
export function toast(text, kind = 'good') {
  const node = el('div', { class: `toast ${kind}` }, el('span', {}, text), iconButton('close', t('Close'), () => node.remove()));
  get(kind === 'bad' ? 'errors' : 'messages').append(node);
  if (kind === 'good') setTimeout(() => node.remove(), 6000);
}

/** Runs an action of the user, and shows its error. Returns whether it succeeded. */
export async function act(action) {
  try {
    await action();
    return true;
  } catch (error) {
    if (error.status !== 401 || !isAsking) toast(describe(error), 'bad');
    return false;
  }
}

export function describe(error) {
  if (error instanceof Problem && error.status === 0) return t('No connection to the node.');
  return visible(error.message);
}

/**
 * Opens a dialog with a form. `submit` runs when the form is sent, and the dialog closes if it succeeds.
 * @param {{title: string, body: (Node | string)[], action?: string, destroy?: boolean, submit?: (form: FormData) => Promise<any>, close?: string}} options
 */
export function openDialog({ title, body, action, destroy = false, submit, close = t('Cancel') }) {
  const problem = el('p', { role: 'alert', class: 'wrap' });
  const send = action && el('button', { type: 'submit', class: destroy ? 'destroy' : 'primary' }, action);
  const heading = el('h2', { id: 'dialog-title' }, title);
  const form = el('form', { method: 'dialog' }, heading, ...body, problem,
    el('div', { class: 'actions' }, el('button', { type: 'button', on: { click: () => dialog.close() } }, close), send));
  const dialog = el('dialog', { 'aria-labelledby': 'dialog-title' }, form);
  form.addEventListener('submit', async (event) => {
    event.preventDefault();
    send.disabled = true;
    try {
      await submit(new FormData(form));
      dialog.close();
    } catch (error) {
      setText(problem, describe(error));
      problem.className = 'wrap error';
      send.disabled = false;
    }
  });
  dialog.addEventListener('close', () => dialog.remove());
  document.body.append(dialog);
  dialog.showModal();
  return dialog;
}

/** A field with a caption. */
export const field = (caption, input) => el('label', {}, el('span', { class: 'caption' }, caption), input);

let isAsking = false;
let wasAsked = false;

/** Asks for the token at the first request that needs one. Afterwards the banner has a button for it. */
function needToken() {
  if (!wasAsked) askForToken();
  else if (!isAsking) offerLogin();
}

function offerLogin() {
  const banner = get('banner');
  // A new button would lose the focus.
  if (!banner.querySelector('button')) {
    banner.replaceChildren(t('This node needs a token'), el('button', { type: 'button', on: { click: askForToken } }, t('Log in')));
  }
  banner.hidden = false;
}

function askForToken() {
  isAsking = true;
  wasAsked = true;
  const input = el('input', { type: 'password', name: 'token', required: true, autocomplete: 'current-password', autofocus: true });
  const dialog = openDialog({
    title: t('This node needs a token'),
    body: [
      el('p', { class: 'muted' }, t('It is in the file http-token of the data directory of the node. The page keeps it until this tab is closed.')),
      field(t('Token'), input),
    ],
    action: t('Log in'),
    close: t('Not now'),
    submit: async (form) => {
      setToken(form.get('token').trim());
      try {
        await request('GET', '/status');
      } catch (error) {
        throw error.status === 401 ? new Error(t('The node does not accept this token.')) : error;
      }
      location.reload();
    },
  });
  dialog.addEventListener('close', () => {
    isAsking = false;
    offerLogin();
  });
}

/** The link to a file at the gateway, and a button that copies the link of its name. */
export function gatewayLinks(id, name, iconNode, copy) {
  return [
    el('a', { class: 'button icon', href: fileUrl(id), target: '_blank', rel: 'noreferrer', 'aria-label': `${t('Open')} ${name}`, title: t('Open') }, iconNode),
    iconButton('link', `${t('Copy link')} ${name}`, async () => {
      await copy(new URL(fileUrl(name), location.href).href);
      toast(t('Link copied'));
    }, { title: t('Copy link') }),
  ];
}

/** Log lines, with the level of the node. */
function startLog() {
  const list = get('log');
  const box = get('log-box');
  const select = get('log-level');
  let newest = 0;
  const add = (lines) => {
    const isAtEnd = box.scrollTop + box.clientHeight >= box.scrollHeight - 8;
    for (const { time_ms, level, target, message } of lines) {
      newest = Math.max(newest, time_ms);
      list.append(el('li', {}, el('time', { class: 'muted num' }, timeOfDay(time_ms)),
        el('span', { class: `level ${level.toLowerCase()}` }, level.toLowerCase()),
        el('span', { class: 'message', title: visible(target ?? '') }, visible(message))));
    }
    while (list.childElementCount > 300) list.firstElementChild.remove();
    get('log-empty').hidden = list.childElementCount > 0;
    box.hidden = list.childElementCount === 0;
    if (isAtEnd) box.scrollTop = box.scrollHeight;
  };
  select.addEventListener('change', () => act(async () => {
    await request('PUT', '/log/level', { body: { level: select.value } });
    toast(t('Log level changed until the node restarts'));
  }));
  return {
    add,
    load: async () => {
      const [{ lines }, { level }] = await Promise.all([request('GET', '/log?limit=200'), request('GET', '/log/level')]);
      list.replaceChildren();
      add(lines);
      if (![...select.options].some((option) => option.value === level)) select.append(el('option', { value: level }, visible(level)));
      select.value = level;
    },
  };
}

function startViews() {
  const links = [...document.querySelectorAll('nav.views a')];
  const show = () => {
    const link = links.find((link) => link.hash === location.hash) ?? (location.hash === '' ? links[0] : null);
    if (!link) return;
    document.body.dataset.view = link.dataset.show;
    for (const other of links) setAttribute(other, 'aria-current', other === link ? 'page' : null);
  };
  addEventListener('hashchange', show);
  show();
}

/**
 * Starts the page: `load` reads everything, `events` has a listener per event.
 * @param {{load: () => Promise<any>, events: Record<string, (data: any) => void>}} page
 */
export function start({ load, events }) {
  translate(document);
  for (const button of document.querySelectorAll('[data-language]')) {
    setAttribute(button, 'aria-pressed', String(button.dataset.language === language));
    button.addEventListener('click', () => setLanguage(button.dataset.language));
  }
  startViews();
  onNeedToken(needToken);
  const log = startLog();
  const banner = get('banner');
  const loadAll = async () => {
    const results = await Promise.allSettled([load(), log.load()]);
    const failed = results.find(({ status, reason }) => status === 'rejected' && reason.status !== 401 && reason.status !== 0);
    if (failed) toast(describe(failed.reason), 'bad');
  };
  loadAll();
  let wasLost = false;
  subscribe({
    event: (name, data) => {
      if (name === 'reset') loadAll();
      else if (name === 'log') log.add(data.lines);
      else events[name]?.(data);
    },
    open: () => {
      banner.hidden = true;
      document.body.classList.remove('stale');
      if (wasLost) loadAll();
      wasLost = false;
    },
    lost: (retry, error) => {
      wasLost = true;
      if (retry === null) return;
      setText(banner, `${describe(error)} ${t('Trying again in {time}.', { time: duration(retry / 1000) })}`);
      banner.hidden = false;
      document.body.classList.add('stale');
    },
  });
}

