// Requests to the API of this node, its events, and work that stops while the page is hidden.

const TOKEN = 'enjambre-token';
const RETRY_MS = [1000, 2000, 5000, 10000];

/** An error response (RFC 9457), or `status` 0 if there was no response. */
export class Problem extends Error {
  constructor(status, detail) {
    super(detail);
    this.status = status;
  }
}

/** The headers of a request. The token is in this tab only, and never in a URL. */
export function headers(more = {}) {
  const token = sessionStorage.getItem(TOKEN);
  return token === null ? more : { ...more, Authorization: `Bearer ${token}` };
}

export const setToken = (token) => sessionStorage.setItem(TOKEN, token);

/** Called when a request needs a token. @type {() => void} */
let needToken = () => {};
export const onNeedToken = (callback) => { needToken = callback; };

async function send(method, path, { body, signal, accept = 'application/json', more = {} } = {}) {
  let response;
  try {
    response = await fetch(`/api/v1${path}`, {
      method, signal, cache: 'no-store', credentials: 'omit', redirect: 'error',
      headers: headers({ Accept: accept, ...(body === undefined ? {} : { 'Content-Type': 'application/json' }), ...more }),
      body: body === undefined ? undefined : JSON.stringify(body),
    });
  } catch (error) {
    if (signal?.aborted) throw error;
    throw new Problem(0, error.message);
  }
  if (response.ok) return response;
  if (response.status === 401) needToken();
  throw await problem(response);
}

async function problem(response) {
  const body = await response.json().catch(() => ({}));
  return new Problem(response.status, body.detail ?? body.title ?? `HTTP ${response.status}`);
}

/**
 * Sends a request. Returns the JSON of the response, if any.
 * @param {string} method @param {string} path below `/api/v1`
 * @param {{body?: any, signal?: AbortSignal}} [options]
 */
export async function request(method, path, options) {
  const response = await send(method, path, options);
  const text = await response.text();
  return text === '' ? null : JSON.parse(text);
}

export const segment = encodeURIComponent;

/** The URL of a file at the gateway. */
export const fileUrl = (query) => `/files/${segment(query)}`;

/**
 * Uploads a file with progress, which `fetch` does not report.
 * @param {File} file @param {(share: number) => void} progress @param {AbortSignal} signal
 */
export function upload(file, progress, signal) {
  return new Promise((resolve, reject) => {
    const sent = new XMLHttpRequest();
    sent.open('PUT', fileUrl(file.name));
    for (const [name, value] of Object.entries(headers({ Accept: 'application/json' }))) sent.setRequestHeader(name, value);
    sent.upload.addEventListener('progress', (event) => progress(event.total === 0 ? 1 : event.loaded / event.total));
    sent.addEventListener('load', () => {
      let body = {};
      try { body = JSON.parse(sent.responseText); } catch { /* The status tells enough. */ }
      if (sent.status === 401) needToken();
      if (sent.status >= 200 && sent.status < 300) resolve(body);
      else reject(new Problem(sent.status, body.detail ?? `HTTP ${sent.status}`));
    });
    sent.addEventListener('error', () => reject(new Problem(0, 'connection closed')));
    sent.addEventListener('abort', () => reject(new Problem(0, 'cancelled')));
    signal.addEventListener('abort', () => sent.abort());
    sent.send(file);
  });
}

/** Runs `start` while the page is visible; `start` returns what stops it. */
export function whileVisible(start) {
  let stop = null;
  const change = () => {
    if (document.hidden === (stop === null)) return;
    if (stop === null) stop = start();
    else {
      stop();
      stop = null;
    }
  };
  document.addEventListener('visibilitychange', change);
  change();
  return () => {
    document.removeEventListener('visibilitychange', change);
    stop?.();
    stop = null;
  };
}

/** Runs a task now and then every `ms`, while the page is visible. Returns what stops it. */
export function every(ms, task) {
  return whileVisible(() => {
    task();
    const timer = setInterval(task, ms);
    return () => clearInterval(timer);
  });
}

/**
 * Reads the events of the node while the page is visible, and connects again after a failure. `EventSource` cannot send a
 * token, so the stream is read with `fetch`.
 * @param {{event: (name: string, data: any) => void, open: () => void, lost: (retry: number | null, error: Error) => void}} on
 */
export function subscribe(on) {
  let last = null;
  whileVisible(() => {
    const stop = new AbortController();
    let timer;
    let failures = 0;
    const connect = async () => {
      try {
        const more = last === null ? {} : { 'Last-Event-ID': last };
        const response = await send('GET', '/events', { signal: stop.signal, accept: 'text/event-stream', more });
        failures = 0;
        on.open();
        for await (const { id, name, data } of events(response.body)) {
          last = id ?? last;
          on.event(name, data);
        }
        throw new Problem(0, 'end of the stream');
      } catch (error) {
        if (stop.signal.aborted) return;
        if (error.status === 401) return;
        const wait = RETRY_MS[Math.min(failures, RETRY_MS.length - 1)];
        failures += 1;
        on.lost(failures > 1 ? wait : null, error);
        timer = setTimeout(connect, wait);
      }
    };
    connect();
    return () => {
      stop.abort();
      clearTimeout(timer);
    };
  });
}

/** Parses a stream of server-sent events. @param {ReadableStream<Uint8Array>} body */
async function* events(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let text = '';
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      text += value;
      const blocks = text.split(/\r?\n\r?\n/);
      text = blocks.pop();
      for (const block of blocks) {
        const event = { id: null, name: 'message', data: '' };
        for (const line of block.split(/\r?\n/)) {
          const [, field, content] = /^([a-z]+): ?(.*)$/.exec(line) ?? [];
          if (field === 'data') event.data += content;
          else if (field === 'event') event.name = content;
          else if (field === 'id') event.id = content;
        }
        if (event.data !== '') yield { ...event, data: JSON.parse(event.data) };
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}
