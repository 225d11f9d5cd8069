// Modules of the dashboard without a browser.

import assert from 'node:assert/strict';
import { readdir, readFile } from 'node:fs/promises';
import test from 'node:test';

import decodeCode from 'jsqr';

globalThis.localStorage = { getItem: () => 'en' };
const FOLDER = new URL('../../http/dashboard/', import.meta.url);
const { qrCode } = await import(new URL('qr.js', FOLDER));
const { count, duration, isConfusable, rate, size, visible } = await import(new URL('format.js', FOLDER));
const { SPANISH } = await import(new URL('language.js', FOLDER));

/** Decodes a symbol with four pixels per module and a quiet zone. */
function decode(modules) {
  const width = (modules.length + 8) * 4;
  const pixels = new Uint8ClampedArray(width * width * 4).fill(255);
  modules.forEach((row, y) => row.forEach((isDark, x) => {
    if (!isDark) return;
    for (let dy = 0; dy < 4; dy++) for (let dx = 0; dx < 4; dx++) pixels.fill(0, ((y * 4 + 16 + dy) * width + x * 4 + 16 + dx) * 4, ((y * 4 + 16 + dy) * width + x * 4 + 16 + dx) * 4 + 3);
  }));
  return decodeCode(pixels, width, width);
}

test('qr_code_of_every_version_is_decoded', () => {
  const versions = new Set();
  for (let length = 1; length <= 2953; length += length < 800 ? 13 : 71) {
    const text = Array.from({ length }, (_, i) => String.fromCharCode(33 + ((i * 7919 + length) % 94))).join('');
    const modules = qrCode(text);
    const version = (modules.length - 17) / 4;
    if (versions.has(version)) continue;
    versions.add(version);
    // The decoder expects an alignment pattern of version 23 at a wrong place.
    if (version !== 23) assert.equal(decode(modules)?.data, text, `${length} characters`);
  }
  assert.equal(versions.size, 40);
  assert.equal(decode(qrCode('ñandú 日本')).data, 'ñandú 日本');
  assert.equal(qrCode('x'.repeat(2954)), null);
});

test('every_text_has_a_translation', async () => {
  const texts = new Set();
  for (const name of await readdir(FOLDER)) {
    const source = await readFile(new URL(name, FOLDER), 'utf8');
    if (name.endsWith('.html')) {
      for (const [, text] of source.matchAll(/data-t>([^<]+)</g)) texts.add(text);
      for (const [tag] of source.matchAll(/<[^>]*data-t-label[^>]*>/g)) texts.add(/aria-label="([^"]*)"/.exec(tag)[1]);
      for (const [tag] of source.matchAll(/<[^>]*data-t-placeholder[^>]*>/g)) texts.add(/placeholder="([^"]*)"/.exec(tag)[1]);
    } else if (name !== 'language.js') {
      for (const [, text] of source.matchAll(/\bt\('([^']*)'/g)) texts.add(text);
      for (const [, one, many] of source.matchAll(/\bcount\(.+?, '([^']*)', '([^']*)'\)/g)) texts.add(one).add(many);
      for (const [, content] of source.matchAll(/^const (?:STATES|PLACES|REASONS|RIGHTS|HEALTH) = \{(.*?)\};/gms)) {
        const values = /^const HEALTH/m.test(source) && content.includes('banned') ? /(\w+):/g : /: '([^']*)'/g;
        for (const [, text] of content.matchAll(values)) texts.add(text.replaceAll('_', ' '));
      }
    }
  }
  assert.deepEqual([...texts].filter((text) => !(text in SPANISH)), [], 'not translated');
  assert.deepEqual(Object.keys(SPANISH).filter((text) => !texts.has(text)), [], 'not used');
  for (const [text, translation] of Object.entries(SPANISH)) {
    const values = (text) => text.match(/\{\w+\}/g)?.sort() ?? [];
    assert.deepEqual(values(translation), values(text), text);
  }
});

// The examples of apps/src/display.rs.
test('names_are_marked_like_on_the_command_line', () => {
  assert.equal(visible('1.0\u{1b}]0;x\u{7}\n\u{9b}2J'), String.raw`1.0\u{1b}]0;x\u{7}\u{a}\u{9b}2J`);
  assert.equal(visible('a\u{202e}gpj.exe\u{200b}'), String.raw`a\u{202e}gpj.exe\u{200b}`);
  for (const name of ['größe 日本 ñ.txt', 'e\u{301}', 'файл', '-> 🙂']) assert.equal(visible(name), name);
  for (const name of ['p\u{430}ypal', '\u{441}\u{43e}\u{440}.iso', '\u{ff21}.txt', '\u{3a1}DF 1']) assert.ok(isConfusable(name), name);
  for (const name of ['paypal.iso', 'отчёт.pdf', 'книга о море.pdf', '10 μm.csv', 'größe', '資料Ａ.txt']) assert.ok(!isConfusable(name), name);
});

test('hidden_characters_are_those_of_the_command_line', async () => {
  const source = await readFile(new URL('../../apps/src/display.rs', import.meta.url), 'utf8');
  const number = (text) => Number.parseInt(/[0-9a-f]{2,}/.exec(text)?.[0] ?? '0', 16);
  const ranges = [.../matches!\(\s*c,(.*?)\n {4}\)/s.exec(source)[1].matchAll(/'\\([^']+)'(?:\.\.='\\([^']+)')?/g)]
    .map(([, first, last]) => [number(first), number(last ?? first)]);
  assert.ok(ranges.length > 15);
  for (let code = 0; code <= 0x10ffff; code++) {
    if (code >= 0xd800 && code <= 0xdfff) continue;
    const c = String.fromCodePoint(code);
    const isHidden = ranges.some(([first, last]) => code >= first && code <= last);
    if ((visible(c) !== c) !== isHidden) assert.fail(code.toString(16));
  }
});

test('numbers_have_the_units_of_the_command_line', () => {
  assert.deepEqual([0, 1023, 1024, 1.5 * 1024 ** 3, 300 * 1024 ** 2].map(size), ['0 B', '1,023 B', '1 KiB', '1.5 GiB', '300 MiB']);
  assert.deepEqual([0, 999, 400_000, 2_500_000, 117_000_000].map(rate), ['0 B/s', '999 B/s', '400 kB/s', '2.5 MB/s', '117 MB/s']);
  assert.deepEqual([0, 59.6, 3600, 90_061].map(duration), ['0 s', '1 min', '1 h', '1 d 1 h']);
  assert.deepEqual([1, 2].map((n) => count(n, 'file', 'files')), ['1 file', '2 files']);
});
