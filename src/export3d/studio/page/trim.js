// Trim handles over the filmstrip of a video, or over a plain bar for a motion.
import { make } from "./dom.js";
import { text } from "./strings.js";

const SHORTEST_S = 0.2;
const STEP_S = 0.1;

/**
 * A bar for a video of `seconds`, of which at most `most` are used; `moved(at)` is told where a handle went.
 * `bar.span` is [start, end] and `bar.whole` the length, in seconds.
 */
export function trimBar(seconds, most, filmstrip, moved = () => {}) {
  const span = [0, Math.min(most, seconds)];
  const words = make("p", { class: "note" });
  const track = make("div", { class: filmstrip ? "trim" : "trim plain" });
  const window = make("div", { class: "trim-window" });
  const film = filmstrip ? make("img", { src: filmstrip, alt: "", draggable: "false" }) : null;
  track.append(make("div", { class: "trim-film" }, film, window));
  const handles = [text.trimStart, text.trimEnd].map((label, side) => {
    const handle = make("div", { class: `trim-handle ${side ? "end" : "start"}`, role: "slider", tabindex: 0, "aria-label": label, "aria-valuemin": 0, "aria-valuemax": seconds.toFixed(1) });
    handle.onkeydown = (event) => {
      const steps = { ArrowLeft: -1, ArrowDown: -1, ArrowRight: 1, ArrowUp: 1, PageDown: -10, PageUp: 10 }[event.key];
      const to = event.key === "Home" ? 0 : event.key === "End" ? seconds : steps && span[side] + STEP_S * steps;
      if (to === undefined) return;
      event.preventDefault();
      place(side, to);
    };
    track.append(handle);
    return handle;
  });

  function place(side, to) {
    const shortest = Math.min(SHORTEST_S, seconds);
    const [low, high] = side
      ? [span[0] + shortest, Math.min(seconds, span[0] + most)]
      : [Math.max(0, span[1] - most), span[1] - shortest];
    span[side] = Math.min(high, Math.max(low, to));
    refresh();
    moved(span[side]);
  }

  function refresh() {
    handles.forEach((handle, side) => {
      handle.style.left = `${(100 * span[side]) / seconds}%`;
      handle.setAttribute("aria-valuenow", span[side].toFixed(1));
      handle.setAttribute("aria-valuetext", text.atSecond(span[side]));
    });
    window.style.left = `${(100 * span[0]) / seconds}%`;
    window.style.right = `${100 - (100 * span[1]) / seconds}%`;
    words.textContent = text.trimSpan(...span, seconds);
  }

  let held = null;
  const second = (event) => {
    const box = track.getBoundingClientRect();
    return (seconds * (event.clientX - box.left)) / box.width;
  };
  track.onpointerdown = (event) => {
    const at = second(event);
    held = Math.abs(at - span[0]) < Math.abs(at - span[1]) ? 0 : 1;
    track.setPointerCapture(event.pointerId);
    handles[held].focus();
    place(held, at);
    event.preventDefault();
  };
  track.onpointermove = (event) => held !== null && place(held, second(event));
  track.onpointerup = track.onpointercancel = () => (held = null);

  refresh();
  const bar = make("div", { class: "field", role: "group", "aria-label": text.trimTitle }, make("p", { class: "label" }, text.trimTitle), track, words);
  return Object.assign(bar, { span, whole: seconds });
}
