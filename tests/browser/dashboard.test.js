// The pages of a peer and a tracker, with real nodes, clicks and drops.

import assert from 'node:assert/strict';
import { createHash } from 'node:crypto';
import { readFile } from 'node:fs/promises';
import { after, before, test } from 'node:test';

import decodeCode from 'jsqr';

import { click, drop, eventually, find, launch, open, type } from './browser.js';
import { run, Swarm } from './swarm.js';

const MIB = 1024 * 1024;

let browser;
let swarm;
before(async () => { browser = await launch(); });
after(() => browser.close());

/** Runs a test with a swarm of its own. */
function swarmTest(name, body) {
  test(name, async () => {
    swarm = await Swarm.create();
    try {
      await body();
    } finally {
      await Promise.all((await browser.pages()).slice(1).map((page) => page.close()));
      await swarm.close();
    }
  });
}

/** Opens a page on which `answer` responds to a request, or returns `true` to send it to the node. */
async function intercepted(answer) {
  const page = await open(browser, 'about:blank');
  await page.setRequestInterception(true);
  page.on('request', (request) => { if (answer(request, new URL(request.url())) === true) request.continue(); });
  return page;
}

const respond = (request, body) => request.respond({ contentType: 'application/json', body: JSON.stringify(body) });
const respondWithEvent = (request, downloads) => request.respond({ contentType: 'text/event-stream', body: `id: 1\nevent: downloads\ndata: ${JSON.stringify({ downloads })}\n\n` });

/** An active download as in the API. */
const active = (position, done, rate) => ({
  id: String(position).padStart(64, '0'), name: `file ${position}`, kind: 'file', size: 1000, done, state: 'active', error: null,
  rate, eta_seconds: 5, providers: 2, position, added_ms: 0, origin: 'api',
});

const hash = (content) => createHash('sha256').update(content).digest('hex');

swarmTest('dropped_file_is_published_found_paused_and_downloaded', async () => {
  const tracker = await swarm.tracker('tracker');
  const source = await swarm.peer('source', tracker);
  const sink = await swarm.peer('sink', tracker);
  const path = await swarm.file('film & <b>.bin', 24 * MIB);

  const publishing = await open(browser, source.url);
  await find(publishing, '#library .empty');
  await drop(publishing, '#library', [path]);
  await find(publishing, '#library td', 'film & <b>.bin');
  await find(publishing, '.toast', 'is published');
  const [published] = (await source.api('GET', '/library')).files;
  assert.deepEqual([published.name, published.size], ['film & <b>.bin', 24 * MIB]);

  const catalogue = await open(browser, tracker.url);
  await type(catalogue, '#pattern', 'no such file');
  await find(catalogue, '#catalogue .empty');
  await type(catalogue, '#pattern', 'film');
  await (await find(catalogue, '#catalogue a', 'film & <b>.bin')).click();
  await find(catalogue, '#file dd', published.id);
  await find(catalogue, '#file td', 'whole file');

  const page = await open(browser, sink.url);
  // Slow enough to be paused.
  await type(page, '#limit-down', '4');
  await click(page, 'Apply');
  await find(page, '.toast', 'Limits changed');
  assert.equal((await sink.api('GET', '/limits')).download_rate, 4_000_000);
  await type(page, '#query', 'film & <b>.bin');
  await click(page, 'Download', '#start button');
  await click(page, 'film & <b>.bin', '.download button');
  await find(page, '.detail td', source.id ?? '');
  await click(page, 'Pause film & <b>.bin');
  await find(page, '.download .tag', 'Paused');
  const download = async () => (await sink.api('GET', '/downloads')).downloads[0];
  assert.equal((await download()).state, 'paused');
  await type(page, '#limit-down', '1000');
  await click(page, 'Apply');
  await click(page, 'Resume film & <b>.bin');
  await find(page, '.download .tag', 'Complete');
  await find(page, '#library td', 'film & <b>.bin');
  const [link] = await page.$$eval('#library a', (links) => links.map(({ href }) => href));
  const content = Buffer.from(await (await fetch(link)).arrayBuffer());
  assert.equal(hash(content), hash(await readFile(path)));

  await click(page, 'Remove film & <b>.bin');
  await click(page, 'Remove', 'dialog button');
  await find(page, '#library .empty');
  assert.deepEqual((await sink.api('GET', '/library')).files, []);
  for (const page of await browser.pages()) assert.deepEqual(page.problems ?? [], []);
});

