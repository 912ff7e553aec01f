// What a bundle says about itself, and its files, each checked against the hash in the manifest.

import { sha256 } from "./checksum.js";
import { BundleError } from "./errors.js";

/**
 * Fetch and check a bundle's manifest. Throws `BundleError` when there is none, or when it is of another
 * version, or takes something else than text.
 */
export async function readManifest(folder) {
  const manifest = parse(await fetchBytes(folder, "manifest.json"));
  if (manifest?.format !== "fedkron-bundle") throw new BundleError("manifest.json is not that of a bundle.");
  if (manifest.version !== 2) {
    throw new BundleError(`The bundle has version ${manifest.version}, this page knows 2: export it again.`);
  }
  const complete = manifest.files && manifest.input?.kind && Array.isArray(manifest.adapters) && manifest.contract;
  if (!complete) throw new BundleError("manifest.json is damaged: copy the bundle again.");
  if (manifest.input.kind !== "text") {
    const kind = manifest.input.kind.replace("_", " ");
    throw new BundleError(`This page asks texts, the bundle is for another input (${kind}): use fedkron predict.`);
  }
  return manifest;
}

/**
 * A file of the bundle as bytes. Throws `BundleError` when it is missing, not listed, lies outside of the
 * bundle, or is not what was exported.
 */
export async function readFile(folder, manifest, name) {
  if (name.startsWith("/") || name.includes("\\") || name.split("/").includes("..")) {
    throw new BundleError(`File ${name} lies outside of the bundle.`);
  }
  const expected = manifest.files[name];
  if (!expected) throw new BundleError(`${name} is not among the bundle's files: copy the bundle again.`);
  const bytes = await fetchBytes(folder, name);
  if ((await sha256(bytes)) !== expected) {
    throw new BundleError(`${name} is not what was exported (its SHA-256 differs): copy the bundle again.`);
  }
  return bytes;
}

async function fetchBytes(folder, name) {
  const address = new URL(name.split("/").map(encodeURIComponent).join("/"), folder);
  let response;
  try {
    response = await fetch(address);
  } catch {
    throw new BundleError(`${name} could not be fetched: is the server still running?`);
  }
  if (!response.ok) throw new BundleError(`${name} is missing in the bundle (the server said ${response.status}).`);
  return new Uint8Array(await response.arrayBuffer());
}

function parse(bytes) {
  try {
    return JSON.parse(new TextDecoder().decode(bytes));
  } catch {
    throw new BundleError("manifest.json is not JSON: copy the bundle again.");
  }
}
