/** A request as curl and as Python, to be run as it is. */

export function asCurl(url, spec) {
  const fields = Object.entries(spec).map(([name, value]) => `    ${JSON.stringify(name)}: ${JSON.stringify(value)}`);
  const body = `{\n${fields.join(",\n")}\n  }`.replaceAll("'", "'\\''");
  return [
    `export MASKFLEET_API_URL=${url}`,
    "export MASKFLEET_API_KEY=…   # your key",
    "",
    'curl -s "$MASKFLEET_API_URL/v1/jobs" \\',
    '  -H "Authorization: Bearer $MASKFLEET_API_KEY" \\',
    '  -H "Content-Type: application/json" -H "Prefer: wait=60" \\',
    `  -d '${body}'`,
  ].join("\n");
}

export function asPython(spec) {
  const { image, ...fields } = spec;
  const given = Object.entries({ image_id: image.image_id, ...fields, held_s: 60 });
  return [
    "import os",
    "",
    "from maskfleet import Client",
    "",
    'with Client(os.environ["MASKFLEET_API_URL"], os.environ["MASKFLEET_API_KEY"]) as client:',
    "    job = client.submit(",
    ...given.map(([name, value]) => `        ${name}=${literal(value)},`),
    "    )",
    "    job = client.wait(job.id)",
    "for mask in job.inline.masks:",
    "    print(mask.area, mask.predicted_iou, mask.bbox)",
  ].join("\n");
}

/** Write a JSON value as Python does. */
function literal(value) {
  if (value === true) return "True";
  if (value === false) return "False";
  if (value === null) return "None";
  if (Array.isArray(value)) return `[${value.map(literal).join(", ")}]`;
  if (typeof value === "object") return `{${Object.entries(value).map(([key, one]) => `${JSON.stringify(key)}: ${literal(one)}`).join(", ")}}`;
  return JSON.stringify(value);
}
