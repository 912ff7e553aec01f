// A device adapter file: checked as a whole before anything of it is used.

import { Tensor } from "onnxruntime-web/wasm";
import { sha256 } from "./checksum.js";
import { AdapterError, ContractError } from "./errors.js";
import { fromFloat16, readSafetensors } from "./safetensors.js";

const TYPES = { F32: "float32", F16: "float16", I8: "int8", U8: "uint8" };
const [FORMAT, VERSION] = ["fedkron-device-adapter", 1];

/**
 * Read an adapter for the bundle with this manifest: `{ name, nbytes, inputs, tasks }`, where `inputs` are
 * the graph's inputs by name, (1, size) each, and `tasks` maps a task's name to its `kind`, `labels` and
 * `head`, a float32 tensor (1, outputs, hidden + 1). `source` names the file in messages.
 *
 * Throws `AdapterError` for a file that is damaged or holds what no adapter holds, `ContractError` for one
 * that was made for another base or another slot: it might have the right size, run, and answer nonsense.
 */
export async function readAdapter(file, manifest, source) {
  const { text, metadata, tensors } = orDamaged(source, () => {
    const content = readSafetensors(file);
    const text = content.metadata.fedkron ?? "{}";
    return { text, metadata: JSON.parse(text), tensors: content.tensors };
  });
  if (metadata.format !== FORMAT || metadata.version !== VERSION) {
    throw new AdapterError(
      `${source} is no adapter for devices (its format is ${metadata.format}, version ${metadata.version}; known ` +
        `here is ${FORMAT}, ${VERSION}): choose a file from the folder adapters of a bundle.`,
    );
  }
  if ((await checksum(text, tensors)) !== metadata.checksum) {
    throw new AdapterError(`${source} is damaged or was altered (its checksum differs): copy it again.`);
  }
  checkContract(metadata, manifest, source);
  return orDamaged(source, () => {
    const tasks = readTasks(metadata, tensors, manifest.hidden_size);
    const inputs = readInputs(tensors);
    return Object.freeze({ name: metadata.adapter, nbytes: file.length, inputs, tasks });
  });
}

function checkContract(metadata, manifest, source) {
  for (const key of ["contract", "slot_hash"]) {
    if (metadata[key] !== manifest[key]) {
      throw new ContractError(
        `${source} belongs to another base, or was exported with other settings: its ${key} is ` +
          `${shortened(metadata[key])}, this bundle's ${shortened(manifest[key])}. It is not used.`,
      );
    }
  }
}

/** SHA-256 over the metadata without its checksum, and the tensors' bytes in order of their names. */
function checksum(text, tensors) {
  // Within a string of JSON the quotes would be escaped, so this finds the key and nothing else.
  const others = new TextEncoder().encode(text.replace(/"checksum":"[0-9a-f]{64}",/, ""));
  const parts = [others, ...[...tensors.keys()].sort().map((name) => tensors.get(name).bytes)];
  const joined = new Uint8Array(parts.reduce((total, bytes) => total + bytes.length, 0));
  let position = 0;
  for (const bytes of parts) {
    joined.set(bytes, position);
    position += bytes.length;
  }
  return sha256(joined);
}

function readTasks(metadata, tensors, hidden) {
  const tasks = new Map();
  metadata.tasks.forEach(({ name, kind, labels }, number) => {
    const head = tensors.get(`head.${number}`);
    const [outputs, width] = head.shape;
    // A choice has one score and no label.
    const possible = { classification: [0, outputs], multiple_choice: outputs === 1 ? [0] : [] }[kind];
    if (head.shape.length !== 2 || !outputs || width !== hidden + 1 || !possible?.includes(labels.length)) {
      throw new Error(`the head of task ${name} (${kind}, ${labels.length} labels) is ${head.shape.join(" × ")}`);
    }
    tasks.set(name, {
      kind,
      labels: labels.length ? labels : Array.from({ length: outputs }, (_, output) => `${output}`),
      head: new Tensor("float32", numbers(head), [1, outputs, width]),
    });
  });
  if (!tasks.size) throw new Error("it has no task");
  return tasks;
}

function readInputs(tensors) {
  const inputs = {};
  for (const [name, tensor] of tensors) {
    if (name.startsWith("head.")) continue;
    if (tensor.dtype.startsWith("F")) numbers(tensor);
    inputs[name] = new Tensor(TYPES[tensor.dtype], tensor.data, [1, ...tensor.shape]);
  }
  return inputs;
}

/** A tensor of float32 or float16 as float32. */
function numbers({ dtype, data }) {
  const values = dtype === "F16" ? fromFloat16(data) : data;
  if (!values.every(Number.isFinite)) throw new Error("it holds values that are not finite");
  return values;
}

function orDamaged(source, read) {
  try {
    return read();
  } catch (error) {
    throw new AdapterError(`${source} is damaged, or no adapter (${error.message}): copy it again.`);
  }
}

function shortened(hash) {
  return `${String(hash).slice(0, 12)}…`;
}
