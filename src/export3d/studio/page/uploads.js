// Files on their way to the server: checked, sent, their progress and refusal said beside what caused them.
import * as api from "./api.js";
import { say, sizeText } from "./dom.js";
import { text } from "./strings.js";

const ATTEMPTS = 5;

let most = Infinity;
const kept = new Set(); // ids, removed from the server when the page closes

export function startUploads({ upload_bytes }) {
  most = upload_bytes ?? Infinity;
  addEventListener("pagehide", (event) => {
    if (!event.persisted) for (const id of kept) api.endUpload(id).catch(() => {});
  });
}

/** A file's answer, or null if it was refused (the sentence then stands in `refusal`). */
export async function uploadFile(kind, file, status, refusal, name = file.name) {
  return sending(file, name, status, refusal, (watch) => api.upload(kind, file, name, watch)).then((answer) => {
    if (answer) kept.add(answer.id);
    return answer;
  });
}

export const verifyFile = (file, status, refusal) =>
  sending(file, file.name, status, refusal, (watch) => api.verify(file, watch));

async function sending(file, name, status, refusal, send) {
  say(refusal);
  if (!file.size) return say(refusal, text.emptyFile(name)), null;
  if (file.size > most) return say(refusal, text.tooLarge(name, sizeText(most))), null;
  const watch = (part) => say(status, part < 1 ? text.uploading(name, part) : text.checking(name));
  try {
    return await api.persist(
      () => (watch(0), send(watch)),
      (problem, seconds) => say(status, text.again(problem.message, seconds)),
      undefined,
      ATTEMPTS,
    );
  } catch (problem) {
    say(refusal, problem.message);
    return null;
  } finally {
    say(status);
  }
}

const MOTION_FILES = /\.(motion|csv|mat|safetensors)$/i;
const PHOTO_FILES = /\.(jpe?g|png|webp|heic|heif|avif|bmp|tiff?)$/i;
const VIDEO_FILES = /\.(mp4|m4v|mov|mkv|webm|avi|wmv|flv|gif|mpe?g|ogv)$/i;

/** What a file is by its name or type: "photo", "video", "motion", or null. */
export function kindOf({ name, type }) {
  if (MOTION_FILES.test(name)) return "motion";
  if (VIDEO_FILES.test(name) || type.startsWith("video/")) return "video";
  if (PHOTO_FILES.test(name) || type.startsWith("image/")) return "photo";
  return null;
}
