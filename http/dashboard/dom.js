// Elements. Text from the swarm becomes text nodes only, never markup.

/**
 * Creates an element. `on` has listeners, other properties are attributes; `false`, `null` and `undefined` leave them out.
 * @param {string} tag
 * @param {Record<string, any>} [attributes]
 * @param {...(Node | string | number | null | undefined | false)} children
 * @returns {any}
 */
export function el(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name === 'on') for (const [event, listener] of Object.entries(value)) node.addEventListener(event, listener);
    else if (value !== false && value !== null && value !== undefined) node.setAttribute(name, value === true ? '' : value);
  }
  append(node, children);
  return node;
}

/** @param {Element} node @param {any[]} children */
export function append(node, children) {
  for (const child of children) if (child !== null && child !== undefined && child !== false) node.append(child);
}

/** @returns {any} the element with this id */
export const get = (id) => document.getElementById(id);

/** Changes a text only if it differs, so that nothing is laid out again. */
export function setText(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

/** Changes an attribute only if it differs; `null` removes it. */
export function setAttribute(node, name, value) {
  if (value === null) node.removeAttribute(name);
  else if (node.getAttribute(name) !== value) node.setAttribute(name, value);
}

const SVG = 'http://www.w3.org/2000/svg';

/** Creates an element of SVG. */
export function svg(tag, attributes = {}, ...children) {
  const node = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  append(node, children);
  return node;
}

const ICONS = {
  pause: 'M9 6v12M15 6v12',
  play: 'M8 5.5v13l10-6.5z',
  close: 'M6 6l12 12M18 6L6 18',
  up: 'M12 19V5M6 11l6-6 6 6',
  down: 'M12 5v14M6 13l6 6 6-6',
  grip: 'M9 6h.01M9 12h.01M9 18h.01M15 6h.01M15 12h.01M15 18h.01',
  open: 'M14 5h5v5M19 5l-8 8M11 6H6v12h12v-5',
  link: 'M10 14a4 4 0 0 0 6 .5l3-3a4 4 0 0 0-5.7-5.7l-1.5 1.5M14 10a4 4 0 0 0-6-.5l-3 3a4 4 0 0 0 5.7 5.7l1.5-1.5',
  check: 'M5 12.5l4.5 4.5L19 7.5',
  trash: 'M4 7h16M9 7V4h6v3M6.5 7l1 13h9l1-13M10 11v5M14 11v5',
  search: 'M10.5 17a6.5 6.5 0 1 0 0-13 6.5 6.5 0 0 0 0 13zM15.5 15.5L20 20',
  upload: 'M12 16V4M7 9l5-5 5 5M5 16v4h14v-4',
  back: 'M19 12H5M11 6l-6 6 6 6',
};

/** @param {keyof ICONS} name */
export const icon = (name) => svg('svg', { class: 'i', viewBox: '0 0 24 24', 'aria-hidden': 'true' }, svg('path', { d: ICONS[name] }));

/** A button with an icon and a label for screen readers and as tooltip. */
export const iconButton = (name, label, click, attributes = {}) =>
  el('button', { type: 'button', class: 'icon', 'aria-label': label, title: label, on: { click }, ...attributes }, icon(name));

const queue = new Set();

/** Runs a function once before the next frame. */
export function beforeFrame(task) {
  if (queue.size === 0) {
    requestAnimationFrame(() => {
      const tasks = [...queue];
      queue.clear();
      for (const task of tasks) task();
    });
  }
  queue.add(task);
}

/** Copies a text, also on pages without TLS. */
export async function copyText(text) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    const area = el('textarea', { class: 'sr', readonly: true });
    area.value = text;
    (document.querySelector('dialog[open]') ?? document.body).append(area);
    area.select();
    document.execCommand('copy');
    area.remove();
  }
}
