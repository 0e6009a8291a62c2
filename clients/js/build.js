// Makes the two files of dist/ of the one source. It is no minifier: bundlers and gzip do the rest.

/** What stands in dist/, by name, for this source and this version. */
export function build(source, version) {
  const lines = source.split("\n").map(line => line.trim()).filter(line => line && !line.startsWith("//"));
  const code = lines.join("\n");
  const banner = `/* Moongate's client for browsers, ${version}. MIT OR Apache-2.0 */\n`;
  return {
    "moongate.js": `${banner}${code}\n`,
    "moongate.classic.js": `${banner}var Moongate = (function () {\n"use strict";\n${code.replace("export function", "function")}\nreturn Moongate;\n})();\n`,
  };
}

// A browser that tests this has no files.
if (typeof process === "object") {
  const { readFileSync, writeFileSync } = await import("node:fs");
  const file = name => new URL(name, import.meta.url);
  const { version } = JSON.parse(readFileSync(file("package.json")));
  for (const [name, text] of Object.entries(build(readFileSync(file("src/moongate.js"), "utf8"), version))) {
    writeFileSync(file(`dist/${name}`), text);
  }
}
