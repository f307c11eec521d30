// The head over one WebSocket. One request is on its way at a time; of those that come meanwhile only the newest is sent.

const PATIENCE_MS = 30000;
const LONGEST_WAIT_MS = 5000;

/** Fires "picture" {answer, request, blob}, "refused" {error, request} and "state" {open}. */
export class HeadSocket extends EventTarget {
  #socket = null;
  #sent = null;
  #next = null;
  #answer = null;
  #number = 0;
  #attempt = 0;
  #timer = 0;

  constructor(address) {
    super();
    this.address = address;
    this.#open();
    addEventListener("online", () => this.#reopen());
  }

  /** Ask for a picture; a request that still waits is replaced. */
  ask(request) {
    this.#next = { ...request, n: ++this.#number };
    this.#send();
  }

  #open() {
    this.#socket = new WebSocket(this.address);
    this.#socket.binaryType = "blob";
    this.#socket.onopen = () => {
      this.#attempt = 0;
      this.#tell("state", { open: true });
      this.#send();
    };
    this.#socket.onmessage = ({ data }) => (typeof data === "string" ? this.#heard(JSON.parse(data)) : this.#seen(data));
    this.#socket.onclose = () => this.#closed();
  }

  #send() {
    if (this.#sent || !this.#next || this.#socket.readyState !== WebSocket.OPEN) return;
    [this.#sent, this.#next] = [this.#next, null];
    this.#socket.send(JSON.stringify(this.#sent));
    this.#timer = setTimeout(() => this.#socket.close(), PATIENCE_MS);
  }

  #heard(answer) {
    if (!answer.error) {
      this.#answer = answer; // its picture follows
      return;
    }
    const request = this.#finished();
    if (answer.status === 503 && request) {
      this.#next ??= request; // the engine is starting again
      setTimeout(() => this.#send(), 1000);
    } else this.#send();
    this.#tell("refused", { error: answer.error, status: answer.status, request });
  }

  #seen(blob) {
    const [answer, request] = [this.#answer, this.#finished()];
    this.#send();
    if (answer) this.#tell("picture", { answer, request, blob });
  }

  #finished() {
    const request = this.#sent;
    clearTimeout(this.#timer);
    this.#sent = this.#answer = null;
    return request;
  }

  #closed() {
    this.#next ??= this.#finished();
    this.#finished();
    this.#tell("state", { open: false });
    const wait = Math.min(LONGEST_WAIT_MS, 500 * 2 ** this.#attempt++);
    this.#timer = setTimeout(() => this.#reopen(), wait);
  }

  #reopen() {
    if (this.#socket.readyState !== WebSocket.CLOSED) return;
    clearTimeout(this.#timer);
    this.#open();
  }

  #tell(name, detail) {
    this.dispatchEvent(new CustomEvent(name, { detail }));
  }
}
