// A result on the stage, in place of the head.
import { byId, calm } from "./dom.js";
import { text } from "./strings.js";

const viewer = byId("viewer");
const video = byId("viewer-video");
const image = byId("viewer-image");
let shown = null;

export function startViewer() {
  byId("viewer-close").onclick = () => {
    closeViewer();
    byId("stage").focus({ preventScroll: true });
  };
  viewer.addEventListener("keydown", ({ key }) => key === "Escape" && byId("viewer-close").click());
}

/** The id of the job whose result is shown, or null. */
export const viewed = () => shown;

export function view(id, { url, type }, title) {
  const moving = type.startsWith("video/");
  shown = id;
  video.hidden = !moving;
  image.hidden = moving;
  const element = moving ? video : image;
  element.src = url;
  element.setAttribute(moving ? "aria-label" : "alt", text.resultAlt(title));
  viewer.hidden = false;
  viewer.scrollIntoView({ block: "nearest" });
  byId("stage").inert = true;
  if (moving && !calm.matches) video.play().catch(() => {}); // the browser may ask for a click first
}

export function closeViewer() {
  shown = null;
  video.pause();
  video.removeAttribute("src");
  viewer.hidden = true;
  byId("stage").inert = false;
}
