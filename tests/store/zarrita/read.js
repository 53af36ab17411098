// node read.js RUN FOLDER ARRAY...: the bytes of each array of a run, as zarrita reads them, into FOLDER/0, FOLDER/1, ...
import { writeFileSync } from "node:fs";
import { join } from "node:path";

import { Float16Array } from "@petamoriken/float16";
import FileSystemStore from "@zarrita/storage/fs";
import * as zarr from "zarrita";

globalThis.Float16Array ??= Float16Array; // node has one of its own from version 24 on

const [run, folder, ...names] = process.argv.slice(2);
const root = zarr.root(new FileSystemStore(run));
for (const [number, name] of names.entries()) {
  const array = await zarr.open.v3(root.resolve(name), { kind: "array" });
  const { data } = await zarr.get(array);
  const bytes = new Uint8Array(data.buffer, data.byteOffset, data.byteLength);
  writeFileSync(join(folder, `${number}`), bytes);
}
