// Starts the page: asks the server what it can do, then joins the parts.
import * as api from "./api.js";
import { copyCommand, stillPlace } from "./command.js";
import { byId, fillStrings, say } from "./dom.js";
import { showJob, startHistory } from "./history.js";
import { startJobs, submit } from "./jobs.js";
import { refresh as refreshMotion, startMotion, takeMotion } from "./motion.js";
import { output, startOutput } from "./output.js";
import { learn, portrait, startPhoto } from "./photo.js";
import { HeadSocket } from "./socket.js";
import { startSliders } from "./sliders.js";
import { show, startStage, stopGlancing, waiting } from "./stage.js";
import { Head } from "./state.js";
import { text } from "./strings.js";
import { startTabs } from "./tabs.js";
import { startUploads } from "./uploads.js";
import { closeViewer, startViewer } from "./viewer.js";

const head = new Head();

function connection(state) {
  byId("connection").dataset.state = state;
  say(byId("connection"), text[state]);
}

/** What the server can do; asked again until it has started. */
async function ready() {
  for (;;) {
    const info = await api.persist(api.info, ({ status }) => connection(status ? "starting" : "gone"));
    if (info.ready) return info;
    connection(info.elsewhere ? "away" : "starting");
    await api.pause(0.5);
  }
}

function startSocket() {
  const socket = new HeadSocket(`${location.protocol === "https:" ? "wss" : "ws"}://${location.host}/api/head?client=${api.CLIENT}`);
  const ask = (live) => socket.ask({ ...head.now, quality: live ? "fast" : "full", label: output().label });
  const refusal = byId("head-error");
  let shown = null; // the portrait whose picture the stage has
  head.addEventListener("change", ({ detail }) => {
    if (detail.live === false && head.now.portrait !== shown) waiting(text.firstPicture);
    ask(detail.live);
  });
  socket.addEventListener("picture", ({ detail }) => {
    say(refusal);
    waiting();
    shown = detail.request.portrait;
    if (detail.answer.values) learn(detail.request, detail.answer.values);
    show(detail.blob, detail.request);
  });
  socket.addEventListener("refused", ({ detail }) => {
    waiting();
    say(refusal, detail.error);
  });
  socket.addEventListener("state", ({ detail }) => {
    connection(detail.open ? "connected" : "lost");
    if (detail.open && !shown) waiting(text.firstPicture);
    // A browser does not tell why a WebSocket was refused: a studio that was started again has another token.
    if (!detail.open) api.info().catch((problem) => problem.passing || say(refusal, problem.message));
  });
  ask(false);
}

function startButtons() {
  byId("undo").onclick = () => head.undo();
  byId("redo").onclick = () => head.redo();
  byId("reset").onclick = () => head.reset();
  head.addEventListener("change", () => {
    byId("undo").disabled = !head.canUndo;
    byId("redo").disabled = !head.canRedo;
    byId("reset").disabled = !head.canReset;
    if (!head.moving) byId("still-shown").hidden = true;
  });
  addEventListener("keydown", (event) => {
    if (!(event.ctrlKey || event.metaKey) || event.altKey || /^(text|number)/.test(event.target.type ?? "")) return;
    const key = event.key.toLowerCase();
    if (key === "y" || (key === "z" && event.shiftKey)) head.redo();
    else if (key === "z") head.undo();
    else return;
    stopGlancing();
    event.preventDefault();
  });
  const still = () => ({ verb: "edit", ...head.now, ...output() });
  byId("save-still").onclick = ({ currentTarget }) =>
    submit(still(), text.jobTitles.edit(portrait().name), currentTarget, byId("photo-status"), byId("still-error"));
  byId("still-command").onclick = () => copyCommand(still(), stillPlace(), byId("still-error"));
}

async function start() {
  fillStrings();
  startTabs();
  connection("connecting");
  waiting(text.connecting);
  const info = await ready().catch((problem) => {
    waiting();
    connection("");
    say(byId("head-error"), problem.message);
  });
  if (!info) return;
  startUploads(info.limits);
  startJobs(showJob);
  startStage(head, info.controls.head);
  startViewer();
  startSliders(head, info.controls);
  startPhoto(head, info.bundled, takeMotion);
  startOutput(info.policy, refreshMotion);
  startMotion(head, info);
  startHistory();
  startButtons();
  head.addEventListener("change", closeOnChange);
  startSocket();
}

/** Turning the head again brings it back to the stage. */
function closeOnChange() {
  if (!byId("viewer").hidden) closeViewer();
}

start();
