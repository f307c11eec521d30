// The portrait: by button, drop, paste or webcam; and which of its faces turns.
import { photoFromCamera } from "./camera.js";
import { announce, byId, make, say } from "./dom.js";
import { setOwnScores } from "./sliders.js";
import { stopGlancing } from "./stage.js";
import { text } from "./strings.js";
import { kindOf, uploadFile } from "./uploads.js";

const portraits = new Map(); // by id: {id, name, width, height, faces, warnings, picture}
const scores = new Map(); // tracked scores by portrait and face
let head;

export function startPhoto(theHead, bundled, takeMotion) {
  head = theHead;
  portraits.set("bundled", { ...bundled, id: "bundled", name: text.bundledName });
  byId("photo-button").onclick = () => byId("photo-file").click();
  byId("photo-file").onchange = ({ target }) => {
    if (target.files[0]) usePhoto(target.files[0]);
    target.value = "";
  };
  byId("photo-camera").onclick = async () => {
    const photo = await photoFromCamera();
    if (photo) usePhoto(photo, text.cameraPhotoName);
  };
  addEventListener("paste", ({ clipboardData }) => {
    const file = [...(clipboardData?.files ?? [])].find((each) => each.type.startsWith("image/"));
    if (file) usePhoto(file);
  });
  startDrop(takeMotion);
  let key = faceKey(head.now);
  head.addEventListener("change", () => {
    if (key === faceKey(head.now)) return;
    key = faceKey(head.now);
    showFaces();
    showWarnings();
    showOwnScores();
  });
}

/** The portrait on the stage. */
export const portrait = () => portraits.get(head.now.portrait);

const faceKey = ({ portrait: id, face }) => `${id} ${face}`;

/** Tracked scores, which arrive with the first picture of a portrait or face. */
export function learn(request, values) {
  scores.set(faceKey(request), values);
  showOwnScores();
}

function showOwnScores() {
  setOwnScores(scores.get(faceKey(head.now)) ?? {});
}

let newest = 0;

async function usePhoto(file, name = file.name) {
  const turn = ++newest;
  const status = byId("photo-status");
  const answer = await uploadFile("photo", file, status, byId("photo-error"), name);
  if (!answer || turn !== newest) return; // a photo that was chosen later counts
  portraits.set(answer.id, { ...answer, picture: URL.createObjectURL(file) });
  scores.set(faceKey({ portrait: answer.id, face: "largest" }), answer.values);
  stopGlancing();
  head.change({ portrait: answer.id, face: "largest", yaw: 0, pitch: 0, roll: 0, scores: {}, basis: {} });
  announce(text.photoReady(answer.name));
}

function startDrop(takeMotion) {
  const cover = byId("drop-here");
  const files = (event) => [...(event.dataTransfer?.types ?? [])].includes("Files");
  addEventListener("dragover", (event) => {
    event.preventDefault();
    cover.hidden = !files(event) || event.target.closest?.(".drop") !== null;
  });
  addEventListener("dragleave", (event) => (cover.hidden = !event.relatedTarget || cover.hidden));
  addEventListener("drop", (event) => {
    event.preventDefault();
    cover.hidden = true;
    if (event.target.closest?.(".drop")) return; // a place of its own
    const file = event.dataTransfer.files[0];
    if (!file) return say(byId("photo-error"), text.noFileDropped);
    const kind = kindOf(file);
    if (kind === "photo") usePhoto(file);
    else if (kind) takeMotion(file, kind);
    else say(byId("photo-error"), text.unknownDrop(file.name));
  });
}

/** What the server warned of when it took the photo in; of another face than the largest it knows nothing yet. */
function showWarnings() {
  const { warnings = [] } = portrait();
  const shown = head.now.face === "largest" ? warnings : [];
  byId("photo-warnings").replaceChildren(...shown.map((warning) => make("li", {}, warning)));
}

/** A photo with several faces: each face is a button on the photo. */
function showFaces() {
  const { id, faces, picture, width, height } = portrait();
  const place = byId("faces");
  place.hidden = !(faces?.length > 1 && picture);
  if (place.hidden) return;
  say(byId("faces-title"), text.facesTitle(faces.length));
  const photo = byId("faces-photo");
  if (photo.dataset.portrait !== id) {
    photo.dataset.portrait = id;
    photo.replaceChildren(facesPicture(picture, width > height, photo));
    for (const { number, box } of faces) {
      const button = make("button", { type: "button", "aria-label": text.faceNumber(number), onclick: () => chooseFace(number) }, String(number));
      const [x, y, w, h] = box;
      const percent = { left: x / width, top: y / height, width: w / width, height: h / height };
      for (const side in percent) button.style[side] = `${100 * percent[side]}%`;
      photo.append(button);
    }
  }
  const { face } = head.now;
  const largest = faces.reduce((a, b) => (b.box[2] * b.box[3] > a.box[2] * a.box[3] ? b : a)).number;
  [...photo.querySelectorAll("button")].forEach((button, index) => {
    button.setAttribute("aria-pressed", faces[index].number === (face === "largest" ? largest : face));
  });
}

/** The photo behind the buttons. Without it (a format or an orientation that the browser does not know) they stand in a row. */
function facesPicture(url, lies, photo) {
  const picture = make("img", { src: url, alt: text.facesPhoto });
  photo.classList.remove("plain");
  picture.onerror = () => photo.classList.add("plain");
  picture.onload = () => photo.classList.toggle("plain", picture.naturalWidth > picture.naturalHeight !== lies);
  return picture;
}

function chooseFace(number) {
  head.change({ face: number, yaw: 0, pitch: 0, roll: 0, scores: {}, basis: {} });
}
