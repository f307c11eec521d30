// The motion tab: what moves the portrait, and how; it builds the requests of animations and orbits.
import { endUpload } from "./api.js";
import { videoFromCamera } from "./camera.js";
import { commandPlace, copyCommand } from "./command.js";
import { byId, checkbox, chosen, field, make, radios, say, select } from "./dom.js";
import { submit } from "./jobs.js";
import { output, outputWords } from "./output.js";
import { portrait } from "./photo.js";
import { text } from "./strings.js";
import { openTab } from "./tabs.js";
import { trimBar } from "./trim.js";
import { uploadFile } from "./uploads.js";

const sheet = byId("motion");
let head;
let longest = 60; // seconds of a result
let own = null; // {answer, kind}: the motion that the user brought
const bars = new Map(); // trim bars by motion
const part = {}; // elements by name

export function startMotion(theHead, { motions, limits }) {
  head = theHead;
  longest = limits.result_seconds ?? longest;
  part.motions = make("div");
  part.own = make("div");
  part.trim = make("div");
  part.status = make("p", { class: "note", role: "status" });
  part.refusal = make("p", { class: "refusal", role: "alert" });
  part.summary = make("span");
  part.command = commandPlace();
  part.go = make("button", { type: "button", id: "animate", class: "primary wide", onclick: start });
  sheet.replaceChildren(
    radios(text.makeTitle, "make", [["animate", text.makeAnimate], ["orbit", text.makeOrbit]], "animate", refresh, "row"),
    part.motions,
    ...ownMotionButtons(),
    part.own,
    part.trim,
    followFields(),
    orbitFields(),
    (part.hold = checkbox(text.holdSliders, false)),
    (part.all = checkbox(text.allFaces, false)),
    make("p", { class: "note summary" }, part.summary, " ", make("button", { type: "button", class: "link", onclick: () => openTab("output", true) }, text.change)),
    part.refusal,
    make("div", { class: "go" }, part.go, make("button", { type: "button", onclick: copy }, text.copyCommand)),
    part.command,
  );
  sheet.addEventListener("input", outdate);
  part.bundled = motions;
  for (const { name, seconds } of motions) bars.set(name, trimBar(seconds, longest, null, outdate));
  listMotions("speech");
  head.addEventListener("change", () => head.moving || refresh());
}

function ownMotionButtons() {
  const accept = "video/*,.motion,.csv,.mkv,.gif";
  part.file = make("input", { type: "file", id: "motion-file", accept, "aria-label": text.chooseMotion, hidden: true });
  part.file.onchange = () => {
    const file = part.file.files[0];
    part.file.value = "";
    if (file) takeMotion(file, /\.(motion|csv)$/i.test(file.name) ? "motion" : "video");
  };
  const choose = make("button", { type: "button", onclick: () => part.file.click() }, text.chooseMotion);
  const record = make("button", { type: "button", onclick: recordVideo }, text.record);
  const note = make("p", { class: "note" }, text.chooseMotionNote);
  return [make("div", { class: "buttons" }, choose, record, part.file), note, part.status];
}

function followFields() {
  part.headMotion = select(text.headMotions, "steady");
  part.drivingFace = select(text.drivingFaces, "largest");
  part.faceField = field(text.drivingFace, part.drivingFace);
  const ways = [["relative", text.relative], ["absolute", text.absolute]];
  const headField = field(text.headMotion, part.headMotion);
  part.follow = make("div", {}, radios(text.wayTitle, "way", ways, "relative", refresh), headField, part.faceField);
  return part.follow;
}

function orbitFields() {
  const number = (value, min, max) => make("input", { type: "number", value, min, max });
  part.path = select(text.paths, "circle");
  [part.yaw, part.pitch, part.seconds] = [number(30, 0, 89), number(15, 0, 89), number(4, 1, 60)];
  const angles = [field(text.orbitYaw, part.yaw), field(text.orbitPitch, part.pitch), field(text.orbitSeconds, part.seconds)];
  part.orbit = make("div", {}, field(text.pathTitle, part.path), make("div", { class: "thirds" }, ...angles));
  return part.orbit;
}

/** The list of motions, with the user's own at its end. An orbit may keep the expression, and takes no video. */
function listMotions(value) {
  const orbit = chosen("make") === "orbit";
  const still = orbit ? [["none", text.ownExpression]] : [];
  const bundled = part.bundled.map(({ name, title, seconds }) => [name, text.motionTitles[name] ?? title, text.seconds(seconds)]);
  const brought = own && !(orbit && own.kind === "video") ? [["own", own.answer.name, text.seconds(own.answer.seconds)]] : [];
  part.motions.replaceChildren(radios(text.motionTitle, "motion", [...still, ...bundled, ...brought], value, refresh, "tiles"));
  part.listed = chosen("make");
  refresh();
}

