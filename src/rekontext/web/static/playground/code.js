// Code for exactly one request, in five ways and two modes. Pure: values in, text out.
//
// A file of the user's own is read from the working directory by its name, and so is a mask; an example is downloaded
// first; a link is sent as it is. The key comes from the environment, so it is never in what is copied. Of several
// pictures each is a file with its number in its name.

import { SLUG } from "../shared/api.js";
import { toJson } from "../shared/json.js";
import { lorasAsText } from "./loras.js";
import { BY_NAME, countIn, isEqual } from "./parameters.js";

export const LANGUAGES = [
  { id: "curl", label: "curl", file: "edit.sh" },
  { id: "python", label: "Python", file: "edit.py" },
  { id: "sdk", label: "Segmind SDK", file: "edit_sdk.py" },
  { id: "openai", label: "OpenAI SDK", file: "edit_openai.py" },
  { id: "javascript", label: "JavaScript", file: "edit.mjs" },
];
export const KEY_VARIABLE = "REKONTEXT_KEY";

const ALWAYS = new Set(["aspect_ratio", "num_inference_steps", "guidance", "output_format"]);
const FOLLOWED_ONLY = new Set(["previews"]); // these samples read no event stream

/** What the code sends beside the photo: the essentials, and whatever isn't the default. */
export function sent(request) {
  const entries = Object.entries(request).filter(([name, value]) => {
    if (value === null || value === undefined || FOLLOWED_ONLY.has(name)) return false;
    return ALWAYS.has(name) || !BY_NAME.has(name) || !isEqual(BY_NAME.get(name).default, value);
  });
  return Object.fromEntries(entries);
}

/**
 * @param {object} request  values by parameter name, prompt included
 * @param {?object} photo   as in photo.js; null writes code for photo.jpg
 * @param {?string} mask    name of the file that says what may change; it lies where the code is
 * @param {string} host     such as http://127.0.0.1:8000, without a slash at the end
 * @param {boolean} isAsync submit and collect (v2), or wait (v1)
 */
export function code(language, { request, photo, mask = null, host, isAsync }) {
  const fields = sent(request);
  const { options, default: usual } = BY_NAME.get("output_format");
  // It becomes a part of the code as it is, and who made a link can have put any text there.
  const suffix = options.includes(request.output_format) ? request.output_format : usual;
  const about = {
    fields,
    host,
    isAsync,
    out: `edited.${suffix}`,
    count: countIn(request),
    outOf: (number) => `edited-${number}.${suffix}`,
    link: photo?.url ?? null,
    name: photo?.name ?? "photo.jpg",
    download: photo?.url ? null : (photo?.origin ?? null),
    mask,
  };
  return { curl, python, sdk, openai, javascript }[language](about);
}

