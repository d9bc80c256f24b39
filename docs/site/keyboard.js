// What scrolls sideways can be reached and scrolled with the keyboard, and the search has a name.
document.addEventListener("DOMContentLoaded", function () {
  document.querySelectorAll(".md-search[role=dialog]").forEach(function (dialog) {
    dialog.setAttribute("aria-label", "search");
  });
  function reachable() {
    var wide = "pre > code, .md-typeset__scrollwrap, .md-typeset__table, p:has(> math), math";
    document.querySelectorAll(wide).forEach(function (element) {
      if (element.scrollWidth > element.clientWidth) element.tabIndex = 0;
      else element.removeAttribute("tabindex");
    });
  }
  reachable();
  window.addEventListener("resize", reachable);
  window.addEventListener("load", reachable);
});
