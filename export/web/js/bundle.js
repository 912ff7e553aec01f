// A bundle in the browser: open it, ask it, and change its adapter from call to call. No page is needed.
//
//     const bundle = await Bundle.open(new URL("bundle/", location.href));
//     const { label, probability } = await bundle.predict("Who wrote Hamlet ?", "trec");

import { InferenceSession, Tensor } from "onnxruntime-web/wasm";
import { readAdapter } from "./adapter.js";
import { AdapterError, BundleError, TaskError } from "./errors.js";
import { readFile, readManifest } from "./manifest.js";
import { makeTokenizer } from "./tokenizer.js";

const GRAPH = "unmerged.onnx";
const WEIGHTS = "base.bin";
const TOKENIZER = "tokenizer.json";

/** The adapter that a bundle was exported with. */
export const DEFAULT = "default";

export class Bundle {
  #folder;
  #session;
  #tokenize;
  #adapters = new Map();

  constructor(folder, manifest, session, tokenize) {
    this.#folder = folder;
    this.manifest = manifest;
    this.#session = session;
    this.#tokenize = tokenize;
    for (const { name } of manifest.adapters) this.#adapters.set(name, null);
  }

  /**
   * Open the bundle at a URL that ends in a slash. `report` receives a sentence per step.
   *
   * Throws `BundleError` when it is incomplete, damaged, of another version or not for texts.
   */
  static async open(folder, report = () => {}) {
    report("Reading the manifest …");
    const manifest = await readManifest(folder);
    report("Fetching and checking the base …");
    const [tokenizer, graph, weights] = await Promise.all(
      [TOKENIZER, GRAPH, WEIGHTS].map((name) => readFile(folder, manifest, name)),
    );
    report("Starting the base …");
    const tokenize = makeTokenizer(new TextDecoder().decode(tokenizer), manifest.input);
    const session = await orRefused(
      InferenceSession.create(graph, {
        executionProviders: ["wasm"],
        externalData: [{ path: WEIGHTS, data: weights }],
      }),
    );
    return new Bundle(folder, manifest, session, tokenize);
  }

  /** Names of all adapters, the bundle's and those added. */
  get adapters() {
    return [...this.#adapters.keys()];
  }

  /** Whether an adapter was fetched and checked already, so that switching to it costs nothing. */
  isLoaded(name) {
    return Boolean(this.#adapters.get(name));
  }

  /**
   * An adapter by name: `{ name, nbytes, inputs, tasks }`; fetched and checked at the first call.
   *
   * Throws `TaskError` for an unknown one, and like `add`.
   */
  async adapter(name = DEFAULT) {
    if (!this.#adapters.has(name)) {
      throw new TaskError(`There is no adapter “${name}”: choose one of ${this.adapters.join(", ")}.`);
    }
    const loaded = this.#adapters.get(name);
    if (loaded) return loaded;
    const { file } = this.manifest.adapters.find((entry) => entry.name === name);
    return this.add(name, await readFile(this.#folder, this.manifest, file), file);
  }

  /**
   * Use an adapter file under this name from now on; an adapter that has it already is replaced.
   *
   * Throws `AdapterError` for a damaged file, `ContractError` for one of another base or slot, and changes
   * nothing then.
   */
  async add(name, file, source = name) {
    const adapter = await readAdapter(file, this.manifest, source);
    this.#checkInputs(adapter, source);
    this.#adapters.set(name, adapter);
    return adapter;
  }

  /**
   * Classify a text: `{ label, probability, labels, probabilities }`, the last two in order of the labels.
   *
   * Throws `TaskError` for an unknown task, one of choices, or a text without tokens.
   */
  async predict(text, task, adapter = DEFAULT) {
    const { inputs, labels, head } = await this.#task(task, adapter, "classification");
    return answer(await this.#logits([text], inputs, head), labels);
  }

  /**
   * Pick one of several choices, which takes the place of the question's first `_`, or follows it.
   * Returns and throws like `predict`.
   */
  async choose(question, choices, task, adapter = DEFAULT) {
    const { inputs, head } = await this.#task(task, adapter, "multiple_choice");
    if (!choices.length) throw new TaskError("The question has no choices: give two or more.");
    return answer(await this.#logits(choiceTexts(question, choices), inputs, head), choices);
  }

  async #task(name, adapterName, kind) {
    const { inputs, tasks } = await this.adapter(adapterName);
    const task = tasks.get(name);
    if (!task) {
      throw new TaskError(`Adapter “${adapterName}” has no task “${name}”: it has ${[...tasks.keys()].join(", ")}.`);
    }
    if (task.kind !== kind) throw new TaskError(`Task “${name}” is ${task.kind}, not ${kind}.`);
    return { inputs, ...task };
  }

  async #logits(texts, inputs, head) {
    const { ids, mask, shape } = this.#tokenize(texts);
    const [idsName, maskName] = this.manifest.input.names;
    const tokens = { [idsName]: new Tensor("int64", ids, shape), [maskName]: new Tensor("int64", mask, shape) };
    const { logits } = await orRefused(this.#session.run({ ...tokens, ...inputs, head }));
    return logits.data;
  }

  /** What the graph takes besides texts and a head has to be what the adapter holds. */
  #checkInputs({ inputs }, source) {
    const others = [...this.manifest.input.names, "head"];
    const taken = this.#session.inputMetadata.filter(({ name }) => !others.includes(name));
    const fits = ({ name, type, shape }) =>
      inputs[name]?.type === type && (typeof shape[1] === "string" || inputs[name].dims[1] === shape[1]);
    if (taken.length !== Object.keys(inputs).length || !taken.every(fits)) {
      throw new AdapterError(`${source} holds other tensors than this graph takes: export the adapter again.`);
    }
  }
}

/** What ONNX Runtime throws, as a sentence of this page. */
async function orRefused(running) {
  try {
    return await running;
  } catch (error) {
    throw new BundleError(`The graph does not run in this browser: ${error.message ?? error}`);
  }
}

/** One text per choice to be scored. */
function choiceTexts(question, choices) {
  if (!question.includes("_")) return choices.map((choice) => `${question} ${choice}`);
  return choices.map((choice) => question.replace("_", () => choice));
}

/** Softmax. */
function answer(logits, labels) {
  const largest = Math.max(...logits);
  const exponentials = Array.from(logits, (logit) => Math.exp(logit - largest));
  const total = exponentials.reduce((sum, value) => sum + value, 0);
  const probabilities = exponentials.map((value) => value / total);
  const best = probabilities.indexOf(Math.max(...probabilities));
  // Not a number is no answer: an adapter may overflow a graph without being damaged.
  if (best < 0) throw new BundleError("The graph gave values that are not finite: export the bundle again.");
  return { label: labels[best], probability: probabilities[best], labels, probabilities };
}
