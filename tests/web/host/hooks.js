// Lets the page's scripts find ComfyUI's in this folder.

import { register } from "node:module";

const here = new URL(".", import.meta.url).href;
register(
  `data:text/javascript,${encodeURIComponent(`
    export async function resolve(name, context, next) {
      const script = /\\/scripts\\/(app|api)\\.js$/.exec(name);
      return script ? { url: "${here}" + script[1] + ".js", shortCircuit: true } : next(name, context);
    }
  `)}`,
);
