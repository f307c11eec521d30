// The webcam: one dialog that takes a photo or records a driving video.
import { byId, say } from "./dom.js";
import { text } from "./strings.js";

const dialog = byId("camera");
const view = byId("camera-view");
const take = byId("camera-take");
const note = byId("camera-note");
const refusal = byId("camera-error");
const RECORDINGS = ["video/mp4;codecs=avc1,mp4a.40.2", "video/webm;codecs=vp8,opus", "video/webm", "video/mp4"];

const WHY = {
  NotAllowedError: text.cameraDenied,
  SecurityError: text.cameraDenied,
  NotFoundError: text.cameraNone,
  OverconstrainedError: text.cameraNone,
};

/** Open the dialog with the camera running; null if there is no camera (the dialog then says why until it is closed). */
async function openCamera(title, label, sound) {
  say(byId("camera-title"), title);
  say(take, label);
  say(refusal);
  say(note, text.cameraWait);
  take.disabled = true;
  dialog.showModal();
  if (!navigator.mediaDevices) return say(note), say(refusal, text.cameraInsecure), null;
  try {
    const video = { width: { ideal: 1280 }, height: { ideal: 720 }, facingMode: "user" };
    const stream = await navigator.mediaDevices.getUserMedia({ video, audio: sound }).catch((problem) => {
      if (!sound) throw problem;
      return navigator.mediaDevices.getUserMedia({ video }); // a computer without a microphone
    });
    view.srcObject = stream;
    await view.play();
    say(note, text.cameraFace);
    take.disabled = false;
    return stream;
  } catch (problem) {
    say(note);
    say(refusal, WHY[problem.name] ?? text.cameraBroken);
    return null;
  }
}

/** What `act` makes of the running camera; null if the user leaves. */
async function withCamera(title, label, sound, act) {
  const left = new AbortController();
  byId("camera-cancel").onclick = () => dialog.close();
  dialog.onclose = () => left.abort();
  const opening = openCamera(title, label, sound);
  const closed = new Promise((resolve) => left.signal.addEventListener("abort", () => resolve(null)));
  try {
    const stream = await Promise.race([opening, closed]);
    return stream ? await Promise.race([act(stream, left.signal), closed]) : await closed;
  } finally {
    dialog.close();
    view.srcObject = null;
    const stream = await opening;
    for (const track of stream?.getTracks() ?? []) track.stop();
  }
}

const pressed = () => new Promise((resolve) => (take.onclick = resolve));

/** A photo as a PNG blob, not mirrored. */
export const photoFromCamera = () =>
  withCamera(text.cameraPhoto, text.cameraTake, false, async () => {
    await pressed();
    const canvas = document.createElement("canvas");
    [canvas.width, canvas.height] = [view.videoWidth, view.videoHeight];
    canvas.getContext("2d").drawImage(view, 0, 0);
    return new Promise((resolve) => canvas.toBlob(resolve, "image/png"));
  });

/** A recording of at most `most` seconds: {blob, name}. */
export const videoFromCamera = (most) =>
  withCamera(text.cameraRecord, text.cameraStart, true, async (stream, left) => {
    await pressed();
    const mimeType = RECORDINGS.find((type) => MediaRecorder.isTypeSupported(type));
    const recorder = new MediaRecorder(stream, { mimeType });
    const parts = [];
    recorder.ondataavailable = ({ data }) => parts.push(data);
    const stopped = new Promise((resolve) => (recorder.onstop = resolve));
    recorder.start(1000);
    say(take, text.cameraStop);
    const begun = performance.now();
    const clock = setInterval(() => {
      const seconds = Math.floor((performance.now() - begun) / 1000);
      say(note, text.cameraTime(seconds, most));
      if (seconds >= most) take.click();
    }, 500);
    left.addEventListener("abort", () => take.click());
    await pressed();
    clearInterval(clock);
    recorder.stop();
    await stopped;
    const kind = mimeType.includes("mp4") ? "mp4" : "webm";
    return { blob: new Blob(parts, { type: `video/${kind}` }), name: `${text.cameraVideoName}.${kind}` };
  });
