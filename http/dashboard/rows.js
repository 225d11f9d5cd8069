// Lists with one node per item, which stays the same while the item changes. Only rows on the screen are painted.

import { append, beforeFrame, el, setText } from './dom.js';
import { t } from './language.js';

/** Number of rows before "Show more". */
const PAGE = 200;

/**
 * Rows of a parent element.
 * @template Item
 */
export class Rows {
  /**
   * @param {Element} parent
   * @param {(item: Item) => string} key
   * @param {(item: Item) => {node: HTMLElement, paint: (item: Item) => void, close?: () => void}} create
   */
  constructor(parent, key, create) {
    this.parent = parent;
    this.key = key;
    this.create = create;
    this.rows = new Map();
    this.nodes = new WeakMap();
    this.paint = () => {
      for (const row of this.rows.values()) {
        if (row.isVisible && row.isDirty) {
          row.isDirty = false;
          row.paint(row.item);
        }
      }
    };
    this.observer = new IntersectionObserver((entries) => {
      for (const entry of entries) {
        const row = this.nodes.get(entry.target);
        if (row) row.isVisible = entry.isIntersecting;
      }
      beforeFrame(this.paint);
    });
  }

  /** Shows these items in this order. @param {Item[]} items */
  set(items) {
    const focused = this.parent.contains(document.activeElement) ? document.activeElement : null;
    const keys = new Set(items.map(this.key));
    for (const [key, row] of this.rows) {
      if (!keys.has(key)) {
        this.rows.delete(key);
        this.observer.unobserve(row.node);
        row.close?.();
        row.node.remove();
      }
    }
    let next = this.parent.firstElementChild;
    for (const item of items) {
      const key = this.key(item);
      let row = this.rows.get(key);
      if (row === undefined) {
        row = { ...this.create(item), isVisible: true };
        this.rows.set(key, row);
        this.nodes.set(row.node, row);
        this.observer.observe(row.node);
        row.paint(item);
      } else row.isDirty = true;
      row.item = item;
      if (row.node === next) next = next.nextElementSibling;
      else this.parent.insertBefore(row.node, next);
    }
    // A moved node loses the focus.
    if (focused && focused !== document.activeElement && focused.isConnected) focused.focus({ preventScroll: true });
    beforeFrame(this.paint);
  }
}

/**
 * A column: a text, or a node that is created again when `depends` changes.
 * @typedef {{label: string, kind?: string, text?: (item: any) => string, node?: (item: any) => Node, depends?: (item: any) => any}} Column
 */

/** A table that becomes cards in a narrow panel, with a message if it is empty. */
export class Table {
  /** @param {Element} root @param {{label: string, key: (item: any) => string, columns: Column[], empty: string}} options */
  constructor(root, { label, key, columns, empty }) {
    // The roles survive `display: block` in narrow panels.
    const head = columns.map(({ label, kind }) => el('th', { role: 'columnheader', scope: 'col', class: kind },
      kind === 'tools' ? el('span', { class: 'sr' }, label) : label));
    const body = el('tbody', { role: 'rowgroup' });
    this.table = el('table', { role: 'table', class: 'to-cards', 'aria-label': label },
      el('thead', { role: 'rowgroup' }, el('tr', { role: 'row' }, ...head)), body);
    this.empty = el('p', { class: 'empty' }, empty);
    this.more = el('div', { class: 'more' }, el('button', { type: 'button', on: { click: () => this.showMore() } }, t('Show more')));
    append(root, [this.table, this.empty, this.more]);
    this.rows = new Rows(body, key, () => {
      const cells = columns.map(({ label, kind }) => el('td', { role: 'cell', class: kind, 'data-label': label }));
      const known = [];
      return {
        node: el('tr', { role: 'row' }, ...cells),
        paint: (item) => columns.forEach((column, index) => {
          if (column.text) return setText(cells[index], column.text(item));
          const depends = JSON.stringify(column.depends ? column.depends(item) : item);
          if (known[index] !== depends) {
            known[index] = depends;
            cells[index].replaceChildren(column.node(item));
          }
        }),
      };
    });
    this.limit = PAGE;
    this.items = [];
    /** Loads more items, if there are more than `items`. @type {(() => void) | null} */
    this.load = null;
    // Scrolling to the end shows more.
    this.end = new IntersectionObserver(([entry]) => entry.isIntersecting && this.showMore());
    this.set([]);
    this.empty.hidden = true;
  }

  /** @param {any[]} items */
  set(items) {
    this.items = items;
    const shown = items.slice(0, this.limit);
    this.rows.set(shown);
    this.table.hidden = items.length === 0;
    this.empty.hidden = items.length > 0;
    this.more.hidden = shown.length === items.length && this.load === null;
    // Reports again if the end is still on the screen.
    this.end.unobserve(this.more);
    if (!this.more.hidden) this.end.observe(this.more);
  }

  showMore() {
    if (this.more.hidden) return;
    if (this.limit < this.items.length) {
      this.limit += PAGE;
      this.set(this.items);
    } else if (this.load) {
      this.limit += PAGE;
      this.load();
    }
  }

  /** Begins again at the first page. */
  reset() {
    this.limit = PAGE;
    this.load = null;
  }
}
