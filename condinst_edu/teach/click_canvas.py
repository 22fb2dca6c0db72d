"""The browser's part of `click_to_segment`: an image to click on. It needs no network and no other file.

It sets x, y and level, as anybody else may, and draws what Python answers. Colours are the front end's own.
"""

ESM = """
function add(parent, tag, attributes = {}) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  parent.append(node);
  return node;
}

function render({ model, el }) {
  const [width, height] = model.get("size");
  const zoom = Math.max(1, Math.round(384 / Math.max(width, height)));
  const root = add(el, "div", { class: "click-to-segment" });
  const left = add(root, "div");
  const label = add(left, "label", model.get("levels").length ? {} : { hidden: "" });
  label.append("level ");
  const select = add(label, "select");
  for (const level of [0, ...model.get("levels")]) {
    add(select, "option", { value: level }).textContent = level ? `P${level}` : "auto";
  }
  const canvas = add(left, "canvas", {
    width: width * zoom, height: height * zoom, tabindex: 0, role: "application",
    "aria-label": "Image. A click chooses a pixel, arrow keys move it by a cell.",
    "data-lm-suppress-shortcuts": "true",  // else JupyterLab takes the arrow keys
  });
  const text = add(left, "p", { role: "status", "aria-live": "polite" });
  add(left, "p", { class: "hint" }).textContent = "Click or drag; arrow keys move by a cell. "
    + "Ring: the location that answers. Cross: the pixel you chose.";
  const right = add(root, "div", { class: "panels" });

  const context = canvas.getContext("2d");
  const picture = new Image(), overlay = new Image();

  function draw() {
    if (!picture.complete || !overlay.complete) return;
    context.imageSmoothingEnabled = false;
    context.drawImage(picture, 0, 0, canvas.width, canvas.height);
    context.drawImage(overlay, 0, 0, canvas.width, canvas.height);
    const place = (v) => (v + 0.5) * zoom;  // the middle of a pixel
    const [x, y] = [place(model.get("x")), place(model.get("y"))];
    const [cx, cy] = model.get("location").map(place);
    for (const [color, line] of [["black", 4], ["white", 2]]) {
      context.strokeStyle = color;
      context.lineWidth = line;
      context.beginPath();
      context.moveTo(x - 6, y); context.lineTo(x + 6, y);
      context.moveTo(x, y - 6); context.lineTo(x, y + 6);
      context.moveTo(cx + 9, cy); context.arc(cx, cy, 9, 0, 2 * Math.PI);
      context.stroke();
    }
  }

  function show() {
    select.value = model.get("level");
    if (text.textContent !== model.get("text")) text.textContent = model.get("text");
    if (overlay.src !== model.get("overlay")) overlay.src = model.get("overlay");
    const panels = model.get("panels");
    while (right.children.length > panels.length) right.lastChild.remove();
    panels.forEach((panel, i) => {
      const figure = right.children[i] || add(right, "figure");
      if (!figure.children.length) { add(figure, "figcaption"); add(figure, "img"); }
      figure.children[0].textContent = panel.caption;
      figure.children[1].src = panel.source;
      figure.children[1].alt = panel.caption;
    });
    draw();
  }

  function choose(x, y) {
    const within = (v, size) => Math.min(Math.max(Math.floor(v), 0), size - 1);
    model.set({ x: within(x, width), y: within(y, height) });
    model.save_changes();
    draw();
  }

  function point(event) {
    const box = canvas.getBoundingClientRect();
    choose((event.clientX - box.left) / box.width * width, (event.clientY - box.top) / box.height * height);
  }

  canvas.addEventListener("pointerdown", (event) => {
    if (event.button !== 0) return;
    canvas.setPointerCapture(event.pointerId);
    canvas.focus({ preventScroll: true });
    event.preventDefault();
    point(event);
  });
  canvas.addEventListener("pointermove", (event) => {
    if (canvas.hasPointerCapture(event.pointerId)) point(event);
  });
  canvas.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
    if (!step) return;
    event.preventDefault();
    event.stopPropagation();
    const cell = model.get("stride");
    choose(model.get("x") + step[0] * cell, model.get("y") + step[1] * cell);
  });
  select.addEventListener("change", () => {
    model.set("level", Number(select.value));
    model.save_changes();
  });
  picture.onload = overlay.onload = draw;
  picture.src = model.get("picture");
  model.on("change", show);
  show();
  return () => model.off("change", show);
}

export default { render };
"""

CSS = """
.click-to-segment { display: flex; flex-wrap: wrap; gap: 8px 24px; padding: 8px;
  color: var(--jp-ui-font-color1, inherit); font-family: var(--jp-ui-font-family, sans-serif); font-size: 13px; }
.click-to-segment > div:first-child { width: 400px; max-width: 100%; }
.click-to-segment canvas { display: block; max-width: 100%; margin: 6px 0; cursor: crosshair; touch-action: none;
  box-shadow: 0 0 0 1px var(--jp-border-color1, gray); }
.click-to-segment canvas:focus-visible { outline: 3px solid var(--jp-brand-color1, royalblue); outline-offset: 2px; }
.click-to-segment p { margin: 4px 0; }
.click-to-segment .hint { color: var(--jp-ui-font-color2, inherit); font-size: 12px; }
.click-to-segment .panels { flex: 1 1 320px; min-width: 0; }
.click-to-segment figure { margin: 0 0 8px; }
.click-to-segment figcaption { margin-bottom: 2px; }
.click-to-segment figure img { display: block; max-width: 100%; margin: 0; }
.click-to-segment select { color: inherit; background: var(--jp-layout-color1, transparent); font: inherit;
  border: 1px solid var(--jp-border-color1, gray); }
"""
