// What the account has and what it did lately.

import { getJson } from "../shared/api.js";
import { fill, h } from "../shared/dom.js";
import { count, money, plural, seconds } from "../shared/format.js";
import { whoIs } from "../shared/shell.js";
import { chart } from "./charts.js";
import { card, heading, within } from "./parts.js";

const RANGES = [7, 30, 90];

export function overview(place, me) {
  const [credits, charts] = [h("div", {}), h("div", {})];
  const loadCredits = within(credits, async () => creditsOf(await whoIs()));
  const load = within(charts, async (days) => drawn(await getJson(`console/api/usage?days=${days}`), days));
  const choice = h(
    "div.segments",
    { role: "radiogroup", "aria-label": "How far back" },
    RANGES.map((days) =>
      h(
        "label",
        {},
        h("input", { type: "radio", name: "days", value: days, checked: days === 30, onchange: () => load(days) }),
        `${days} days`,
      ),
    ),
  );
  place.append(
    heading(
      "Overview",
      `${me.account.name} · up to ${plural(me.requests_per_minute ?? 0, "request")} a minute, ${plural(me.account.in_flight_max, "edit")} at once`,
    ),
    fill(credits, creditsOf(me)),
    h("div.sub-head", {}, h("div", {}, h("h2", {}, "Usage"), h("p.faint.fine", {}, "Days are in UTC.")), choice),
    charts,
  );
  loadCredits(); // edits and payments may have changed what was known when the page was opened
  load(30);
}

function creditsOf({ account, balance, ...me }) {
  return h(
    "dl.cards",
    {},
    card(
      "Can be spent",
      money(balance.available),
      balance.free_credits ? `${money(balance.free_credits)} of it free` : null,
    ),
    card("Held for running edits", money(balance.held)),
    card(
      "Spent this month",
      money(me.spent_this_month),
      account.monthly_cap === null ? "no cap" : `of ${money(account.monthly_cap)}`,
    ),
    card("Price of an edit", money(me.price_per_edit)),
  );
}

function drawn({ days, total }) {
  const ended = total.completed + total.failed;
  const of = (field, percentile) => (day) => day[field]?.[percentile] ?? null;
  return [
    h(
      "dl.cards",
      {},
      card("Edits", count(total.edits), `${count(total.completed)} completed`),
      card("Cost", money(total.cost)),
      card(
        "Usual time",
        total.latency_ms?.p50 ? seconds(total.latency_ms.p50 / 1000) : "–",
        total.latency_ms?.p95 ? `95 % within ${seconds(total.latency_ms.p95 / 1000)}` : null,
      ),
      card(
        "Failed",
        ended ? `${((100 * total.failed) / ended).toFixed(1)} %` : "–",
        `${count(total.failed)} failed, ${count(total.cancelled)} cancelled`,
      ),
    ),
    h(
      "div.charts",
      {},
      chart("Edits by day", {
        days,
        kind: "bars",
        show: (value) => count(Math.round(value * 10) / 10),
        series: [
          { name: "completed", of: (day) => day.completed, tone: "tone-a" },
          { name: "failed", of: (day) => day.failed, tone: "tone-bad" },
          { name: "cancelled", of: (day) => day.cancelled, tone: "tone-off" },
        ],
      }),
      chart("Time to the picture", {
        days,
        kind: "lines",
        show: (value) => (value ? seconds(value / 1000) : "0"),
        series: [
          { name: "half within", of: of("latency_ms", "p50"), tone: "tone-a" },
          { name: "95 %", of: of("latency_ms", "p95"), tone: "tone-b" },
          { name: "99 %", of: of("latency_ms", "p99"), tone: "tone-c" },
        ],
      }),
      chart("Cost by day", {
        days,
        kind: "bars",
        show: (value) => money(value),
        series: [{ name: "cost", of: (day) => day.cost, tone: "tone-a" }],
      }),
    ),
  ];
}
