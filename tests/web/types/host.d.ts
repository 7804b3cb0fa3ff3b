// What the pack's page uses of ComfyUI's. Its types come from ComfyUI; what they leave out is added here.

declare namespace Comfy {
  type Extension = import("@comfyorg/comfyui-frontend-types").ComfyExtension;
  type App = import("@comfyorg/comfyui-frontend-types").ComfyApp;

  type Node = Parameters<NonNullable<Extension["nodeCreated"]>>[0] & {
    // Put on the class by ComfyUI's src/scripts/domWidget.ts, which its types leave out.
    addDOMWidget(name: string, type: string, element: HTMLElement, options: DOMWidgetOptions): OwnWidget;
  };
  type Graph = App["rootGraph"];
  // Its options have more than the types say: what a node's definition says of an input.
  interface Widget {
    name: string;
    hidden?: boolean;
    options: { advanced?: boolean; canvasOnly?: boolean };
  }
  type MenuItem = ReturnType<NonNullable<Extension["getNodeMenuItems"]>>[number];

  interface OwnWidget {
    serialize?: boolean;
    beforeQueued?: () => void; // called for every widget before the workflow is made into a prompt
  }

  interface DOMWidgetOptions {
    serialize: boolean;
    hideOnZoom: boolean;
    getMinHeight: () => number;
    getValue: () => string;
    setValue: (value: string) => void;
  }

  // What a node's execute returned as its ui.
  interface Output {
    text?: unknown;
    wan_run?: string[];
  }
}

declare module "*/scripts/app.js" {
  export const app: Comfy.App;
}

declare module "*/scripts/api.js" {
  export const api: import("@comfyorg/comfyui-frontend-types").ComfyApi;
}
