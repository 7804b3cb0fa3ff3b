// A document for the tests: jsdom, with what it lacks of a browser's layout.

import { JSDOM } from "jsdom";

export const WIDTH = 400;
export const HEIGHT = 150;

const dom = new JSDOM("<!doctype html><head></head><body></body>", {
  pretendToBeVisual: true,
  url: "http://127.0.0.1/",
});
const { window } = dom;

// jsdom lays nothing out, so that every element has this size and no observer of sizes has anything to tell.
Object.defineProperty(window.HTMLElement.prototype, "clientWidth", { get: () => WIDTH });
Object.defineProperty(window.HTMLElement.prototype, "clientHeight", { get: () => HEIGHT });
window.HTMLElement.prototype.getBoundingClientRect = () => new window.DOMRect(0, 0, WIDTH, HEIGHT);
class ResizeObserver {
  observe() {}
  disconnect() {}
}

Object.assign(globalThis, {
  window,
  document: window.document,
  localStorage: window.localStorage,
  sessionStorage: window.sessionStorage,
  MutationObserver: window.MutationObserver,
  Option: window.Option,
  requestAnimationFrame: window.requestAnimationFrame,
  cancelAnimationFrame: window.cancelAnimationFrame,
  ResizeObserver,
});

/** Until what was asked to be drawn is drawn. */
export function frame() {
  return new Promise((resolve) => requestAnimationFrame(resolve));
}

/**
 * @param {EventTarget} target
 * @param {string} type
 * @param {object} fields
 */
export function fire(target, type, fields = {}) {
  target.dispatchEvent(Object.assign(new window.Event(type, { bubbles: true }), fields));
}
