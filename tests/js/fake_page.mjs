/** The few parts of a browser that the chart uses. */

class FakeElement {
  constructor(name) {
    this.name = name;
    this.attributes = {};
    this.children = [];
    this.textContent = "";
  }
  setAttribute(key, value) {
    this.attributes[key] = value;
  }
  append(...children) {
    this.children.push(...children);
  }
  replaceChildren(...children) {
    this.children = children;
  }
  attachShadow() {
    this.shadow = new FakeElement("#shadow");
    return this.shadow;
  }
}

export const fakeDocument = {
  createElement: (name) => new FakeElement(name),
  createElementNS: (_, name) => new FakeElement(name),
};

export class FakeResizeObserver {
  static all = [];
  constructor(callback) {
    this.callback = callback;
    FakeResizeObserver.all.push(this);
  }
  observe(element) {
    this.element = element;
  }
  disconnect() {
    this.element = null;
  }
  resize(width, height) {
    this.callback([{ contentRect: { width, height } }]);
  }
}

/** Every element below `element` (shadow roots included) that `test` accepts. */
export function findAll(element, test) {
  const below = [...(element.shadow ? [element.shadow] : []), ...element.children];
  return below.flatMap((child) => [...(test(child) ? [child] : []), ...findAll(child, test)]);
}

export const byClass = (element, name) => findAll(element, (e) => e.attributes.class === name)[0];
export const status = (element) => element.shadow.children.at(-1).textContent;
