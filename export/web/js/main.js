// The page: what is chosen and typed goes to the bundle, what it answers is shown.

import { showAnswer, showNoAnswer } from "./answer.js";
import { Bundle } from "./bundle.js";
import { Stopwatch, milliseconds } from "./stopwatch.js";

const element = (id) => document.getElementById(id);
const adapterList = element("adapter");
const taskList = element("task");
const fileInput = element("file");

let bundle;
let stopwatch = new Stopwatch();
let work = Promise.resolve();

/** An event handler that waits for its turn: one thing at a time happens to the bundle. */
function inTurn(handle) {
  return (event) => {
    event?.preventDefault();
    work = work
      .then(() => {
        element("error").hidden = true;
        return handle(event);
      })
      .catch(showError);
  };
}

async function open() {
  try {
    bundle = await Bundle.open(new URL("bundle/", document.baseURI), showStep);
  } catch (error) {
    showStep("The bundle could not be opened.");
    throw error;
  } finally {
    element("loading").hidden = true;
  }
  showStep(describe(bundle.manifest));
  fillList(adapterList, bundle.adapters);
  element("controls").disabled = fileInput.disabled = false;
  await switchAdapter();
}

/** Use the chosen adapter; if it can't be used nothing can be asked, so that no other one answers in its name. */
async function switchAdapter() {
  const task = taskList.value;
  const asked = hasAnswer();
  forbidAsking("This adapter is not in use.");
  const how = bundle.isLoaded(adapterList.value) ? "" : ", fetched and checked";
  const begin = performance.now();
  const { nbytes, tasks } = await bundle.adapter(adapterList.value);
  element("switch").textContent = milliseconds(performance.now() - begin) + how;
  element("size").textContent = `${(nbytes / 1000).toFixed(0)} kB`;
  fillList(taskList, [...tasks.keys()]);
  if (tasks.has(task)) taskList.value = task;
  await switchTask(asked);
}

/** Show what this task asks for; what was answered before is answered again. */
async function switchTask(asked = hasAnswer()) {
  forbidAsking("Nothing was asked yet.");
  const { tasks } = await bundle.adapter(adapterList.value);
  const hasChoices = tasks.get(taskList.value).kind === "multiple_choice";
  element("choices-field").hidden = !hasChoices;
  element("choices").required = hasChoices;
  stopwatch = new Stopwatch();
  showLatency();
  allowAsking(true);
  if (asked && element("form").checkValidity()) await ask();
}

async function ask(times = 1) {
  try {
    let answer;
    for (let time = 0; time < times; time++) answer = await stopwatch.time(answerOnce);
    showAnswer(answer);
    showLatency();
  } catch (error) {
    showNoAnswer("There is no answer.");
    throw error;
  }
}

function answerOnce() {
  const [text, task, adapter] = [element("text").value, taskList.value, adapterList.value];
  if (!element("choices").required) return bundle.predict(text, task, adapter);
  const choices = element("choices").value.split("\n").filter((choice) => choice.trim());
  return bundle.choose(text, choices, task, adapter);
}

/** Add the adapter in the chosen file and use it; the one in use stays if the file can't be used. */
async function addAdapter() {
  const [file] = fileInput.files;
  if (!file) return;
  fileInput.value = "";
  try {
    await bundle.add(file.name, new Uint8Array(await file.arrayBuffer()));
  } catch (error) {
    element("added").textContent = `${file.name} was refused, ${adapterList.value} stays in use.`;
    throw error;
  }
  fillList(adapterList, bundle.adapters);
  adapterList.value = file.name;
  await switchAdapter();
  element("added").textContent = `${file.name} was checked and is in use.`;
}

function describe({ base, slot, input, adapters }) {
  const count = adapters.length === 1 ? "1 adapter" : `${adapters.length} adapters`;
  return `${base.name} · ${count} · ${slot.encoding} slot · texts of up to ${input.max_length} tokens`;
}

function hasAnswer() {
  return element("answer").textContent !== "";
}

function allowAsking(allowed) {
  for (const id of ["ask", "repeat", "task"]) element(id).disabled = !allowed;
}

function forbidAsking(reason) {
  allowAsking(false);
  showNoAnswer(reason);
}

function showStep(step) {
  element("about").textContent = step;
}

function showLatency() {
  const { last, median, count } = stopwatch;
  element("last").textContent = count ? milliseconds(last) : "–";
  element("median").textContent = count ? `${milliseconds(median)} (${count} ×)` : "–";
}

function showError(error) {
  console.error(error);
  element("error").textContent = error.message;
  element("error").hidden = false;
  element("error").scrollIntoView({ block: "nearest" });
}

function fillList(list, names) {
  list.replaceChildren(...names.map((name) => new Option(name, name)));
}

adapterList.addEventListener("change", inTurn(switchAdapter));
taskList.addEventListener("change", inTurn(() => switchTask()));
fileInput.addEventListener("change", inTurn(addAdapter));
element("form").addEventListener("submit", inTurn(({ submitter }) => ask(Number(submitter.value))));
element("form").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) element("form").requestSubmit(element("ask"));
});
inTurn(open)();
