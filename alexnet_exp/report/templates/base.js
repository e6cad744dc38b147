// Without this script the browser's tooltips show the same values.
document.documentElement.classList.add("scripted");

for (const chart of document.querySelectorAll(".chart")) {
  const svg = chart.querySelector("svg"), tip = chart.querySelector(".tip");
  const stops = [...svg.querySelectorAll(".stop")];
  const texts = stops.map((stop) => stop.removeChild(stop.querySelector("title")).textContent);
  let current = -1;

  const show = (index) => {
    stops[current]?.classList.remove("on");
    current = index;
    tip.hidden = index < 0;
    if (index < 0) return;
    stops[index].classList.add("on");
    tip.textContent = texts[index];
    const plot = svg.getBoundingClientRect(), frame = chart.getBoundingClientRect(), half = tip.offsetWidth / 2;
    const x = plot.left - frame.left + plot.width * stops[index].dataset.x;
    tip.style.left = Math.min(Math.max(x, half), frame.width - half) + "px";
    tip.style.top = plot.top - frame.top - 4 + "px";
  };
  const follow = (event) => {
    const plot = svg.getBoundingClientRect(), x = (event.clientX - plot.left) / plot.width;
    let nearest = 0;
    stops.forEach((stop, i) => {
      if (Math.abs(stop.dataset.x - x) < Math.abs(stops[nearest].dataset.x - x)) nearest = i;
    });
    show(stops.length ? nearest : -1);
  };
  svg.addEventListener("pointermove", follow);
  svg.addEventListener("pointerdown", follow);
  svg.addEventListener("pointerleave", () => show(-1));
  svg.addEventListener("blur", () => show(-1));
  svg.addEventListener("keydown", (event) => {
    const move = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (!move || !stops.length) return;
    event.preventDefault();
    show(Math.min(Math.max(current + move, 0), stops.length - 1));
  });
}

addEventListener("beforeprint", () => {
  for (const details of document.querySelectorAll("details")) details.open = true;
});
