// Before anything is changed a person says so once more, and may say why.

import { setText } from "./dom.js";

const dialog = document.getElementById("asking"), why = document.getElementById("why"), yes = document.getElementById("asking-yes");
const wrong = document.getElementById("asking-wrong");
let asked = null;

// `act` does it, given why, and may throw an error with a sentence; `done` hears that it was done.
export function askPerson({ title, text, yes: label, act, done }) {
  asked = { act, done };
  setText(document.getElementById("asking-title"), title);
  setText(document.getElementById("asking-text"), text);
  setText(yes, label);
  setText(wrong, "");
  why.value = "";
  yes.disabled = false;
  dialog.showModal();
  why.focus();
}

dialog.querySelector("form").addEventListener("submit", async (event) => {
  event.preventDefault(); // the dialog stays until it is done
  const { act, done } = asked;
  yes.disabled = true;
  try {
    await act(why.value.trim());
    dialog.close();
    done();
  } catch (error) {
    setText(wrong, error.message);
  } finally {
    yes.disabled = false;
  }
});
document.getElementById("asking-no").addEventListener("click", () => dialog.close());
