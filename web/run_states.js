// What the state of a run and its expert are called: in the list of runs, and on the page for a phone (nodes/watch_page.py), which
// has this script inside, with words of its own in the place of those that are imported here.

import { say } from "./words.js";

/** @returns {Record<string, string>} */
const stages = () => ({
  high: say("high noise"),
  low: say("low noise"),
  single: say("single model"),
  both: say("both experts"),
});
/** @returns {Record<string, string>} */
const states = () => ({
  new: say("not begun"),
  waiting: say("starting"),
  training: say("running"),
  stopping: say("stopping"),
  paused: say("paused"),
  stopped: say("stopped"),
  finished: say("finished"),
  error: say("failed"),
});

/** @param {{ state: string }} run */
export function stateOf(run) {
  return states()[run.state] ?? run.state;
}

/** @param {{ stage: string }} run */
export function expertOf(run) {
  return stages()[run.stage] ?? run.stage;
}
