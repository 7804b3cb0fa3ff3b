// Small makers of HTML and SVG elements.

const SVG = "http://www.w3.org/2000/svg";

/**
 * An SVG element with attributes, and text where it is given.
 * @template {keyof SVGElementTagNameMap} Name
 * @param {Name} name
 * @param {Record<string, string | number>} attributes
 * @param {string} [text]
 */
export function shape(name, attributes, text) {
  const element = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, String(value));
  if (text !== undefined) element.textContent = text;
  return element;
}

/**
 * A div of a class of styles, at the end of its parent where one is given.
 * @param {string} name
 * @param {HTMLElement} [parent]
 */
export function block(name, parent) {
  const element = document.createElement("div");
  element.className = name;
  parent?.append(element);
  return element;
}

/**
 * @param {HTMLElement} parent
 * @param {string} label
 * @param {string} help more than the label; "": there is no more to say
 * @param {() => void} onClick
 */
export function button(parent, label, help, onClick) {
  const made = document.createElement("button");
  made.type = "button";
  made.textContent = label;
  if (help) made.title = help;
  made.addEventListener("click", onClick);
  parent.append(made);
  return made;
}
