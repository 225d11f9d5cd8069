// The pages in light and dark, at three widths: accessibility, and screenshots for a person who looks at them, in
// target/dashboard or $SCREENSHOTS.

import assert from 'node:assert/strict';
import { mkdir } from 'node:fs/promises';
import { join, resolve } from 'node:path';
import { after, before, test } from 'node:test';

import { checkAccessibility, click, eventually, find, launch, open, type } from './browser.js';
import { Swarm } from './swarm.js';

const FOLDER = process.env.SCREENSHOTS ?? resolve(import.meta.dirname, '../../target/dashboard');
const MIB = 1024 * 1024;
const SIZES = [[360, 740], [1280, 800], [3840, 2160]];

/** The files of the swarm, with a size in MiB. The last names are hostile. */
const FILES = [
  ['debian-12.9-amd64-netinst.iso', 48], ['ubuntu-24.04-live-server.iso', 64], ['model-weights-7b-q4.gguf', 40], ['openstreetmap-europe.osm.pbf', 32],
  ['archlinux-x86_64.iso', 20], ['wikipedia_es_all_maxi.zim', 28], ['firmware-rk3588.bin', 2], ['sensor-logs-week-47.parquet', 6],
  ['backup-2026-11-29.tar.zst', 9], ['nixos-minimal-26.05.iso', 12], ['invoice\u{202e}gpj.exe', 1], ['p\u{430}ypal <img src=x onerror=alert(1)>.zip', 1],
];

let browser;
let swarm;
let pages;
before(async () => {
  [browser, swarm] = await Promise.all([launch(), Swarm.create(), mkdir(FOLDER, { recursive: true })]);
  const tracker = await swarm.tracker('tracker', ['swarm.admission="invite"', 'tracker.store.enabled=true']);
  const sources = [await swarm.member('source-1', tracker, ['limits.upload="5MB/s"']), await swarm.member('source-2', tracker, ['limits.upload="3MB/s"'])];
  const peer = await swarm.member('peer', tracker);
  for (const [name, size] of FILES) {
    const path = await swarm.file(name, size * MIB);
    for (const source of sources) await source.run('publish', path, ...(name.startsWith('firmware') ? ['--pin'] : []));
  }
  await tracker.run('invite', '--uses', '5', '--read-only');
  for (const name of FILES.slice(4).map(([name]) => name)) await peer.run('get', name);
  await peer.api('PUT', '/limits', { download_rate: 1_000_000, upload_rate: 20_000_000 });
  for (const [query] of FILES.slice(0, 4)) await peer.api('POST', '/downloads', { query });
  pages = { peer: await open(browser, peer.url) };
  await click(pages.peer, FILES[0][0], '.download button');
  await find(pages.peer, '.detail td');
  await find(pages.peer, '#library td', FILES[4][0]);
  pages.tracker = await open(browser, tracker.url);
  await find(pages.tracker, '#members td');
});
after(async () => {
  await browser?.close();
  await swarm?.close();
});

for (const role of ['peer', 'tracker']) {
  for (const theme of ['light', 'dark']) {
    test(`${role}_page_is_accessible_in_${theme}`, async () => {
      const page = pages[role];
      // Pages in the background are not painted.
      await page.bringToFront();
      await page.emulateMediaFeatures([{ name: 'prefers-color-scheme', value: theme }, { name: 'prefers-reduced-motion', value: 'reduce' }]);
      for (const [width, height] of SIZES) {
        await page.setViewport({ width, height });
        const links = width < 960 ? await page.$$('nav.views a') : [null];
        for (const [index, link] of links.entries()) {
          await link?.click();
          if (width < 3840) await checkAccessibility(page);
          await page.screenshot({ path: join(FOLDER, `${role}-${width}-${theme}${index === 0 ? '' : `-${index + 1}`}.png`) });
          const [wide, available] = await page.evaluate(() => [document.documentElement.scrollWidth, innerWidth]);
          assert.ok(wide <= available, `the page is ${wide} wide`);
        }
        await links[0]?.click();
      }
      assert.deepEqual(page.problems, []);
    });
  }
}

test('dialogs_and_the_page_of_a_file_are_accessible', async () => {
  const { peer, tracker } = pages;
  for (const page of [peer, tracker]) await page.setViewport({ width: 1280, height: 800 });
  await peer.bringToFront();
  await click(peer, `Cancel ${FILES[1][0]}`);
  await checkAccessibility(peer);
  await peer.keyboard.press('Escape');
  await tracker.bringToFront();
  await click(tracker, 'Invite peers');
  await click(tracker, 'Create invitation');
  await find(tracker, '.qr');
  await checkAccessibility(tracker);
  await tracker.screenshot({ path: join(FOLDER, 'tracker-invitation.png') });
  await tracker.keyboard.press('Escape');
  await type(tracker, '#pattern', 'firmware');
  await (await find(tracker, '#catalogue a', 'firmware')).click();
  await find(tracker, '#file td', 'whole file');
  await checkAccessibility(tracker);
  await tracker.screenshot({ path: join(FOLDER, 'tracker-file.png') });
  await eventually('the focus', () => tracker.evaluate(() => document.activeElement.id === 'file-title'));
});

test('hostile_names_are_text', async () => {
  await pages.peer.bringToFront();
  const names = await pages.peer.$$eval('#library .name', (nodes) => nodes.map((node) => node.textContent));
  assert.ok(names.includes(String.raw`invoice\u{202e}gpj.exe`), names.join());
  assert.ok(names.includes('p\u{430}ypal <img src=x onerror=alert(1)>.zip'));
  assert.equal(await pages.peer.$('#library img'), null);
  await find(pages.peer, '#library .tag', 'confusable letters');
});
