// Nodes under test: a directory, a configuration file and a process each.

import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdir, mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join, resolve } from 'node:path';
import { createInterface } from 'node:readline';

/** The program under test. */
const PROGRAM = process.env.ENJAMBRE_BINARY ?? resolve(import.meta.dirname, '../../target/debug/enjambre');
/** Maximum time for anything; far more than needed. */
export const TIMEOUT_MS = 30_000;

/** A temporary directory with the nodes of a test. All processes end with the test. */
export class Swarm {
  nodes = [];

  static async create() {
    const swarm = new Swarm();
    swarm.folder = await mkdtemp(join(tmpdir(), 'enj-browser-'));
    return swarm;
  }

  /** Starts a tracker with additional `KEY=VALUE` settings. */
  tracker(name, settings = []) {
    const listen = settings.some((setting) => setting.includes('invite')) ? 'zmqs' : 'zmq';
    return this.start('tracker', name, `[tracker]\ndata_dir = "data"\n[transport]\nlisten = ["${listen}://127.0.0.1:0"]\n`, settings);
  }

  /** Starts a peer. */
  peer(name, tracker, settings = []) {
    return this.start('peer', name, `[peer]\ndata_dir = "data"\ntrackers = ["${tracker.endpoint}"]\n[transport]\nlisten = ["tcp://127.0.0.1:0"]\n`, settings);
  }

  async start(kind, name, config, settings) {
    const node = new Node(kind, join(this.folder, name), settings);
    this.nodes.push(node);
    await mkdir(node.folder);
    await writeFile(node.config, config);
    await node.start();
    return node;
  }

  /** Starts a peer that joins the invite-only swarm of a tracker. */
  async member(name, tracker, settings = []) {
    const node = new Node('peer', join(this.folder, name), settings);
    this.nodes.push(node);
    await mkdir(node.folder);
    const invitation = (await tracker.run('invite')).trim();
    await node.run('join', invitation, '--listen', 'tcps://127.0.0.1:0');
    await node.start();
    return node;
  }

  /** A path for a file. */
  path(name) {
    return join(this.folder, name);
  }

  /** Writes a file with content that differs between names. */
  async file(name, size) {
    const path = this.path(name);
    const content = Buffer.alloc(size);
    let state = [...name].reduce((sum, c) => (sum * 31 + c.codePointAt(0)) >>> 0, 7);
    for (let at = 0; at + 4 <= size; at += 4) {
      state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
      content.writeUInt32LE(state, at);
    }
    await writeFile(path, content);
    return path;
  }

  async close() {
    await Promise.all(this.nodes.map((node) => node.stop()));
    await rm(this.folder, { recursive: true, force: true });
  }
}

class Node {
  constructor(kind, folder, settings) {
    this.kind = kind;
    this.folder = folder;
    this.config = join(folder, 'enjambre.toml');
    this.settings = ['http.listen=["127.0.0.1:0"]', ...settings];
  }

  /** Starts the process, and waits for its addresses. */
  async start() {
    const options = this.settings.flatMap((setting) => ['--set', setting]);
    this.process = spawn(PROGRAM, [this.kind, '--config', this.config, ...options], { cwd: this.folder, stdio: ['ignore', 'pipe', 'pipe'] });
    this.exited = once(this.process, 'exit');
    this.log = '';
    this.process.stderr.on('data', (text) => { this.log += text; });
    for await (const line of createInterface({ input: this.process.stdout })) {
      const [, endpoint] = / listening on (\S+)$/.exec(line) ?? [];
      const [, url] = /^HTTP at (\S+)$/.exec(line) ?? [];
      this.endpoint ??= endpoint;
      if (url) {
        this.url = url;
        return;
      }
    }
    throw new Error(`${this.kind} did not start: ${this.log}`);
  }

  async stop() {
    if (this.process && this.process.exitCode === null && this.process.signalCode === null) {
      this.process.kill('SIGTERM');
      await this.exited;
    }
  }

  /** Runs a command with the configuration of the node. Returns its output. */
  async run(...args) {
    return run([args[0], '--config', this.config, ...args.slice(1)], this.folder);
  }

  /** Sends a request to the API. */
  async api(method, path, body) {
    const response = await fetch(`${this.url}api/v1${path}`, {
      method, body: body && JSON.stringify(body), headers: body ? { 'Content-Type': 'application/json' } : {},
    });
    if (!response.ok) throw new Error(`${method} ${path}: ${response.status} ${await response.text()}`);
    const text = await response.text();
    return text && JSON.parse(text);
  }

  async token() {
    return (await readFile(join(this.folder, 'data', 'http-token'), 'utf8')).trim();
  }
}

/** Runs the program. Fails unless it succeeds. */
export async function run(args, cwd) {
  const child = spawn(PROGRAM, args, { cwd, stdio: ['ignore', 'pipe', 'pipe'] });
  let [output, log] = ['', ''];
  child.stdout.on('data', (text) => { output += text; });
  child.stderr.on('data', (text) => { log += text; });
  const [code] = await once(child, 'close');
  if (code !== 0) throw new Error(`enjambre ${args.join(' ')}: status ${code}: ${log}`);
  return output;
}
