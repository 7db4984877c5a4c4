// What nobody sees of a panel is drawn, and its runs are looked at, less often.
const UNSEEN = 20000; // ms between two drawings of what is not in view

// `draw` at once while the element is in view, else at most every few seconds: what nobody sees costs the training that
// it shows, but a screen reader may be there. `again` has everything drawn anew, where errors are caught and said.
function inView(element, draw, again) {
  let [seen, last, later] = [true, -Infinity, 0];
  new IntersectionObserver(([entry]) => {
    seen = entry.isIntersecting;
    if (seen && later) again();
  }, { rootMargin: "100px" }).observe(element);
  const wake = () => {
    later = 0;
    again();
  };
  return () => {
    const rest = last + UNSEEN - performance.now();
    if (!seen && rest > 0) {
      later ||= setTimeout(wake, rest);
      return;
    }
    clearTimeout(later);
    [later, last] = [0, performance.now()];
    draw();
  };
}

// The kernel looks at the runs of a panel less often while nobody sees it.
function sayWhetherSeen(model, root) {
  const view = Math.random().toString(36).slice(2);
  let [inside, said] = [true, null];
  const say = () => {
    const value = inside && !document.hidden;
    try {
      if (value !== said) model.send({ type: "seen", view, value });
      said = value;
    } catch {
      // The kernel has gone, and looks no more.
    }
  };
  const observer = new IntersectionObserver((entries) => {
    inside = entries[entries.length - 1].isIntersecting;
    say();
  });
  observer.observe(root);
  document.addEventListener("visibilitychange", say);
  return () => {
    observer.disconnect();
    document.removeEventListener("visibilitychange", say);
    inside = false;
    say();
  };
}
