// Stands in for ComfyUI's scripts/api.js: answers from a table, and events that a test sends.

class Api extends EventTarget {
  answers = {}; // path to {status, body}, or to a function that gives it

  apiURL(path) {
    return `/api${path}`;
  }

  sent = []; // what requests held that sent something

  async fetchApi(path, request) {
    if (request) this.sent.push(request);
    const found = this.answers[path] ?? { status: 404, body: {} };
    const { status = 200, body } = typeof found === "function" ? await found() : found;
    return { status, ok: status === 200, json: async () => body };
  }

  send(type, detail) {
    this.dispatchEvent(new CustomEvent(type, { detail }));
  }
}

export const api = new Api();
