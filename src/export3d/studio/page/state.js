// What the stage shows: portrait, face, head angles, scores and basis amounts; with undo and redo.

const REST = Object.freeze({ yaw: 0, pitch: 0, roll: 0, scores: {}, basis: {} });
const START = Object.freeze({ portrait: "bundled", face: "largest", ...REST });
const MOST_STEPS = 200;

const same = (a, b) => JSON.stringify(a) === JSON.stringify(b);

/** Fires "change" with `live` true in the middle of a gesture (drag, key held, slider) and false after it. */
export class Head extends EventTarget {
  now = START;
  moving = false;
  glanced = false; // the angles come from a glance, not from the user's hand
  #past = [];
  #future = [];
  #before = null;

  /** Change some fields; `live` begins or continues a gesture, which `settle` ends. */
  change(fields, live = false) {
    this.#before ??= this.now;
    this.glanced = false;
    this.now = { ...this.now, ...fields };
    this.moving = true;
    if (live) this.#tell(true);
    else this.settle();
  }

  /** End a gesture: it becomes one step of undo. */
  settle() {
    if (!this.moving) return;
    if (this.#before && !same(this.#before, this.now)) {
      this.#past = [...this.#past, this.#before].slice(-MOST_STEPS);
      this.#future = [];
    }
    this.#rest();
  }

  /** Move the head without a step of undo, as the mouse passes over it. */
  glance(angles, live) {
    this.glanced = true;
    this.now = { ...this.now, ...angles };
    this.#tell(live);
  }

  reset() {
    this.change(REST);
  }
  undo() {
    this.#step(this.#past, this.#future);
  }
  redo() {
    this.#step(this.#future, this.#past);
  }
  get canUndo() {
    return this.#past.length > 0;
  }
  get canRedo() {
    return this.#future.length > 0;
  }
  get canReset() {
    return !this.glanced && !same(REST, this.edits);
  }
  /** The fields that `reset` clears. */
  get edits() {
    const { yaw, pitch, roll, scores, basis } = this.now;
    return { yaw, pitch, roll, scores, basis };
  }

  #step(from, to) {
    this.settle();
    if (!from.length) return;
    to.push(this.now);
    this.now = from.pop();
    this.#rest();
  }
  #rest() {
    this.#before = null;
    this.moving = false;
    this.#tell(false);
  }
  #tell(live) {
    this.dispatchEvent(new CustomEvent("change", { detail: { live } }));
  }
}
