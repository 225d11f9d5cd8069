// A hostile page of another origin, and access with the token.

import assert from 'node:assert/strict';
import { once } from 'node:events';
import { createServer } from 'node:http';
import { networkInterfaces } from 'node:os';
import { after, before, test } from 'node:test';

import { click, find, launch, open, type } from './browser.js';
import { Swarm } from './swarm.js';

let browser;
let swarm;
let tracker;
let peer;
before(async () => {
  // The name of the attacker resolves to this machine, as after DNS rebinding.
  [browser, swarm] = await Promise.all([launch('--host-resolver-rules=MAP attacker.example 127.0.0.1'), Swarm.create()]);
  tracker = await swarm.tracker('tracker', ['swarm.admission="invite"']);
  const open = await swarm.tracker('open');
  peer = await swarm.peer('peer', open);
  await peer.run('publish', await swarm.file('private.txt', 1000));
});
after(async () => {
  await browser?.close();
  await swarm?.close();
});

/** What a hostile page could change. */
async function state() {
  return JSON.stringify([
    await peer.api('GET', '/library'), await peer.api('GET', '/downloads'), await peer.api('GET', '/limits'), await peer.api('GET', '/log/level'),
    await tracker.api('GET', '/invitations'),
  ]);
}

test('page_of_another_origin_gets_and_changes_nothing', async () => {
  const before = await state();
  const hostile = createServer((request, response) => response.setHeader('Content-Type', 'text/html').end('<!doctype html><body>')).listen(0, '127.0.0.1');
  await once(hostile, 'listening');
  after(() => hostile.close());
  for (const host of ['localhost', '127.0.0.1', 'attacker.example']) {
    const page = await open(browser, `http://${host}:${hostile.address().port}/`);
    const results = await page.evaluate(async (peer, tracker) => {
      const bodies = [[`${peer}api/v1/downloads`, { query: 'private.txt' }], [`${peer}api/v1/library`, { paths: ['/etc/passwd'] }], [`${tracker}api/v1/invitations`, { uses: 9, lifetime_ms: 1e9 }]];
      const read = [];
      const attempt = async (what, options) => {
        try {
          // A stream that is not refused does not end.
          const response = await fetch(what, { ...options, signal: AbortSignal.timeout(5000) });
          read.push([what, response.type, response.status, await response.text()]);
        } catch { /* Refused, as it should be. */ }
      };
      for (const path of ['api/v1/status', 'api/v1/library', 'api/v1/events', 'files/private.txt', 'metrics', 'api/openapi.json']) {
        await attempt(`${peer}${path}`, { credentials: 'include' });
        await attempt(`${peer}${path}`, { mode: 'no-cors' });
      }
      for (const [url, body] of bodies) {
        for (const type of ['text/plain', 'application/x-www-form-urlencoded', 'application/json']) {
          await attempt(url, { method: 'POST', mode: type === 'application/json' ? 'cors' : 'no-cors', headers: { 'Content-Type': type }, body: JSON.stringify(body) });
        }
        navigator.sendBeacon(url, JSON.stringify(body));
        // A form whose field is JSON.
        const frame = Object.assign(document.createElement('iframe'), { name: 'target' });
        const form = Object.assign(document.createElement('form'), { method: 'post', action: url, enctype: 'text/plain', target: 'target' });
        const field = Object.assign(document.createElement('input'), { name: JSON.stringify(body).slice(0, -1) + ',"x":"', value: '"}' });
        form.append(field);
        document.body.append(frame, form);
        const loaded = new Promise((resolve) => { frame.onload = resolve; });
        form.submit();
        await loaded;
        frame.remove();
      }
      await attempt(`${peer}files/planted.txt`, { method: 'PUT', body: 'x' });
      const form = new FormData();
      form.append('file', new Blob(['x']), 'planted.txt');
      await attempt(`${peer}files`, { method: 'POST', mode: 'no-cors', body: form });
      await attempt(`${peer}api/v1/limits`, { method: 'PUT', headers: { 'Content-Type': 'application/json' }, body: '{"upload_rate":1,"download_rate":1}' });
      // The page must not be shown in a frame.
      const frame = document.createElement('iframe');
      const loaded = new Promise((resolve) => { frame.onload = resolve; });
      frame.src = peer;
      document.body.append(frame);
      await loaded;
      return read;
    }, peer.url, tracker.url);
    assert.deepEqual(results.filter(([, , status, text]) => status !== 0 || text !== ''), [], host);
    const framed = page.frames().filter((frame) => frame.url() === peer.url);
    for (const frame of framed) assert.equal(await frame.$('main'), null, 'shown in a frame');
    await page.close();
  }
  assert.equal(await state(), before);
});

test('page_of_a_rebound_name_gets_nothing', async () => {
  for (const node of [peer, tracker]) {
    const { port } = new URL(node.url);
    const page = await browser.newPage();
    const response = await page.goto(`http://attacker.example:${port}/`);
    assert.equal(response.status(), 421);
    // This document has the origin of the node.
    const statuses = await page.evaluate(async () => {
      const requests = [['GET', '/'], ['GET', '/api/v1/status'], ['GET', '/api/v1/events'], ['GET', '/metrics'], ['GET', '/files/private.txt'], ['PUT', '/files/planted.txt']];
      return Promise.all(requests.map(async ([method, path]) => (await fetch(path, { method, body: method === 'PUT' ? 'x' : undefined })).status));
    });
    assert.deepEqual([...new Set(statuses)], [421]);
    await page.close();
  }
});

test('token_is_asked_for_beyond_loopback_and_stays_in_the_tab', async () => {
  const address = Object.values(networkInterfaces()).flat().find(({ family, internal }) => family === 'IPv4' && !internal)?.address;
  assert.ok(address, 'this test needs a network interface other than loopback');
  const remote = await swarm.tracker('remote', [`http.listen=["${address}:0"]`, 'http.allow_plaintext=true']);
  const token = await remote.token();
  const page = await open(browser, remote.url);
  const urls = [];
  page.on('request', (request) => urls.push(request.url()));
  await click(page, 'Not now');
  const refused = page.waitForResponse((response) => response.url().includes('/peers') && response.status() === 401);
  // A page that becomes visible reads the peers and events again.
  const show = () => page.evaluate(() => {
    for (const hidden of [true, false]) {
      Object.defineProperty(document, 'hidden', { value: hidden, configurable: true });
      document.dispatchEvent(new Event('visibilitychange'));
    }
  });
  await show();
  await refused;
  await page.evaluate(() => new Promise(requestAnimationFrame));
  assert.equal(await page.$('dialog'), null, 'it is asked for once');
  remote.settings[1] = `http.listen=["${new URL(remote.url).host}"]`;
  await remote.stop();
  await show();
  await find(page, '#banner', 'No connection to the node.');
  await remote.start();
  await find(page, '#banner', 'This node needs a token');
  await click(page, 'Log in');
  await type(page, 'dialog input', 'wrong');
  await click(page, 'Log in', 'dialog button');
  await find(page, 'dialog [role=alert]', 'does not accept');
  await type(page, 'dialog input', token);
  await click(page, 'Log in', 'dialog button');
  await find(page, '#version', '0.');
  await find(page, '#catalogue .empty');
  const kept = await page.evaluate(() => [Object.values(sessionStorage), Object.values(localStorage), document.cookie]);
  assert.deepEqual(kept, [[token], ['en'], '']);
  assert.ok(urls.length > 5 && urls.every((url) => !url.includes(token)), 'the token is in a URL');
  assert.ok(!remote.log.includes(token), 'the token is in the log');
  assert.deepEqual(page.problems, []);
});
