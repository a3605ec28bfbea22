// Makes echarts.min.js.gz of what `npm install` has put into node_modules.

import { createHash } from "node:crypto";
import { readFileSync, writeFileSync } from "node:fs";
import { gzipSync } from "node:zlib";

import { build } from "esbuild";

const text = (path) => readFileSync(path, "utf8").trim();
const version = JSON.parse(text("node_modules/echarts/package.json")).version;

// The licences ask to go along with every copy, and each page is one.
const notices = [
  `Apache ECharts ${version}, a selection; http://www.apache.org/licenses/LICENSE-2.0`,
  text("node_modules/echarts/NOTICE"),
  text("node_modules/echarts/licenses/LICENSE-d3"),
  `ZRender: ${text("node_modules/zrender/LICENSE")}`,
];

const { outputFiles } = await build({
  entryPoints: ["echarts.js"],
  bundle: true,
  minify: true,
  format: "iife",
  target: "es2020",
  legalComments: "none",
  banner: { js: `/*!\n${notices.join("\n\n")}\n*/` },
  write: false,
});
const code = outputFiles[0].contents;
const packed = gzipSync(code, { level: 9 });
writeFileSync("echarts.min.js.gz", packed);

const checksum = (bytes) => createHash("sha256").update(bytes).digest("hex");
console.log(`${checksum(code)}  echarts.min.js, ${code.length} bytes, in ${packed.length}`);
