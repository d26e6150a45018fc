/** Lays js/ out as ComfyUI serves it, with stand-ins for the two host modules that it may import. */

import { cp, mkdir, mkdtemp, readdir, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after } from "node:test";
import { fileURLToPath, pathToFileURL } from "node:url";

const JS = fileURLToPath(new URL("../../js/", import.meta.url));

/** @returns {Promise<{files: string[], load: (name: string) => Promise<any>, host: object}>} */
export async function loadPack() {
  const root = await mkdtemp(join(tmpdir(), "longcat-js-"));
  after(() => rm(root, { recursive: true }));
  const folder = join(root, "extensions", "ComfyUI-LongCat");
  await mkdir(join(root, "scripts"), { recursive: true });
  await writeFile(join(root, "package.json"), '{ "type": "module" }');
  await writeFile(join(root, "scripts", "app.js"), APP);
  await writeFile(join(root, "scripts", "api.js"), API);
  await cp(JS, folder, { recursive: true });
  const load = (name) => import(pathToFileURL(join(folder, name)).href);
  const scripts = (name) => import(pathToFileURL(join(root, "scripts", name)).href);
  const files = (await readdir(folder)).filter((name) => name.endsWith(".js"));
  return { files, load, host: { ...(await scripts("app.js")), ...(await scripts("api.js")) } };
}

const APP = `
export const extensions = [];
export const app = {
  rootGraph: { nodes: new Map(), getNodeById(id) { return this.nodes.get(String(id)) } },
  registerExtension(extension) { extensions.push(extension) },
};`;

const API = `
export const api = new EventTarget();
export const send = (type, detail) => api.dispatchEvent(Object.assign(new Event(type), { detail }));`;
