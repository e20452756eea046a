// Everything starts here, once the parser has passed the data.

const DATA = JSON.parse(document.getElementById("data").textContent);
for (const figure of DATA.figures)
  drawFigure({ ...figure, events: figure.xlabel === "step" ? DATA.events : [] }, DATA.groups, document.getElementById("figures"));
const browser = document.getElementById("list") ? new Browser(DATA.rollouts, DATA.runs) : null;
// The mark is set after the first picture of the page is on the screen: that is when it is open.
requestAnimationFrame(() => setTimeout(() => performance.mark("ready")));
