// Compiles the contracts into DIR: NAME.boc64 (base64 of the code's bag of cells) and NAME.hash (its
// representation hash). Usage: node compile.mjs DIR
import { readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { runTolkCompiler } from "@ton/tolk-js";

const out = process.argv[2];
for (const name of ["deposit", "local-giver"]) {
  const result = await runTolkCompiler({
    entrypointFileName: `${name}.tolk`,
    fsReadCallback: (path) => readFileSync(join(import.meta.dirname, path), "utf8"),
  });
  if (result.status === "error") {
    console.error(result.message);
    process.exit(1);
  }
  writeFileSync(join(out, `${name}.boc64`), result.codeBoc64 + "\n");
  writeFileSync(join(out, `${name}.hash`), result.codeHashHex.toLowerCase() + "\n");
}
