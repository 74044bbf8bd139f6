// What an edit takes, as docs/api/edits.md says it, with one line of help each. A test compares this with the server's schema.

import { toJson } from "../shared/json.js";
import { lorasOf } from "./loras.js";

const RATIOS = [
  "match_input_image",
  "1:1",
  "16:9",
  "21:9",
  "3:2",
  "2:3",
  "4:5",
  "5:4",
  "3:4",
  "4:3",
  "9:16",
  "9:21",
];

/**
 * `kind` says which control; `start` is what the page begins with where that isn't the API's default; `read` brings the
 * ways to spell a value down to one, and gives null for what is none.
 */
export const PARAMETERS = [
  {
    name: "loras",
    label: "LoRAs",
    kind: "loras",
    default: [],
    read: lorasOf,
    most: 4,
    strongest: 4,
    group: "main",
    help: "Styles and subjects added to the model for this edit. A strength below 0 takes one away.",
  },
  {
    name: "aspect_ratio",
    label: "Shape",
    kind: "ratio",
    default: "match_input_image",
    options: RATIOS,
    group: "main",
    help: "The shape of the result. Matching keeps that of your photo.",
  },
  {
    name: "num_images",
    label: "Pictures",
    kind: "count",
    default: 1,
    min: 1,
    max: 4,
    group: "main",
    help: "How many to choose from, each with the next seed. Each takes and costs as much as one alone.",
  },
  {
    name: "num_inference_steps",
    label: "Steps",
    kind: "range",
    default: 35,
    min: 4,
    max: 50,
    step: 1,
    group: "main",
    help: "How many times the picture is refined. Twice the steps take twice as long.",
  },
  {
    name: "guidance",
    label: "Guidance",
    kind: "range",
    default: 7,
    min: 0,
    max: 10,
    step: 0.1,
    group: "main",
    help: "How firmly to follow the prompt. At 0 the photo stays nearly as it is.",
  },
  {
    name: "seed",
    label: "Seed",
    kind: "seed",
    default: null,
    min: -1, // as good as none: draws one
    max: 9223372036854775807n,
    group: "main",
    help: "The same seed and settings give the same picture again. Empty draws a new one each time.",
  },
  {
    name: "output_format",
    label: "Format",
    kind: "choice",
    default: "png",
    options: ["png", "jpg", "webp"],
    group: "output",
    help: "png loses nothing; jpg and webp are much smaller.",
  },
  {
    name: "output_quality",
    label: "Quality",
    kind: "range",
    default: 90,
    min: 0,
    max: 100,
    step: 1,
    group: "output",
    help: "Of jpg and webp: higher is finer and larger. png ignores it.",
  },
  {
    name: "acceleration",
    label: "Acceleration",
    kind: "choice",
    default: "none",
    options: ["none", "regular", "high"],
    group: "output",
    help: "Leaves out work that changes little. None is exact.",
  },
  {
    name: "previews",
    label: "Previews",
    kind: "range",
    default: 0,
    min: 0,
    max: 50,
    step: 1,
    start: 2,
    group: "more",
    help: "Show an early look after every so many steps. 0 shows none.",
  },
  {
    name: "disable_safety_checker",
    label: "No safety check",
    kind: "switch",
    default: false,
    group: "more",
    help: "Skips the check of the finished picture, if this server has one and allows it.",
  },
  {
    name: "priority",
    label: "Priority",
    kind: "range",
    default: 0,
    min: -2,
    max: 2,
    step: 1,
    group: "more",
    help: "Where it stands in the queue. Above 0 needs an admin key.",
  },
  {
    name: "deadline_s",
    label: "Deadline",
    kind: "number",
    default: null,
    above: 0,
    unit: "seconds",
    group: "more",
    help: "Refused at once if it can't be done in so many seconds. Empty waits as long as it takes.",
  },
  {
    name: "webhook_url",
    label: "Webhook",
    kind: "text",
    default: null,
    placeholder: "https://…",
    group: "more",
    help: "An address that is told when this edit has ended.",
  },
];

export const BY_NAME = new Map(PARAMETERS.map((parameter) => [parameter.name, parameter]));

export function startValues() {
  return Object.fromEntries(PARAMETERS.map(({ name, start, default: value }) => [name, start ?? value]));
}

/** How many pictures a request asks for. What is no such number, as from the JSON view, is for the server to refuse. */
export function countIn({ num_images: count = 1 }) {
  const { min, max } = BY_NAME.get("num_images");
  return Number.isInteger(count) && count >= min && count <= max ? count : 1;
}

/** A request as it was before there could be several pictures, where it asks for one: what was kept then is the same. */
export function withoutNeedless(request) {
  return Object.fromEntries(Object.entries(request).filter(([name, value]) => name !== "num_images" || value !== 1));
}

/** By what part the server lets a photo miss a shape that is its own. */
export const RATIO_OFF_MAX = 0.07;

/** The values of `aspect_ratio` that leave a photo's shape as it is. */
export function ratiosLike({ width, height }) {
  return RATIOS.filter((ratio) => {
    const [across, down] = ratio.split(":").map(Number);
    return !down || Math.abs((width * down) / (height * across) - 1) <= RATIO_OFF_MAX;
  });
}

/** Whether two values of a parameter ask for the same. */
export function isEqual(one, other) {
  return one === other || (typeof one === "object" && typeof other === "object" && toJson(one) === toJson(other));
}

/** "4 to 50, default 35" and the like. */
export function rangeInWords({ kind, min, max, above, unit, default: value, options, most, strongest }) {
  const unset = value === null ? "empty" : value;
  if (kind === "range" || kind === "count") return `${min} to ${max} · default ${unset}`;
  if (kind === "seed") return `0 to 2⁶³ − 1 · −1 or empty: random`;
  if (kind === "number") return `above ${above} ${unit} · default none`;
  if (kind === "loras") return `up to ${most} · strength −${strongest} to ${strongest}, not 0 · default none`;
  if (kind === "switch") return `on or off · default ${value ? "on" : "off"}`;
  if (options) return `default ${unset === "match_input_image" ? "match" : unset}`;
  return "default none";
}
