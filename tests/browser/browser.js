// Chromium, and what a person does in it.

import assert from 'node:assert/strict';
import { existsSync } from 'node:fs';
import { readFile } from 'node:fs/promises';
import { createRequire } from 'node:module';

import puppeteer from 'puppeteer-core';

import { TIMEOUT_MS } from './swarm.js';

const PROGRAMS = ['/usr/bin/chromium', '/usr/bin/google-chrome'];
const AXE = createRequire(import.meta.url).resolve('axe-core/axe.min.js');

/** Starts the browser with additional options. */
export function launch(...options) {
  const args = ['--disable-dev-shm-usage', '--no-first-run', ...options];
  // Chromium refuses to run its sandbox as root.
  if (process.getuid() === 0) args.push('--no-sandbox');
  return puppeteer.launch({ executablePath: PROGRAMS.find((path) => existsSync(path)), defaultViewport: { width: 1280, height: 800 }, args });
}

/** Opens a page. A script that fails, or that the content security policy blocks, fails the test. */
export async function open(browser, url, { language = 'en' } = {}) {
  const page = await browser.newPage();
  page.setDefaultTimeout(TIMEOUT_MS);
  page.problems = [];
  page.on('pageerror', (error) => page.problems.push(error.message));
  page.on('console', (message) => { if (/Content Security Policy/i.test(message.text())) page.problems.push(message.text()); });
  await page.evaluateOnNewDocument((language) => { try { localStorage.setItem('enjambre-language', language); } catch { /* An error page. */ } }, language);
  await page.goto(url);
  return page;
}

/** Waits until a selector matches an element that contains this text. Returns it. */
export async function find(page, selector, text = '') {
  const handle = await page.waitForFunction(
    (selector, text) => [...document.querySelectorAll(selector)].find((node) => node.textContent.includes(text) && node.checkVisibility()), {}, selector, text);
  return handle.asElement();
}

/** Clicks a button or link by its label. */
export async function click(page, label, selector = 'button, a') {
  const handle = await page.waitForFunction(
    (selector, label) => [...document.querySelectorAll(selector)].find(
      (node) => (node.getAttribute('aria-label') ?? node.textContent).trim() === label && node.checkVisibility() && !node.disabled),
    {}, selector, label);
  await handle.asElement().click();
}

/** Types into a field. */
export async function type(page, selector, text) {
  const field = await page.waitForSelector(selector);
  await field.click({ count: 3 });
  await field.type(text);
}

/** Drops files of this machine on an element. */
export async function drop(page, selector, paths) {
  const { x, y } = await (await page.waitForSelector(selector)).clickablePoint();
  const data = { items: [], files: paths, dragOperationsMask: 1 };
  const session = await page.createCDPSession();
  for (const type of ['dragEnter', 'dragOver', 'drop']) await session.send('Input.dispatchDragEvent', { type, x, y, data });
  await session.detach();
}

/** Checks the accessibility of the page as it is. */
export async function checkAccessibility(page) {
  await page.evaluate(await readFile(AXE, 'utf8'));
  const { violations } = await page.evaluate(() => window.axe.run());
  const found = violations.map(({ id, nodes }) => `${id}: ${nodes.map(({ html }) => html).slice(0, 3).join(' ')}`);
  assert.deepEqual(found, []);
}

/** Waits until an asynchronous condition returns a value other than `undefined` and `false`. */
export async function eventually(what, condition) {
  const end = performance.now() + TIMEOUT_MS;
  for (;;) {
    const found = await condition();
    if (found !== undefined && found !== false) return found;
    if (performance.now() > end) throw new Error(`timeout: ${what}`);
    await new Promise((resolve) => { setTimeout(resolve, 50); });
  }
}
