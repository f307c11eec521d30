// The head under the hand: pointer, two fingers, wheel and keys become angles; pictures arrive on the canvas.
import { byId, calm, say } from "./dom.js";
import { text } from "./strings.js";

const DEGREES_PER_WIDTH = 75;
const DEGREES_PER_KEY = 3;
const DEGREES_PER_NOTCH = 3;
const GLANCE = { yaw: 18, pitch: 10 };
const SETTLE_MS = 250;

const stage = byId("stage");
const canvas = byId("picture");
const wide = matchMedia("(min-width: 900px), (min-width: 640px) and (orientation: landscape)"); // as in page.css

let head;
let limits;
let glancing = true; // until the first gesture, the head follows the mouse
const fingers = new Map();

export function startStage(theHead, angles) {
  head = theHead;
  limits = Object.fromEntries(angles.map(({ name, min, max }) => [name, [min, max]]));
  stage.addEventListener("pointerdown", down);
  stage.addEventListener("pointermove", move);
  for (const name of ["pointerup", "pointercancel"]) stage.addEventListener(name, up);
  stage.addEventListener("pointerleave", leave);
  stage.addEventListener("wheel", wheel, { passive: false });
  stage.addEventListener("dblclick", () => head.reset());
  stage.addEventListener("keydown", key);
  stage.addEventListener("keyup", () => head.settle());
  stage.addEventListener("blur", () => fingers.size || head.settle());
  hint();
}

const clamp = (name, value) => Math.min(limits[name][1], Math.max(limits[name][0], value));
const rounded = (value) => Math.round(10 * value) / 10;

function turn({ yaw = 0, pitch = 0, roll = 0 }) {
  stopGlancing();
  const { now } = head;
  head.change(
    {
      yaw: rounded(clamp("yaw", now.yaw + yaw)),
      pitch: rounded(clamp("pitch", now.pitch + pitch)),
      roll: rounded(clamp("roll", now.roll + roll)),
    },
    true,
  );
}

let grabbed = null; // where the gesture began: the place of the fingers and the angles of then

/** Middle of the fingers, and the direction from one to the other in degrees. */
function grip() {
  const places = [...fingers.values()];
  const [a, b] = [places[0], places.at(-1)];
  return { x: (a.x + b.x) / 2, y: (a.y + b.y) / 2, twist: (180 / Math.PI) * Math.atan2(b.y - a.y, b.x - a.x) };
}

function grab() {
  grabbed = fingers.size ? { ...grip(), from: { ...head.now } } : null;
}

function down(event) {
  if (event.button) return;
  stopGlancing();
  stage.setPointerCapture(event.pointerId);
  fingers.set(event.pointerId, { x: event.clientX, y: event.clientY });
  grab();
  stage.classList.add("held");
}

function move(event) {
  if (!fingers.has(event.pointerId)) return glance(event);
  fingers.set(event.pointerId, { x: event.clientX, y: event.clientY });
  const here = grip();
  const scale = DEGREES_PER_WIDTH / stage.clientWidth;
  const { from } = grabbed;
  const angles = {
    yaw: clamp("yaw", from.yaw + scale * (here.x - grabbed.x)),
    pitch: clamp("pitch", from.pitch - scale * (here.y - grabbed.y)),
  };
  if (fingers.size > 1) {
    const twist = ((here.twist - grabbed.twist + 540) % 360) - 180;
    angles.roll = clamp("roll", from.roll + twist);
  }
  for (const name in angles) angles[name] = rounded(angles[name]);
  head.change(angles, true);
}

function up(event) {
  if (!fingers.delete(event.pointerId)) return;
  grab();
  if (fingers.size) return;
  stage.classList.remove("held");
  head.settle();
}

let settling = 0;

function settleSoon(settle) {
  clearTimeout(settling);
  settling = setTimeout(settle, SETTLE_MS);
}

function wheel(event) {
  if (!wide.matches && document.activeElement !== stage) return; // there the wheel scrolls the page
  event.preventDefault();
  const notches = event.deltaMode ? event.deltaY / 3 : event.deltaY / 100;
  turn({ roll: DEGREES_PER_NOTCH * Math.max(-2, Math.min(2, notches)) });
  settleSoon(() => fingers.size || head.settle());
}

function key(event) {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const step = DEGREES_PER_KEY;
  const turns = event.shiftKey
    ? { ArrowLeft: { roll: -step }, ArrowRight: { roll: step } }
    : { ArrowLeft: { yaw: -step }, ArrowRight: { yaw: step }, ArrowUp: { pitch: step }, ArrowDown: { pitch: -step } };
  if (event.key === "Home") head.reset();
  else if (turns[event.key]) turn(turns[event.key]);
  else return;
  event.preventDefault();
}

/** Before the first gesture the head looks toward the mouse. */
function glance(event) {
  if (!glancing || event.pointerType !== "mouse" || calm.matches) return;
  const box = stage.getBoundingClientRect();
  const across = (2 * (event.clientX - box.left)) / box.width - 1;
  const along = (2 * (event.clientY - box.top)) / box.height - 1;
  head.glance({ yaw: rounded(GLANCE.yaw * across), pitch: rounded(-GLANCE.pitch * along) }, true);
  settleSoon(() => glancing && head.glance({}, false));
}

function leave() {
  if (glancing && !calm.matches) head.glance({ yaw: 0, pitch: 0 }, false);
}

export function stopGlancing() {
  if (!glancing) return;
  glancing = false;
  clearTimeout(settling);
  stage.classList.add("known");
  hint();
}

function hint() {
  const touch = matchMedia("(pointer: coarse)").matches;
  const first = touch ? text.stageHintTouch : calm.matches ? text.stageHint : text.followHint;
  say(byId("stage-hint"), glancing ? first : text.stageKeys);
}

/** Show a picture; the stage's data tell what it shows. */
export async function show(blob, request) {
  const bitmap = await createImageBitmap(blob);
  if (Number(stage.dataset.n ?? 0) > request.n) return; // a newer one was faster
  if (canvas.width !== bitmap.width || canvas.height !== bitmap.height) {
    canvas.width = bitmap.width;
    canvas.height = bitmap.height;
  }
  canvas.getContext("2d").drawImage(bitmap, 0, 0);
  if (request.quality === "full") surround(bitmap);
  bitmap.close();
  const { n, quality, yaw, pitch, roll, portrait, face } = request;
  Object.assign(stage.dataset, { n, quality, yaw, pitch, roll, portrait, face });
  stage.classList.add("shown");
}

/** Fill a stage that is wider than the picture with its blurred colours. */
function surround(bitmap) {
  const context = byId("around").getContext("2d");
  context.filter = "blur(3px)";
  context.drawImage(bitmap, -6, -6, 44, 44);
}

/** What the stage waits for, written over the picture; nothing when it waits for nothing. */
export function waiting(sentence = "") {
  say(byId("stage-wait"), sentence);
}
