// An answer as a sentence and bars, the most probable label first.

const SHOWN = 10;
const element = (id) => document.getElementById(id);

/** Show an answer of a bundle. */
export function showAnswer({ label, labels, probabilities }) {
  const ranked = labels
    .map((name, index) => ({ name, probability: probabilities[index] }))
    .sort((a, b) => b.probability - a.probability);
  element("answer").textContent = label;
  element("bars").replaceChildren(...ranked.slice(0, SHOWN).map(bar));
  element("nothing").textContent = ranked.length > SHOWN ? `and ${ranked.length - SHOWN} less probable ones` : "";
}

/** Show that there is no answer, and why. */
export function showNoAnswer(reason) {
  element("answer").textContent = "";
  element("bars").replaceChildren();
  element("nothing").textContent = reason;
}

function bar({ name, probability }) {
  const item = document.createElement("li");
  const label = Object.assign(document.createElement("span"), { className: "label", textContent: name });
  const share = Object.assign(document.createElement("span"), {
    className: "share",
    textContent: `${(100 * probability).toFixed(1)} %`,
  });
  const track = Object.assign(document.createElement("span"), { className: "track", ariaHidden: "true" });
  const filled = document.createElement("span");
  filled.style.inlineSize = `${100 * probability}%`;
  track.append(filled);
  item.append(label, share, track);
  return item;
}
