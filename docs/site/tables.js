// Large tables can be sorted by each column, and filtered by words and by whose models they show.
document.addEventListener("DOMContentLoaded", function () {
  function number(text) {
    var found = text.replace(/,/g, "").match(/-?\d+(\.\d+)?(e-?\d+)?/);
    return found ? parseFloat(found[0]) : null;
  }
  function compare(a, b, sign) {
    var x = number(a), y = number(b);
    if (x === null && y === null) return sign * a.localeCompare(b);
    if (x === null) return 1; // what is not known stands last either way
    if (y === null) return -1;
    return sign * (x - y);
  }
  document.querySelectorAll(".md-typeset table").forEach(function (table) {
    var body = table.tBodies[0];
    if (!body || body.rows.length < 8 || !table.tHead) return;
    if (table.tHead.rows[0].cells.length < 5) return;
    var heads = Array.from(table.tHead.rows[0].cells);
    heads.forEach(function (head, column) {
      var button = document.createElement("button");
      while (head.firstChild) button.appendChild(head.firstChild);
      button.type = "button";
      head.appendChild(button);
      head.setAttribute("aria-sort", "none");
      button.addEventListener("click", function () {
        var down = head.getAttribute("aria-sort") !== "descending";
        heads.forEach(function (other) { other.setAttribute("aria-sort", "none"); });
        head.setAttribute("aria-sort", down ? "descending" : "ascending");
        Array.from(body.rows)
          .sort(function (a, b) {
            return compare(a.cells[column].textContent, b.cells[column].textContent, down ? -1 : 1);
          })
          .forEach(function (row) { body.appendChild(row); });
      });
    });
    var field = document.createElement("input");
    field.type = "search";
    field.className = "filter";
    field.placeholder = "rows with these words";
    field.setAttribute("aria-label", "show the rows of this table that have these words");
    // Where some models are published ones (in italics) and some are ours, either can be left out.
    var rows = Array.from(body.rows);
    function published(row) { return row.cells[0].querySelector("em") !== null; }
    var choice = null;
    if (rows.some(published) && !rows.every(published)) {
      choice = document.createElement("select");
      choice.className = "filter";
      choice.setAttribute("aria-label", "which models this table shows");
      ["all models", "ours", "published"].forEach(function (text) {
        choice.add(new Option(text, text));
      });
    }
    function filter() {
      var words = field.value.toLowerCase().split(/\s+/).filter(Boolean);
      rows.forEach(function (row) {
        var text = row.textContent.toLowerCase();
        var kind = published(row) ? "published" : "ours";
        var chosen = !choice || choice.selectedIndex === 0 || choice.value === kind;
        row.hidden = !chosen || !words.every(function (word) { return text.includes(word); });
      });
    }
    var place = table.closest(".md-typeset__scrollwrap") || table;
    [field, choice].filter(Boolean).forEach(function (control) {
      control.addEventListener("input", filter);
      place.parentNode.insertBefore(control, place);
    });
  });
});
