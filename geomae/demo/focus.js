// Run when a button has been pressed that goes, or a text sent whose box goes: keyboard and screen reader would begin at
// the page's top again. Gradio shows what comes in its place a moment after it says that it is done.
() => {
  const look = (triesLeft) => {
    const isLost = !document.activeElement || document.activeElement === document.body;
    const next = [...document.querySelectorAll('.geo-game-button')].find((button) => button.offsetParent);
    if (isLost && next) next.focus({ preventScroll: true });
    else if (triesLeft) setTimeout(look, 50, triesLeft - 1);
  };
  look(20);
}
