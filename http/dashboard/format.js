// Numbers, times and names for people.

import { el } from './dom.js';
import { language, t } from './language.js';

const numbers = {};
/** Formats a number with at most this many digits after the point. */
export function number(value, digits = 0) {
  numbers[digits] ??= new Intl.NumberFormat(language, { maximumFractionDigits: digits });
  return numbers[digits].format(value);
}

/** Formats a number of things, such as `1 file` or `2 files`. */
export const count = (value, one, many) => `${number(value)} ${t(value === 1 ? one : many)}`;

const UNITS = ['B', 'KiB', 'MiB', 'GiB', 'TiB', 'PiB', 'EiB'];
/** Formats a size, as the command line does. */
export function size(bytes) {
  let unit = 0;
  let value = bytes ?? 0;
  while (value >= 1023.95 && unit < UNITS.length - 1) {
    value /= 1024;
    unit += 1;
  }
  return `${number(value, unit === 0 || value >= 100 ? 0 : 1)} ${UNITS[unit]}`;
}

/** Formats a rate in bytes per second. */
export function rate(value) {
  if (value >= 1e6) return `${number(value / 1e6, value < 1e7 ? 1 : 0)} MB/s`;
  return value >= 1e3 ? `${number(value / 1e3)} kB/s` : `${number(value)} B/s`;
}

export const percent = (share) => `${number(Math.floor(Math.min(share, 1) * 100))} %`;

/** Formats a duration with its two largest units. */
export function duration(seconds) {
  const s = Math.max(0, Math.round(seconds));
  const parts = [[Math.floor(s / 86400), 'd'], [Math.floor(s / 3600) % 24, 'h'], [Math.floor(s / 60) % 60, 'min'], [s % 60, 's']];
  const first = parts.findIndex(([value]) => value > 0);
  if (first < 0) return '0 s';
  return parts.slice(first, first + 2).filter(([value]) => value > 0).map(([value, unit]) => `${number(value)} ${unit}`).join(' ');
}

const dateTime = new Intl.DateTimeFormat(language, { dateStyle: 'medium', timeStyle: 'short' });
const day = new Intl.DateTimeFormat(language, { dateStyle: 'medium' });
const clock = new Intl.DateTimeFormat(language, { timeStyle: 'medium' });
// A remote can send a time that `Date` cannot represent; it becomes the last one of the year 9999.
const valid = (ms) => Math.min(Math.max(ms, 0), 253402300799000);
export const time = (ms) => dateTime.format(valid(ms));
export const date = (ms) => day.format(valid(ms));
export const timeOfDay = (ms) => clock.format(valid(ms));

/** Formats a latency in milliseconds. */
export const latency = (ms) => (ms >= 1000 ? `${number(ms / 1000, 1)} s` : `${number(ms, ms < 10 ? 2 : 0)} ms`);

// The same characters as in the output of the command line: they change the order of text, or are not visible.
const HIDDEN = new RegExp(
  '[\\0-\\x1f\\x7f-\\x9f\\xad\\u034f\\u061c\\u115f-\\u1160\\u17b4-\\u17b5\\u180b-\\u180f\\u200b-\\u200f\\u2028-\\u202e' +
    '\\u2060-\\u206f\\u3164\\ufe00-\\ufe0f\\ufeff\\uffa0\\ufff0-\\ufffb\\u{1d173}-\\u{1d17a}\\u{e0000}-\\u{e0fff}]', 'gu');
const LOOKALIKES = 'ΑΒΕΖΗΙΚΜΝΟΡΤΥΧανορυγϲϳЅІЈАВЕКМНОРСТУХԌԚԜаеорсухѕіјһԁԍԛԝӏҮүѵգհոսցօքՍՏՕԼ';

/** Replaces each hidden character by its number, such as `\u{202e}`. */
export const visible = (text) => String(text).replace(HIDDEN, (c) => `\\u{${c.codePointAt(0).toString(16)}}`);

/** Whether a name may be confused with another one, by the rule of the command line. */
export function isConfusable(name) {
  const isLookalike = (c) => LOOKALIKES.includes(c) || /[\uff21-\uff5a\u{1d400}-\u{1d7ff}]/u.test(c);
  const isAscii = (c) => /[a-z]/i.test(c) && c < '\x80';
  if (![...name].some(isLookalike)) return false;
  const isMixed = (word) => [...word].some(isLookalike) && [...word].some(isAscii);
  const letters = [...name].filter((c) => /\p{Alphabetic}/u.test(c));
  return name.split(/[^\p{Alphabetic}\p{N}]/u).some(isMixed) || letters.every((c) => c < '\x80' || isLookalike(c));
}

/** The name of a file or directory, with marks. */
export function nameNode(name, kind) {
  const text = visible(name ?? '') + (kind === 'collection' ? '/' : '');
  const node = el('span', {}, el('bdi', { class: 'name', title: text }, text));
  if (name && isConfusable(name)) node.append(' ', el('span', { class: 'tag warn' }, t('confusable letters')));
  return node;
}

/** The beginning of an id. */
export const short = (id) => String(id).slice(0, 8);

/** The beginning of an id, with the whole one as tooltip. */
export const idNode = (id) => el('code', { title: id }, short(id));

