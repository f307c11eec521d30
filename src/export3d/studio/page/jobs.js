// Jobs: sent, watched until they end, cancelled.
import * as api from "./api.js";
import { announce, make, say } from "./dom.js";
import { text } from "./strings.js";

const EVERY_S = 0.5;
const ENDED = ["done", "failed", "cancelled"];

const jobs = new Map(); // by id
let told = () => {};
let watching = false;

/** `changed(job)` is called whenever a job begins, moves on or ends. */
export function startJobs(changed) {
  told = changed;
  addEventListener("pagehide", (event) => {
    if (!event.persisted) for (const id of jobs.keys()) api.endJob(id).catch(() => {});
  });
}

export const ended = ({ state }) => ENDED.includes(state);

/** Send a request from `button`. While the queue is full or the server away it is tried again, until the user stops. */
export async function submit(request, title, button, status, refusal) {
  say(refusal);
  const left = new AbortController();
  const stop = make("button", { type: "button", class: "small", onclick: () => left.abort() }, text.stop);
  const words = make("span", {}, text.sending);
  button.disabled = true;
  status.replaceChildren(words);
  const wait = (problem, seconds) => {
    words.textContent = text.again(problem.message, seconds);
    if (!stop.isConnected) status.append(" ", stop);
  };
  try {
    const answer = await api.persist(() => api.startJob(request, left.signal), wait, left.signal);
    const job = { title, request, ...answer };
    jobs.set(job.id, job);
    announce(`${title}: ${stageWords(job)}`);
    told(job, true);
    watch();
  } catch (problem) {
    if (!left.signal.aborted) say(refusal, problem.message);
  } finally {
    button.disabled = false;
    status.replaceChildren();
  }
}

/** What a job is doing, in words. */
export function stageWords({ state, position, stage, error }) {
  if (state === "queued") return text.queued(position);
  if (state === "running") return text.stages[stage] ?? text.running;
  return state === "failed" ? error || text.failed : text[state];
}

async function watch() {
  if (watching) return;
  watching = true;
  for (let open; (open = [...jobs.values()].filter((job) => !ended(job))).length; await api.pause(EVERY_S)) {
    for (const job of open) await look(job);
  }
  watching = false;
}

async function look(job) {
  const before = stageWords(job);
  try {
    Object.assign(job, await api.job(job.id), { lost: null });
  } catch (problem) {
    if (problem.passing) job.lost = text.gone;
    else Object.assign(job, { state: "failed", error: problem.status === 404 ? text.jobGone : problem.message, lost: null });
  }
  if (!jobs.has(job.id)) return; // removed meanwhile
  if (stageWords(job) !== before) announce(`${job.title}: ${stageWords(job)}`);
  told(job);
}

export async function cancel(job) {
  try {
    await api.endJob(job.id);
    await look(job);
  } catch (problem) {
    job.lost = problem.message;
    told(job);
  }
}

/** Take an ended job off the server. */
export function remove(job) {
  jobs.delete(job.id);
  api.endJob(job.id).catch(() => {});
}
