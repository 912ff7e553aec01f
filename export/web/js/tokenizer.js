// From texts to token ids and mask, as in training: special tokens, cut to the bundle's length, padded.
//
// What the library for JavaScript does otherwise than the one for Python is put right here, but for two rare
// cases: which of two equally probable splits a Unigram model takes, and U+FEFF in byte-level models.

import { Tokenizer } from "@huggingface/tokenizers";
import { TaskError } from "./errors.js";

/**
 * A function from texts to `{ ids, mask, shape }`: int64 in row-major order, shape (texts, longest), with
 * padding on the right.
 *
 * `json` is the text of a tokenizer.json, `input` the manifest's. The function throws `TaskError` for a text
 * without tokens.
 */
export function makeTokenizer(json, input) {
  const encode = makeEncoder(json, input);
  return (texts) => {
    const rows = texts.map(encode);
    const empty = rows.findIndex((row) => !row.length);
    if (empty >= 0) throw new TaskError(`The text “${texts[empty]}” has no tokens: write something else.`);
    const longest = Math.max(...rows.map((row) => row.length));
    const ids = new BigInt64Array(rows.length * longest).fill(BigInt(input.pad_id));
    const mask = new BigInt64Array(ids.length);
    rows.forEach((row, number) => {
      ids.set(row.map(BigInt), number * longest);
      mask.fill(1n, number * longest, number * longest + row.length);
    });
    return { ids, mask, shape: [rows.length, longest] };
  };
}

/** A function from a text to its token ids, without padding. */
export function makeEncoder(json, { max_length, truncation_side }) {
  const description = JSON.parse(json, corrected);
  // A tokenizer of whole words looks for its unknown token in a second file that a bundle does not need.
  const tokenizer = new Tokenizer(description, { unk_token: description.model.unk_token });
  const finish = (tokens) => tokenizer.post_processor?.(tokens, null, true).tokens ?? tokens;
  const id = (token) => tokenizer.token_to_id(token) ?? tokenizer.model.unk_token_id;
  const room = max_length - finish([]).length;
  // JavaScript knows the sigma at a word's end, the library that the base was trained with does not.
  const lowercases = /"type":"Lowercase"|"lowercase":true/.test(JSON.stringify(description.normalizer));
  const prepared = lowercases ? (text) => text.replaceAll("Σ", "σ") : (text) => text;
  return (text) => {
    const tokens = tokenizer.tokenize(prepared(text)).filter((token) => id(token) !== undefined);
    const start = truncation_side === "left" ? Math.max(0, tokens.length - room) : 0;
    return finish(tokens.slice(start, start + room)).map(id);
  };
}

/** To the library for JavaScript only ASCII letters are letters between white space. */
function corrected(_, value) {
  if (value?.type !== "Whitespace") return value;
  const letters = "\\p{Alphabetic}\\p{M}\\p{Nd}\\p{Pc}\\u200c\\u200d";
  return { type: "Split", pattern: { Regex: `[${letters}]+|[^${letters}\\s]+` }, behavior: "Removed", invert: true };
}