function shell(text) {
  return `'${String(text).replaceAll("'", `'\\''`)}'`;
}

/** A file as curl's -F sends it. */
function formFile(field, name) {
  return `-F ${shell(`${field}=@"${name.replaceAll(/[\\"]/g, "\\$&")}"`)}`;
}

function curl({ fields, host, isAsync, out, count, outOf, link, name, download, mask }) {
  const lines = [];
  if (download) lines.push(`curl -sS -o ${shell(name)} ${shell(download)}`, "");
  const isJson = link && !mask;
  const body = isJson
    ? ["-H 'content-type: application/json'", `-d ${shell(toJson({ input_image: link, ...fields }, 2))}`]
    : [
        link ? `--form-string ${shell(`input_image=${link}`)}` : formFile("input_image", name),
        ...(mask ? [formFile("mask_image", mask)] : []),
        ...Object.entries(asText(fields)).map(([key, value]) => `--form-string ${shell(`${key}=${value}`)}`),
      ];
  const join = (first, rest) => [first, ...rest].join(" \\\n  ");
  const key = `-H "x-api-key: $${KEY_VARIABLE}"`;
  const numbers = Array.from({ length: count }, (_, at) => at + 1).join(" ");
  const urlOfOne = `printf '%s' "$result" | grep -oE '"url": *"[^"]*"' | sed -n "$n"'s/.*"\\(.*\\)"/\\1/p'`;
  if (!isAsync && count > 1) {
    const call = join(`curl -sS --fail-with-body ${host}/v1/${SLUG}`, [key, "-H 'accept: application/json'", ...body]);
    lines.push(
      `if result=$(${call}); then`,
      "  # Each picture is a data URI.",
      `  for n in ${numbers}; do`,
      `    ${urlOfOne} | sed 's/.*,//' | base64 --decode > ${outOf("$n")}`,
      "  done",
      "else",
      `  printf '%s\\n' "$result" >&2`,
      "  false",
      "fi",
    );
    return lines.join("\n");
  }
  if (!isAsync) {
    lines.push(
      join(`curl -sS --fail-with-body ${host}/v1/${SLUG}`, [key, "-H 'accept: image/*'", ...body, `-o ${out}`]),
    );
    return lines.join("\n");
  }
  // Without an "exit", which would close the terminal that this is pasted into.
  const caught = (name, call) => `${name}=$(${call}) || printf '%s\\n' "$${name}" >&2`;
  const text = (field) => `sed -n 's/.*"${field}": *"\\([^"]*\\)".*/\\1/p'`;
  lines.push(
    "# Hand the edit in; from here on it can't be lost.",
    caught("job", join(`curl -sS --fail-with-body ${host}/v2/${SLUG}`, [key, ...body])),
    `id=$(printf '%s' "$job" | ${text("request_id")})`,
    "",
    "# Ask every second until it has ended.",
    `while curl -sS ${host}/v2/requests/$id/status ${key} | grep -qE '"status": *"(QUEUED|PROCESSING)"'; do`,
    "  sleep 1",
    "done",
    "",
    count > 1 ? "# Collect the pictures." : "# Collect the picture.",
    caught("result", `curl -sS --fail-with-body ${host}/v2/requests/$id ${key}`),
  );
  if (count > 1) {
    const fetched = `curl -sS --fail-with-body "$(${urlOfOne})" -o ${outOf("$n")}`;
    lines.push(`for n in ${numbers}; do`, `  ${fetched}`, "done");
  } else {
    lines.push(`curl -sS --fail-with-body "$(printf '%s' "$result" | ${text("output")})" -o ${out}`);
  }
  return lines.join("\n");
}

function pythonValue(value) {
  if (value === true) return "True";
  if (value === false) return "False";
  if (Array.isArray(value)) return `[${value.map(pythonValue).join(", ")}]`;
  if (value === null) return "None";
  if (typeof value === "object") {
    const entries = Object.entries(value).map(([name, each]) => `${JSON.stringify(name)}: ${pythonValue(each)}`);
    return `{${entries.join(", ")}}`;
  }
  return toJson(value);
}

function pythonFields(fields, indent) {
  return Object.entries(fields).map(([name, value]) => `${indent}${JSON.stringify(name)}: ${pythonValue(value)},`);
}

function pythonRead(variable, name) {
  return `with open(${JSON.stringify(name)}, "rb") as file:\n    ${variable} = file.read()`;
}

/** A loop over several pictures; `read` makes the bytes of one that is called `name`. */
function pythonSaved(pictures, name, read, outOf) {
  return [
    `for number, ${name} in enumerate(${pictures}, 1):`,
    `    with open(f${JSON.stringify(outOf("{number}"))}, "wb") as file:`,
    `        file.write(${read})`,
  ];
}

function python({ fields, host, isAsync, out, count, outOf, link, name, download, mask }) {
  const url = `${host}/${isAsync ? "v2" : "v1"}/${SLUG}`;
  const isInline = !isAsync && count > 1;
  const lines = [...(isInline ? ["import base64"] : []), "import os"];
  if (isAsync) lines.push("import time");
  lines.push("", "import requests", "", `headers = {"x-api-key": os.environ["${KEY_VARIABLE}"]}`);
  const isJson = link && !mask;
  const values = { ...(link ? { input_image: link } : {}), ...(isJson ? fields : asText(fields)) };
  lines.push("edit = {", ...pythonFields(values, "    "), "}");
  if (!link) {
    lines.push(
      download
        ? `photo = requests.get(${JSON.stringify(download)}, timeout=60).content`
        : pythonRead("photo", name),
    );
  }
  if (mask) lines.push(pythonRead("mask", mask));
  lines.push("");
  const files = [
    ...(link ? [] : [`"input_image": (${JSON.stringify(name)}, photo)`]),
    ...(mask ? [`"mask_image": (${JSON.stringify(mask)}, mask)`] : []),
  ];
  const body = isJson ? "json=edit" : `data=edit, files={${files.join(", ")}}`;
  if (!isAsync) {
    lines.push(
      `answer = requests.post(`,
      `    ${JSON.stringify(url)},`,
      `    headers={**headers, "accept": "${isInline ? "application/json" : "image/*"}"},`,
      `    ${body},`,
      "    timeout=600,",
      ")",
      "if not answer.ok:",
      "    raise SystemExit(answer.text)",
      ...(isInline
        ? [
            "# Each picture is a data URI.",
            ...pythonSaved(
              `answer.json()["images"]`,
              "image",
              `base64.b64decode(image["url"].partition(",")[2])`,
              outOf,
            ),
          ]
        : [`with open(${JSON.stringify(out)}, "wb") as file:`, "    file.write(answer.content)"]),
      `print("seed", answer.headers["x-seed-value"])`,
    );
    return lines.join("\n");
  }
  lines.push(
    `answer = requests.post(${JSON.stringify(url)}, headers=headers, ${body}, timeout=60)`,
    "if not answer.ok:",
    "    raise SystemExit(answer.text)",
    "job = answer.json()",
    "",
    `while requests.get(job["status_url"], headers=headers, timeout=60).json()["status"] in ("QUEUED", "PROCESSING"):`,
    "    time.sleep(1)",
    "",
    `result = requests.get(job["response_url"], headers=headers, timeout=60).json()`,
    `if result["status"] != "COMPLETED":`,
    `    raise SystemExit(result["error"])`,
    ...(count > 1
      ? pythonSaved(`result["images"]`, "image", `requests.get(image["url"], timeout=60).content`, outOf)
      : [
          `with open(${JSON.stringify(out)}, "wb") as file:`,
          `    file.write(requests.get(result["output"], timeout=60).content)`,
        ]),
    `print("seed", result["seed"])`,
  );
  return lines.join("\n");
}

/** A form carries text: booleans are spelled as JSON spells them, LoRAs in one line or as JSON. */
function asText(fields) {
  const text = ([name, value]) => {
    if (typeof value === "boolean") return [name, String(value)];
    if (typeof value !== "object") return [name, value];
    const loras = BY_NAME.get(name)?.read?.(value);
    return [name, loras ? lorasAsText(loras) : toJson(value)];
  };
  return Object.fromEntries(Object.entries(fields).map(text));
}

/** Its `run_sync` asks for an answer that is a picture, so several are waited for by `run`. */
function sdk({ fields, host, isAsync, out, count, outOf, link, name, download, mask }) {
  const lines = [];
  const isQueued = isAsync || count > 1;
  if (!link || mask) lines.push("import base64");
  lines.push("import os");
  if (isQueued || download) lines.push("import urllib.request");
  lines.push("", "from segmind import SegmindClient", "");
  lines.push(`client = SegmindClient(api_key=os.environ["${KEY_VARIABLE}"], base_url="${host}/v1", timeout=600)`);
  if (!link) {
    lines.push(
      download
        ? `photo = urllib.request.urlopen(${JSON.stringify(download)}).read()`
        : pythonRead("photo", name),
    );
  }
  if (mask) lines.push(pythonRead("mask", mask));
  const image = link ? JSON.stringify(link) : "base64.b64encode(photo).decode()";
  lines.push(
    "",
    `answer = client.${isQueued ? "run" : "run_sync"}(`,
    `    ${JSON.stringify(SLUG)},`,
    `    input_image=${image},`,
  );
  if (mask) lines.push("    mask_image=base64.b64encode(mask).decode(),");
  for (const [field, value] of Object.entries(fields)) lines.push(`    ${field}=${pythonValue(value)},`);
  lines.push(")");
  if (count > 1) {
    lines.push(
      `for number, image in enumerate(answer["images"], 1):`,
      `    urllib.request.urlretrieve(image["url"], f${JSON.stringify(outOf("{number}"))})`,
      `print("seed", answer["seed"])`,
    );
  } else if (isAsync) {
    lines.push(`urllib.request.urlretrieve(answer["output"], ${JSON.stringify(out)})`, `print("seed", answer["seed"])`);
  } else {
    lines.push(
      `with open(${JSON.stringify(out)}, "wb") as file:`,
      "    file.write(answer.content)",
      `print("seed", answer.headers["x-seed-value"])`,
    );
  }
  return lines.join("\n");
}

/** Its client waits in any case: where others collect, it is told of the end by a stream, which has one picture. */
function openai({ fields, host, isAsync, out, count, outOf, link, name, download, mask }) {
  const { prompt, output_format: format, output_quality: quality, num_images: several, ...rest } = fields;
  const isStreamed = isAsync && count === 1;
  const more = { ...rest, ...(rest.loras && { loras: asText(rest).loras }) }; // its client would take a list apart
  const url = link ?? download;
  const lines = ["import base64", ...(mask ? ["import io"] : []), "import os"];
  if (url) lines.push("import urllib.request");
  lines.push("", "from openai import OpenAI", ...(mask ? ["from PIL import Image, ImageOps"] : []), "");
  lines.push(`client = OpenAI(api_key=os.environ["${KEY_VARIABLE}"], base_url="${host}/v1")`);
  lines.push(
    url
      ? `photo = urllib.request.urlopen(${JSON.stringify(url)}).read()`
      : pythonRead("photo", name),
  );
  if (mask) {
    lines.push(
      "# Here the transparent parts of a mask are those that may change.",
      `levels = Image.open(${JSON.stringify(mask)}).convert("L")`,
      `clear = Image.new("RGBA", levels.size)`,
      "clear.putalpha(ImageOps.invert(levels))",
      "mask = io.BytesIO()",
      `clear.save(mask, "PNG")`,
    );
  }
  lines.push(
    "",
    `${isStreamed ? "events" : "answer"} = client.images.edit(`,
    `    model=${JSON.stringify(SLUG)},`,
    "    image=photo,",
    ...(mask ? [`    mask=("mask.png", mask.getvalue()),`] : []),
    `    prompt=${pythonValue(prompt)},`,
  );
  if (format) lines.push(`    output_format=${JSON.stringify(format === "jpg" ? "jpeg" : format)},`);
  if (quality !== undefined) lines.push(`    output_compression=${pythonValue(quality)},`);
  if (several !== undefined) lines.push(`    n=${pythonValue(several)},`);
  if (isStreamed) lines.push("    stream=True,");
  if (Object.keys(more).length) lines.push("    extra_body={", ...pythonFields(more, "        "), "    },");
  lines.push(")");
  if (count > 1) {
    lines.push(...pythonSaved("answer.data", "picture", "base64.b64decode(picture.b64_json)", outOf));
    return lines.join("\n");
  }
  if (isStreamed)
    lines.push("for event in events:", "    picture = event.b64_json  # the last one is the edited picture");
  else lines.push("picture = answer.data[0].b64_json");
  lines.push(`with open(${JSON.stringify(out)}, "wb") as file:`, "    file.write(base64.b64decode(picture))");
  return lines.join("\n");
}

function javascript({ fields, host, isAsync, out, count, outOf, link, name, download, mask }) {
  const url = `${host}/${isAsync ? "v2" : "v1"}/${SLUG}`;
  const files = (!link && !download) || mask ? "readFile, writeFile" : "writeFile";
  const isJson = link && !mask;
  const lines = [`import { ${files} } from "node:fs/promises";`, ""];
  lines.push(`const headers = { "x-api-key": process.env.${KEY_VARIABLE} };`);
  const isTooLarge = Object.values(fields).some((value) => typeof value === "bigint");
  if (isJson) {
    const edit = toJson({ input_image: link, ...fields }, 2);
    // As a number of JavaScript's such a seed would be rounded.
    lines.push(`const edit = ${isTooLarge ? JSON.stringify(edit) : edit};`);
  } else {
    if (!link) {
      lines.push(
        download
          ? `const photo = await (await fetch(${JSON.stringify(download)})).blob();`
          : `const photo = new Blob([await readFile(${JSON.stringify(name)})]);`,
      );
    }
    if (mask) lines.push(`const mask = new Blob([await readFile(${JSON.stringify(mask)})]);`);
    lines.push(
      "const edit = new FormData();",
      link
        ? `edit.append("input_image", ${JSON.stringify(link)});`
        : `edit.append("input_image", photo, ${JSON.stringify(name)});`,
    );
    if (mask) lines.push(`edit.append("mask_image", mask, ${JSON.stringify(mask)});`);
    for (const [field, value] of Object.entries(asText(fields))) {
      lines.push(`edit.append(${JSON.stringify(field)}, ${JSON.stringify(String(value))});`);
    }
  }
  const more = isAsync ? "" : `, accept: "${count > 1 ? "application/json" : "image/*"}"`;
  const saved = [
    "for (const [at, { url }] of result.images.entries()) {",
    "  const picture = await fetch(url);",
    `  await writeFile(\`${outOf("${at + 1}")}\`, Buffer.from(await picture.arrayBuffer()));`,
    "}",
  ];
  const type = isJson ? `, "content-type": "application/json"` : "";
  const all = more || type ? `{ ...headers${more}${type} }` : "headers";
  lines.push(
    "",
    `const answer = await fetch(${JSON.stringify(url)}, {`,
    `  method: "POST",`,
    `  headers: ${all},`,
    `  body: ${isJson && !isTooLarge ? "JSON.stringify(edit)" : "edit"},`,
    "});",
    "if (!answer.ok) throw new Error(await answer.text());",
  );
  if (!isAsync) {
    lines.push(
      ...(count > 1
        ? ["const result = await answer.json();", "// Each picture is a data URI.", ...saved]
        : [`await writeFile(${JSON.stringify(out)}, Buffer.from(await answer.arrayBuffer()));`]),
      `console.log("seed", answer.headers.get("x-seed-value"));`,
    );
    return lines.join("\n");
  }
  lines.push(
    "const job = await answer.json();",
    "",
    "const ask = async (url) => (await fetch(url, { headers })).json();",
    `while (["QUEUED", "PROCESSING"].includes((await ask(job.status_url)).status)) {`,
    "  await new Promise((resolve) => setTimeout(resolve, 1000));",
    "}",
    "",
    "const result = await ask(job.response_url);",
    `if (result.status !== "COMPLETED") throw new Error(result.error);`,
    ...(count > 1
      ? saved
      : [
          "const picture = await fetch(result.output);",
          `await writeFile(${JSON.stringify(out)}, Buffer.from(await picture.arrayBuffer()));`,
        ]),
    `console.log("seed", result.seed);`,
  );
  return lines.join("\n");
}