swarmTest('downloads_are_reordered_by_keyboard_and_cancelled', async () => {
  const tracker = await swarm.tracker('tracker');
  const source = await swarm.peer('source', tracker);
  const sink = await swarm.peer('sink', tracker, ['limits.download="100kB/s"']);
  const names = ['one.bin', 'two.bin', 'three.bin'];
  for (const name of names) await source.run('publish', await swarm.file(name, 8 * MIB));
  const page = await open(browser, sink.url);
  for (const name of names) {
    await type(page, '#query', name);
    await page.keyboard.press('Enter');
    await find(page, '.download .name', name);
  }
  await page.focus('.download:nth-child(1) .link');
  await page.keyboard.down('Alt');
  await page.keyboard.press('ArrowDown');
  await page.keyboard.up('Alt');
  const order = async () => (await sink.api('GET', '/downloads')).downloads.map(({ name }) => name);
  await eventually('the order', async () => (await order()).join() === 'two.bin,one.bin,three.bin');
  await page.waitForFunction(() => document.querySelector('.download:nth-child(2) .link') === document.activeElement);
  await click(page, 'Cancel two.bin');
  await click(page, 'Cancel download');
  await eventually('the cancellation', async () => (await order()).join() === 'one.bin,three.bin');
  await page.waitForFunction(() => document.querySelectorAll('.download').length === 2);
});

swarmTest('invited_member_joins_and_is_revoked', async () => {
  const tracker = await swarm.tracker('tracker', ['swarm.admission="invite"']);
  const page = await open(browser, tracker.url);
  await click(page, 'Invite peers');
  await click(page, 'Create invitation');
  const line = await (await find(page, 'dialog .qr')).evaluate((node) => node.closest('dialog').querySelector('textarea').value);
  assert.match(line, /^enjambre1\./);
  // The code as it is on the screen.
  const { pixels, width } = await page.evaluate(async () => {
    const image = new Image();
    const code = document.querySelector('.qr').cloneNode(true);
    code.setAttribute('width', '400');
    code.setAttribute('height', '400');
    image.src = `data:image/svg+xml,${encodeURIComponent(new XMLSerializer().serializeToString(code))}`;
    await image.decode();
    const canvas = document.createElement('canvas');
    canvas.width = canvas.height = 400;
    const context = canvas.getContext('2d');
    context.fillStyle = '#fff';
    context.fillRect(0, 0, 400, 400);
    context.drawImage(image, 0, 0);
    return { pixels: [...context.getImageData(0, 0, 400, 400).data], width: 400 };
  });
  assert.equal(decodeCode(Uint8ClampedArray.from(pixels), width, width)?.data, line);
  await click(page, 'Close', 'dialog button');
  assert.equal(await page.$('dialog'), null);
  assert.ok(!(await page.content()).includes(line), 'the invitation is a secret');

  const config = swarm.path('member.toml');
  const joined = JSON.parse(await run(['join', line, '--config', config, '--listen', 'tcps://127.0.0.1:0', '--json'], swarm.folder));
  await find(page, '#members code', joined.peer.slice(0, 8));

  await type(page, '#reserve-name', 'official.iso');
  await type(page, '#reserve-peer', joined.peer);
  await click(page, 'Reserve');
  await find(page, '.toast', 'is reserved');

  await click(page, `Revoke ${joined.peer.slice(0, 8)}`);
  await find(page, 'dialog', joined.peer);
  await click(page, 'Revoke', 'dialog button');
  await find(page, '#members .tag', 'revoked');
  const [member] = (await tracker.api('GET', '/members')).members;
  assert.ok(member.revoked_ms > 0);
  await assert.rejects(run(['list', '--config', config], swarm.folder), /revoked/);
});

