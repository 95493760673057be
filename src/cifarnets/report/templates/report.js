// Reads the values of a chart at one place: with the pointer, a finger, or the slider below it.
for (const figure of document.querySelectorAll("[data-plot]")) {
  const plot = JSON.parse(figure.dataset.plot);
  const svg = figure.querySelector(":scope > svg");
  const figures = figure.querySelectorAll("li b");
  if (plot.x.length < 2) continue;

  const draw = (name, attributes) => {
    const element = document.createElementNS(svg.namespaceURI, name);
    for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
    return svg.appendChild(element);
  };
  const across = (x) => plot.left + ((x - plot.first) / (plot.last - plot.first)) * (plot.right - plot.left);
  const down = (y) => plot.bottom - ((y - plot.low) / (plot.high - plot.low)) * (plot.bottom - plot.top);
  const short = (value) => (value === null ? "–" : String(Number(value.toPrecision(4))));

  const cursor = draw("line", { y1: plot.top, y2: plot.bottom, stroke: "currentColor", opacity: 0.6 });
  const strokes = [...svg.querySelectorAll("polyline")].map((line) => line.getAttribute("stroke"));
  const dots = plot.lines.map((_, i) => draw("circle", { r: 4, fill: strokes[i] }));

  const reader = Object.assign(document.createElement("div"), { className: "reader" });
  const slider = Object.assign(document.createElement("input"), { type: "range", min: 0, max: plot.x.length - 1 });
  const output = document.createElement("output");
  slider.setAttribute("aria-label", `Epoch of the chart: ${figure.querySelector("figcaption").textContent}`);
  reader.append(output, slider);
  svg.after(reader);

  const show = (index) => {
    const x = plot.x[index];
    slider.value = index;
    output.textContent = `epoch ${x}`;
    cursor.setAttribute("x1", across(x));
    cursor.setAttribute("x2", across(x));
    const spoken = [`epoch ${x}`];
    plot.lines.forEach((line, i) => {
      const y = line.y[index];
      dots[i].setAttribute("visibility", y === null ? "hidden" : "visible");
      if (y !== null) {
        dots[i].setAttribute("cx", across(x));
        dots[i].setAttribute("cy", down(y));
      }
      figures[i].textContent = short(y);
      spoken.push(`${line.name} ${short(y)}`);
    });
    slider.setAttribute("aria-valuetext", spoken.join(", "));
  };
  const point = (event) => {
    const place = new DOMPoint(event.clientX, event.clientY).matrixTransform(svg.getScreenCTM().inverse());
    const distances = plot.x.map((x) => Math.abs(across(x) - place.x));
    show(distances.indexOf(Math.min(...distances)));
  };
  slider.addEventListener("input", () => show(Number(slider.value)));
  svg.addEventListener("pointermove", point);
  svg.addEventListener("pointerdown", point);
  show(plot.x.length - 1);
}
