// The server's verbs. Every refusal arrives as one sentence and leaves as a `Refusal`.
import { text } from "./strings.js";

/** This tab, for limits per client. */
export const CLIENT = crypto.getRandomValues(new Uint32Array(4)).join("-");
const HEADERS = { "X-Export3D-Client": CLIENT };

export class Refusal extends Error {
  constructor(sentence, status = 0, after = 0) {
    super(sentence);
    this.status = status; // 0: no answer at all
    this.after = after; // seconds, from Retry-After
  }
  /** The same request may succeed later: a queue that is full, a server that is starting or away. */
  get passing() {
    return [0, 429, 503].includes(this.status);
  }
}

function refusal(status, body, after) {
  let sentence;
  try {
    sentence = JSON.parse(body).error;
  } catch {
    sentence = null;
  }
  if (status === 401) sentence ||= text.needsToken;
  return new Refusal(sentence || text.unclear(status), status, Number(after) || 0);
}

async function call(path, options = {}) {
  let answer;
  try {
    answer = await fetch(path, { ...options, headers: { ...HEADERS, ...options.headers } });
  } catch (problem) {
    if (problem.name === "AbortError") throw problem;
    throw new Refusal(text.noAnswer);
  }
  if (!answer.ok) throw refusal(answer.status, await answer.text(), answer.headers.get("Retry-After"));
  return answer.status === 204 ? null : answer.json();
}

const post = (path, body, signal) =>
  call(path, { method: "POST", body: JSON.stringify(body), headers: { "Content-Type": "application/json" }, signal });

export const info = () => call("/api/info");
export const startJob = (request, signal) => post("/api/jobs", request, signal);
export const job = (id) => call(`/api/jobs/${id}`);
export const endJob = (id) => call(`/api/jobs/${id}`, { method: "DELETE", keepalive: true });
export const endUpload = (id) => call(`/api/uploads/${id}`, { method: "DELETE", keepalive: true });
export const command = async (request) => (await post("/api/command", request)).command;

/** Send a file's bytes; `watch` is called with the part that has left. */
function send(path, file, watch) {
  return new Promise((resolve, reject) => {
    const request = new XMLHttpRequest();
    request.open("POST", path);
    request.setRequestHeader("X-Export3D-Client", CLIENT);
    request.setRequestHeader("Content-Type", "application/octet-stream");
    request.upload.onprogress = (event) => event.lengthComputable && watch(event.loaded / event.total);
    request.onerror = () => reject(new Refusal(text.noAnswer));
    request.onload = () =>
      request.status < 300
        ? resolve(JSON.parse(request.responseText))
        : reject(refusal(request.status, request.responseText, request.getResponseHeader("Retry-After")));
    request.send(file);
  });
}

export const upload = (kind, file, name, watch) =>
  send(`/api/uploads?kind=${kind}&name=${encodeURIComponent(name)}`, file, watch);
export const verify = (file, watch) => send(`/api/verify?name=${encodeURIComponent(file.name)}`, file, watch);

export const pause = (seconds, signal) =>
  new Promise((resolve) => {
    const timer = setTimeout(resolve, 1000 * seconds);
    signal?.addEventListener("abort", () => (clearTimeout(timer), resolve()), { once: true });
  });

/** Do `action` until it succeeds or is refused for good; `wait(refusal, seconds)` is told before each new attempt. */
export async function persist(action, wait, signal, attempts = Infinity) {
  for (let attempt = 1; ; attempt++) {
    try {
      return await action();
    } catch (problem) {
      if (!(problem instanceof Refusal) || !problem.passing || attempt >= attempts) throw problem;
      const seconds = problem.after || Math.min(10, 1 + attempt);
      wait(problem, seconds);
      await pause(seconds, signal);
      if (signal?.aborted) throw problem;
    }
  }
}
