// SHA-256 with what every browser has.

import { BundleError } from "./errors.js";

/**
 * SHA-256 of bytes, in hexadecimal.
 *
 * Throws `BundleError` on a page that came over plain http from another machine: browsers keep their
 * cryptography from it, and nothing here runs unchecked.
 */
export async function sha256(bytes) {
  if (!globalThis.crypto?.subtle) {
    throw new BundleError("This page cannot check files: open it over https, or from http://localhost.");
  }
  const digest = new Uint8Array(await crypto.subtle.digest("SHA-256", bytes));
  return Array.from(digest, (byte) => byte.toString(16).padStart(2, "0")).join("");
}
