// Charts of days: stacked bars and lines, drawn at the width they have. Each is a table too, for those who can't see it.

import { fill, h, s } from "../shared/dom.js";

const HIGH = 190;
const BAR_WIDE_MAX = 40;
const LABEL_WIDE = 48;
const CHARACTER_WIDE = 7; // at most, of a label's digits and letters on average
const LABEL_GAP = 8;
const EDGE = { left: 4, right: 8, top: 10, bottom: 22 };

/**
 * @param {string} title
 * @param {object[]} days    each with a `date`
 * @param {object[]} series  {name, of(day), tone}; `of` may give null where there is nothing to say
 * @param {function} show    a value in words
 * @param {"bars"|"lines"} kind
 */
export function chart(title, { days, series, show, kind }) {
  const place = h("div.chart-place", {});
  const words = h("p.chart-words.numbers", { "aria-hidden": "true" });
  const draw = () => {
    if (place.clientWidth) fill(place, drawing({ days, series, show, kind, wide: place.clientWidth, words }));
  };
  new ResizeObserver(draw).observe(place);
  return h(
    "figure.chart",
    {},
    h(
      "figcaption",
      {},
      h("h2", {}, title),
      h(
        "ul.legend",
        {},
        series.map(({ name, tone }) => h("li", {}, h(`span.swatch.${tone}`), name)),
      ),
    ),
    place,
    words,
    h(
      "details.as-table",
      {},
      h("summary", {}, "As a table"),
      h(
        "div.table-place",
        { tabindex: "0", role: "region", "aria-label": title },
        h(
          "table",
          {},
          h(
            "thead",
            {},
            h(
              "tr",
              {},
              h("th", { scope: "col" }, "Day"),
              series.map(({ name }) => h("th.number", { scope: "col" }, name)),
            ),
          ),
          h(
            "tbody",
            {},
            [...days].reverse().map((day) =>
              h(
                "tr",
                {},
                h("th", { scope: "row" }, day.date),
                series.map(({ of }) => h("td.number", {}, of(day) === null ? "–" : show(of(day)))),
              ),
            ),
          ),
        ),
      ),
    ),
  );
}

function drawing({ days, series, show, kind, wide, words }) {
  const tops = days.map((day) => {
    const values = series.map(({ of }) => of(day) ?? 0);
    return kind === "bars" ? values.reduce((sum, one) => sum + one, 0) : Math.max(...values);
  });
  const highest = roundUp(Math.max(...tops, 0));
  const top = highest || 1;
  const ticks = (highest ? [0, highest / 2, highest] : [0]).map((value) => [value, show(value)]);
  const left = EDGE.left + LABEL_GAP + CHARACTER_WIDE * Math.max(...ticks.map(([, label]) => label.length));
  const width = wide - left - EDGE.right;
  const height = HIGH - EDGE.top - EDGE.bottom;
  const y = (value) => EDGE.top + height * (1 - value / top);
  const band = width / days.length;
  const x = (at) => left + band * at;

  const picture = s("svg", { class: "chart-svg", width: wide, height: HIGH, "aria-hidden": "true" });
  for (const [value, label] of ticks) {
    picture.append(
      s("line", { class: "grid", x1: left, x2: wide - EDGE.right, y1: y(value), y2: y(value) }),
      s("text", { class: "tick end", x: left - LABEL_GAP, y: y(value) + 4 }, label),
    );
  }
  const every = Math.max(1, Math.ceil(64 / band));
  days.forEach((day, at) => {
    if ((days.length - 1 - at) % every === 0) {
      // In a narrow band a label reaches beyond it: the last one, beyond the picture.
      const isCut = at === days.length - 1 && band / 2 + EDGE.right < LABEL_WIDE / 2;
      const [anchor, beside] = isCut ? ["end", wide] : ["middle", x(at) + band / 2];
      picture.append(s("text", { class: `tick ${anchor}`, x: beside, y: HIGH - 5 }, shortDay(day.date)));
    }
  });
  if (kind === "bars") bars(picture, { days, series, x, y, band });
  else lines(picture, { days, series, x, y, band });

  const column = s("rect", { class: "pointed", x: -band, y: EDGE.top, width: band, height });
  picture.prepend(column);
  const tell = (at) => {
    const day = days[at];
    column.setAttribute("x", x(at));
    words.textContent = [
      day.date,
      ...series.map(({ name, of }) => `${name} ${of(day) === null ? "–" : show(of(day))}`),
    ].join("   ");
  };
  picture.addEventListener("pointermove", (event) => {
    const at = Math.floor((event.clientX - picture.getBoundingClientRect().left - left) / band);
    if (days[at]) tell(at);
  });
  tell(days.length - 1);
  return picture;
}

function bars(picture, { days, series, x, y, band }) {
  const width = Math.max(1, Math.min(BAR_WIDE_MAX, band - Math.min(4, band * 0.25)));
  days.forEach((day, at) => {
    let below = 0;
    for (const { of, tone } of series) {
      const value = of(day) ?? 0;
      if (!value) continue;
      const high = y(below) - y(below + value);
      picture.append(
        s("rect", {
          class: `bar ${tone}`,
          x: x(at) + (band - width) / 2,
          y: y(below + value),
          width,
          height: high,
          rx: Math.min(2, high / 2),
        }),
      );
      below += value;
    }
  });
}

function lines(picture, { days, series, x, y, band }) {
  for (const { of, tone } of series) {
    let path = "";
    let isDown = false;
    days.forEach((day, at) => {
      const value = of(day);
      if (value === null) {
        isDown = false;
        return;
      }
      const isAlone = (of(days[at - 1] ?? {}) ?? null) === null && (of(days[at + 1] ?? {}) ?? null) === null;
      path += `${isDown ? "L" : "M"}${x(at) + band / 2} ${y(value)}`;
      isDown = true;
      picture.append(s("circle", { class: `point ${tone}`, cx: x(at) + band / 2, cy: y(value), r: isAlone ? 4 : 2 }));
    });
    picture.append(s("path", { class: `line ${tone}`, d: path || "M0 0" }));
  }
}

/** The next of 2, 4, 6, 8, 10, 20, 40, ...: its half is as round as itself. */
function roundUp(value) {
  if (value <= 0) return 0;
  const ten = 10 ** Math.floor(Math.log10(value));
  return [1, 2, 4, 6, 8, 10].map((step) => step * ten).find((step) => step >= value);
}

function shortDay(date) {
  return new Intl.DateTimeFormat("en-GB", { day: "numeric", month: "short", timeZone: "UTC" }).format(new Date(date));
}
