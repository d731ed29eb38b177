// The copy buttons beside code show a picture only; a screen reader needs a word.
window.addEventListener("load", () => {
  document.querySelectorAll(".copybtn:not([aria-label])").forEach((button) => button.setAttribute("aria-label", "Copy this code"));
});