swarmTest('lost_node_is_reported_until_it_is_back', async () => {
  const tracker = await swarm.tracker('tracker');
  const page = await open(browser, tracker.url, { language: 'es' });
  await find(page, '#catalogue .empty', 'Ningún archivo coincide.');
  tracker.settings[0] = `http.listen=["${new URL(tracker.url).host}"]`;
  await tracker.stop();
  await find(page, '#banner', 'Sin conexión con el nodo.');
  await tracker.start();
  await page.waitForFunction(() => document.querySelector('#banner').hidden);
});

swarmTest('matches_are_shown_while_the_search_continues', async () => {
  const tracker = await swarm.tracker('tracker');
  const file = (name) => ({ name, id: '0'.repeat(64), size: 1, kind: 'file', version: 1, providers: 1, publisher: '1'.repeat(64), published_ms: 0 });
  let rest;
  const page = await intercepted((request, { pathname, searchParams }) => {
    if (pathname !== '/api/v1/files') return true;
    const name = searchParams.get('pattern');
    if (searchParams.has('cursor')) rest = request;
    else respond(request, { files: [file(name)], next: name === 'slow' ? 'the rest' : null });
  });
  const cancelled = new Promise((resolve) => { page.on('requestfailed', (request) => { if (request === rest) resolve(); }); });
  await page.goto(tracker.url);
  await type(page, '#pattern', 'slow');
  await find(page, '#catalogue a', 'slow');
  await find(page, '#catalogue-sum', '1+ files · Searching');
  await type(page, '#pattern', 'fast');
  await find(page, '#catalogue a', 'fast');
  await cancelled;
  assert.equal(await page.$eval('#catalogue-sum', (sum) => sum.textContent), '1 file');
  assert.deepEqual(page.problems, []);
});

swarmTest('used_space_grows_while_a_file_arrives', async () => {
  const tracker = await swarm.tracker('tracker');
  const peer = await swarm.peer('peer', tracker);
  const download = active(0, 750, 10);
  const file = { id: download.id, name: 'file', kind: 'file', size: 1000, pieces: 4, available_pieces: 1, content: 'database', path: null, withdrawn: null };
  const page = await intercepted((request, { pathname }) => {
    if (pathname === '/api/v1/library') respond(request, { files: [file] });
    else if (pathname === '/api/v1/events') respondWithEvent(request, [download]);
    else return true;
  });
  await page.goto(peer.url);
  await find(page, '#usage-list .num', '750 B');
  await find(page, '#library-sum', '1 file · 750 B');
  assert.deepEqual(page.problems, []);
});

swarmTest('only_rows_on_the_screen_are_painted', async () => {
  const tracker = await swarm.tracker('tracker');
  const peer = await swarm.peer('peer', tracker);
  const list = (done) => Array.from({ length: 200 }, (_, position) => active(position, done, done * 10));
  let stream;
  const page = await intercepted((request, { pathname }) => {
    if (pathname === '/api/v1/downloads') respond(request, { downloads: list(100) });
    else if (pathname === '/api/v1/events' && stream === undefined) stream = request;
    else if (pathname === '/api/v1/events') request.abort();
    else return true;
  });
  await page.goto(peer.url);
  await page.waitForFunction(() => document.querySelectorAll('.download').length === 200 && document.querySelector('.download:nth-child(200) .link').textContent === 'file 199');
  await eventually('the stream', () => stream !== undefined);
  // Two frames, until rows below the end of the list are known to be invisible.
  await page.evaluate(() => new Promise((resolve) => { requestAnimationFrame(() => requestAnimationFrame(() => setTimeout(resolve))); }));
  await page.evaluate(() => {
    window.changed = new Set();
    new MutationObserver((records) => {
      for (const { target } of records) window.changed.add((target.closest ? target : target.parentElement).closest('.download'));
    }).observe(document.querySelector('#downloads'), { subtree: true, childList: true, characterData: true, attributes: true });
  });
  await respondWithEvent(stream, list(200));
  await page.waitForFunction(() => document.querySelector('.download .side').textContent.startsWith('2 kB/s'));
  const changed = await page.evaluate(() => window.changed.size);
  assert.ok(changed > 2 && changed < 30, `${changed} rows changed`);
});