/** Take a driving video or a motion file, from the button, the camera or a drop. */
export async function takeMotion(file, kind, name = file.name) {
  openTab("motion");
  const answer = await uploadFile(kind, file, part.status, part.refusal, name);
  if (!answer) return;
  if (own) forget();
  const video = kind === "video" ? make("video", { src: URL.createObjectURL(file), controls: true, playsinline: true, class: "driving", "aria-label": text.drivingVideo }) : null;
  video?.addEventListener("error", () => video.remove()); // the browser cannot play it; the filmstrip shows it
  bars.set("own", trimBar(answer.seconds, longest, answer.filmstrip, (at) => (outdate(), video && (video.currentTime = at))));
  const facts = [text.seconds(answer.seconds), answer.width && `${answer.width} × ${answer.height}`, kind === "video" && (answer.sound ? text.withSound : text.silent)];
  const remove = make("button", { type: "button", class: "small", onclick: () => (forget(), listMotions("speech")) }, text.removeMotion);
  const line = make("div", { class: "line" }, make("p", { class: "note" }, facts.filter(Boolean).join(" · ")), remove);
  part.own.replaceChildren(...[video, line].filter(Boolean));
  own = { answer, kind };
  if (kind === "video") document.querySelector('input[name="make"][value="animate"]').checked = true;
  listMotions("own");
}

function forget() {
  endUpload(own.answer.id).catch(() => {});
  part.own.replaceChildren();
  bars.delete("own");
  own = null;
}

async function recordVideo() {
  const recording = await videoFromCamera(longest);
  if (recording) takeMotion(recording.blob, "video", recording.name);
}

/** A command that is shown says what was chosen when it was copied. */
const outdate = () => (part.command.hidden = true);

export function refresh() {
  if (!part.bundled) return;
  outdate();
  const orbit = chosen("make") === "orbit";
  if (part.listed !== chosen("make")) return listMotions(orbit ? "none" : own ? "own" : "speech");
  const usesOwn = chosen("motion") === "own";
  part.orbit.hidden = !orbit;
  part.follow.hidden = orbit;
  part.own.hidden = !usesOwn;
  part.trim.hidden = orbit;
  if (!orbit) part.trim.replaceChildren(bars.get(chosen("motion")));
  part.faceField.hidden = !(usesOwn && own?.kind === "video");
  part.headMotion.disabled = chosen("way") === "absolute";
  part.hold.hidden = !Object.keys(head.now.scores).length;
  part.all.hidden = !(portrait()?.faces?.length > 1);
  part.go.textContent = orbit ? text.orbit : text.animate;
  say(part.summary, text.outputSummary(outputWords()));
}

const ticked = (box) => !box.hidden && box.querySelector("input").checked;

/** The request of the tab, as the server takes it. */
function request() {
  const { portrait: id, face } = head.now;
  const common = { portrait: id, face: ticked(part.all) ? "all" : face, ...output(), scores: ticked(part.hold) ? head.now.scores : {} };
  const motion = chosen("motion");
  const mover = motion === "none" ? {} : motion !== "own" ? { motion } : { [own.kind === "video" ? "driving" : "motion"]: own.answer.id };
  if (chosen("make") === "orbit") {
    const numbers = { yaw: part.yaw.valueAsNumber, pitch: part.pitch.valueAsNumber, seconds: part.seconds.valueAsNumber };
    return { verb: "orbit", ...common, ...mover, path: part.path.value, ...numbers };
  }
  const relative = chosen("way") === "relative";
  const made = { verb: "animate", ...common, ...mover, relative, head_motion: relative ? part.headMotion.value : "steady", sheet: true };
  const { span, whole } = bars.get(motion);
  const [start, end] = span.map((seconds) => Math.round(100 * seconds) / 100);
  const trimmed = { ...made, start, seconds: span[1] < whole ? Math.round(100 * (end - start)) / 100 : null };
  return made.driving ? { ...trimmed, driving_face: part.drivingFace.value } : trimmed;
}

function start() {
  const made = request();
  const motion = document.querySelector('input[name="motion"]:checked + span').firstChild.textContent;
  const title =
    made.verb === "orbit"
      ? text.jobTitles.orbit(text.paths[made.path], portrait().name)
      : text.jobTitles.animate(motion, portrait().name);
  submit(made, title, part.go, part.status, part.refusal);
}

const copy = () => copyCommand(request(), part.command, part.refusal);
