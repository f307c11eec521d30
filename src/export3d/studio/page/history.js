// The results tab: a card for each job while it runs and after, with its downloads.
import { byId, make, say, sizeText } from "./dom.js";
import { cancel, ended, remove, stageWords } from "./jobs.js";
import { text } from "./strings.js";
import { openTab } from "./tabs.js";
import { closeViewer, view, viewed } from "./viewer.js";
import { verifyPart } from "./verify.js";

const cards = new Map(); // by the job's id
const list = make("div", { class: "cards" });
const empty = make("p", { class: "note empty" }, text.resultsEmpty);

export function startHistory() {
  byId("results").replaceChildren(empty, list, verifyPart());
}

/** Called by jobs.js at each change of a job. */
export function showJob(job, begun = false) {
  if (begun) {
    cards.set(job.id, card(job));
    list.prepend(cards.get(job.id).root);
    if (job.verb !== "edit") {
      openTab("results");
      cards.get(job.id).root.focus();
    }
  }
  const made = cards.get(job.id);
  if (!made) return;
  refresh(made, job);
  if (job.state === "done" && !made.finished) finish(made, job);
  count();
}

function count() {
  empty.hidden = cards.size > 0;
  say(byId("results-count"), cards.size ? String(cards.size) : "");
}

function card(job) {
  const made = { cancel: make("button", { type: "button", class: "small", onclick: () => cancel(job) }, text.cancel) };
  made.preview = make("img", { class: "preview", alt: text.previewAlt, hidden: true });
  made.bar = make("progress", { max: 1, "aria-label": job.title });
  made.words = make("p", { class: "stage-words" });
  made.left = make("p", { class: "note" });
  made.refusal = make("p", { class: "refusal", role: "alert" });
  made.buttons = make("div", { class: "buttons" }, made.cancel);
  const heading = make("h3", {}, job.title);
  made.root = make("article", { class: "card", tabindex: -1, "data-job": job.id }, made.preview, heading, made.words, made.bar, made.left, made.refusal, made.buttons);
  return made;
}

function refresh(made, job) {
  const { state, done, total, left_s: left, lost, preview } = job;
  made.root.dataset.state = state;
  const failed = state === "failed";
  say(made.words, failed ? text.failed : stageWords(job));
  say(made.refusal, failed ? stageWords(job) : (lost ?? ""));
  made.bar.hidden = ended(job);
  if (state === "running" && total) made.bar.value = done / total;
  else made.bar.removeAttribute("value");
  const facts = state !== "running" ? [] : [total && text.frameCount(done, total), left != null && text.left(left)];
  say(made.left, facts.filter(Boolean).join(" · "));
  if (preview && made.seen !== preview && !ended(job)) {
    made.seen = preview;
    made.preview.src = `/api/jobs/${job.id}/preview?n=${preview}`;
    made.preview.hidden = false;
  }
  if (failed || state === "cancelled") {
    made.preview.hidden = true;
    made.buttons.replaceChildren(removal(job));
  }
}

function finish(made, job) {
  made.finished = true;
  const main = job.files.find(({ name }) => /\.(mp4|png)$/.test(name));
  const picture = job.files.find(({ name }) => name === "poster.png") ?? job.files.find(({ type }) => type.startsWith("image/"));
  if (picture) {
    made.preview.src = picture.url;
    made.preview.alt = text.resultAlt(job.title);
    made.preview.hidden = false;
  }
  const show = make("button", { type: "button", class: "small", onclick: () => view(job.id, main, job.title) }, text.show);
  const downloads = job.files.map(({ name, url, bytes }) => {
    const kind = text.download[name] ?? name;
    return make("a", { class: "button small", href: url, download: name, "aria-label": text.downloadLabel(kind, job.title), title: sizeText(bytes) }, kind);
  });
  made.buttons.replaceChildren(show, ...downloads, removal(job));
  if (job.verb === "edit") downloads[0].click(); // "Save image" saves
  else if (!byId("results").hidden && !viewed()) view(job.id, main, job.title); // whoever turns the head goes on
}

function removal(job) {
  const gone = () => {
    remove(job);
    if (viewed() === job.id) closeViewer();
    cards.get(job.id).root.remove();
    cards.delete(job.id);
    count();
    byId("tab-results").focus();
  };
  return make("button", { type: "button", class: "small", onclick: gone }, text.remove);
}
