"""What mkdocs is told beside mkdocs.yml: pages from files elsewhere, reference pages, formulas.

Nothing here imports dynzoo or Keras: names are read from the source.
"""

from __future__ import annotations

import ast
import base64
import json
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# Files of the repository that are pages of the site: where they are, and what they become.
ELSEWHERE = {
    "CONTRIBUTING.md": "extending.md",
    "CHANGELOG.md": "changelog.md",
    "SECURITY.md": "security.md",
    "benchmarks/README.md": "measurements.md",
    **{
        f"pretrained/{place.parent.name}/README.md": f"presets/{place.parent.name}.md"
        for place in sorted((ROOT / "pretrained").glob("*/README.md"))
    },
}
MODULES = {
    "dynzoo": "what a user calls first",
    "attacks": "attacks, and ensembles of them",
    "augmentation": "augmentation on the device",
    "callbacks": "callbacks for `fit`",
    "certificates": "bounds, radii, smoothing, prediction sets",
    "constraints": "constraints on kernels",
    "convert": "networks from PyTorch and ONNX",
    "corruptions": "common corruptions",
    "data": "data sets and folders of images",
    "export": "graphs for other runtimes",
    "integrators": "one-step methods",
    "layers": "the systems as layers",
    "losses": "losses",
    "metrics": "metrics",
    "models": "architectures",
    "operators": "linear maps",
    "optimizers": "optimizers",
    "regularizers": "regularizers",
    "robustness": "evaluation and reports",
    "testing": "checks of a layer of one's own",
    "training": "recipes and runs",
    "tuning": "search",
}
_LINK = re.compile(r"(!?\[[^\]]*\]\()([^)\s]+)(\))")
_CODE = re.compile(r"^```.*?^```$|`[^`\n]*`", re.MULTILINE | re.DOTALL)
_NOTEBOOKS = "notebooks/"  # in docs: each is a page, with its pictures beside it
_MATH = re.compile(r'<(span|div) class="arithmatex">(.*?)</\1>', re.DOTALL)


def on_config(config):
    """Puts the reference, a page a module, where the navigation has a place for it."""
    pages = [{name: f"reference/{name}.md"} for name in MODULES]
    for section in config.nav:
        if isinstance(section, dict) and "Reference" in section:
            section["Reference"] = pages
        if isinstance(section, dict) and "Results" in section:
            cards = [page for page in ELSEWHERE.values() if page.startswith("presets/")]
            section["Results"] = [*section["Results"], "measurements.md", *cards]
    return config


def on_files(files, config):
    """Adds the pages that are made: of files elsewhere, and of names."""
    from mkdocs.structure.files import File

    for source, page in ELSEWHERE.items():
        text = (ROOT / source).read_text(encoding="utf-8")
        files.append(File.generated(config, page, content=relinked(text, source, page)))
    for module in MODULES:
        page = f"reference/{module}.md"
        files.append(File.generated(config, page, content=reference(module)))
    for path in sorted((ROOT / "docs" / _NOTEBOOKS).glob("*.ipynb")):
        text, pictures = notebook_page(json.loads(path.read_text(encoding="utf-8")), path.stem)
        files.append(File.generated(config, f"{_NOTEBOOKS}{path.stem}.md", content=text))
        for name, data in pictures.items():
            files.append(File.generated(config, f"{_NOTEBOOKS}{name}", content=data))
    return files


def on_page_markdown(markdown, page, config, files):
    """Links out of `docs/` lead to the pages that those files became."""
    source = f"docs/{page.file.src_uri}"
    if not (ROOT / source).is_file():
        return markdown
    return relinked(markdown, source, page.file.src_uri)


def on_post_page(output, page, config):
    """Formulas as MathML, which browsers show without a script from elsewhere."""
    from latex2mathml.converter import convert

    def formula(match):
        text = match[2].strip()
        block = text.startswith(r"\[")
        tex = text[2:-2].replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&")
        return convert(tex, display="block" if block else "inline")

    return _MATH.sub(formula, output)


def relinked(text: str, source: str, page: str) -> str:
    """The text of a file with its links as a page of the site needs them.

    Args:
        text: Markdown.
        source: the file's path in the repository.
        page: the page's path in the site.
    """

    def link(match):
        target, hash_mark, anchor = match[2].partition("#")
        if not target or "://" in target or target.startswith("mailto:"):
            return match[0]
        file = (ROOT / source).parent.joinpath(target).resolve()
        try:
            inside = file.relative_to(ROOT).as_posix()
        except ValueError:
            return match[0]
        if inside.startswith("docs/"):
            place = page_of(inside.removeprefix("docs/"))
        elif inside in ELSEWHERE:
            place = ELSEWHERE[inside]
        else:  # a file that is no page: its name, without a link
            return match[1].lstrip("!")[1:-2] or inside
        up = "../" * page.count("/")
        return f"{match[1]}{up}{place}{hash_mark}{anchor}{match[3]}"

    parts, last = [], 0
    for code in _CODE.finditer(text):
        parts += [_LINK.sub(link, text[last : code.start()]), code[0]]
        last = code.end()
    return "".join([*parts, _LINK.sub(link, text[last:])])


def page_of(place: str) -> str:
    """The page that a file of `docs/` became: of a notebook, its Markdown."""
    if place.startswith(_NOTEBOOKS) and place.endswith(".ipynb"):
        return place.removesuffix(".ipynb") + ".md"
    return place


def notebook_page(notebook: dict, name: str) -> tuple[str, dict[str, bytes]]:
    """A notebook as Markdown, and its pictures by their names.

    Args:
        notebook: the content of an `.ipynb` file.
        name: that of the file, without its ending.
    """
    parts, pictures = [], {}
    for cell in notebook["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(relinked(source, f"docs/{_NOTEBOOKS}{name}.ipynb", f"{_NOTEBOOKS}{name}"))
            continue
        parts.append(f"```python\n{source}\n```")
        for output in cell["outputs"]:
            shown = output.get("data", {})
            if "image/png" in shown:
                picture = f"{name}_{len(pictures) + 1}.png"
                pictures[picture] = base64.b64decode("".join(shown["image/png"]))
                parts.append(f"![{cell['metadata']['alt']}]({picture})")
            elif "text/html" in shown:  # a table of ours: in the look of the page
                parts.append(re.sub(r' class="[^"]*"', "", "".join(shown["text/html"])))
            else:
                text = output.get("text") or shown["text/plain"]
                parts.append(f"```text\n{''.join(text).rstrip()}\n```")
    parts.append(f"[This page as a notebook for Jupyter]({name}.ipynb)")
    return "\n\n".join(parts) + "\n", pictures


def reference(module: str) -> str:
    """The reference page of a public module, in Markdown for mkdocstrings."""
    title = "dynzoo" if module == "dynzoo" else f"dynzoo.{module}"
    lines = [f"# {title}", "", f"{MODULES[module][:1].upper()}{MODULES[module][1:]}.", ""]
    for name, place in public(module).items():
        lines += [f"::: {place}", "    options:", f'      heading: "{name}"', ""]
    return "\n".join(lines)


def public(module: str) -> dict[str, str]:
    """Public name -> dotted path of its definition, for a module of dynzoo's."""
    if module == "dynzoo":
        tree = ast.parse((ROOT / "dynzoo" / "__init__.py").read_text(encoding="utf-8"))
        table = next(ast.literal_eval(n.value) for n in tree.body if isinstance(n, ast.AnnAssign))
        pairs = {name: place for name, place in table.items() if place[1] is not None}
        return {name: _definition(*place) for name, place in sorted(pairs.items())}
    names = _listed(f"dynzoo.{module}")
    return {name: _definition(f"dynzoo.{module}", name) for name in names}


def _file(dotted: str) -> Path:
    path = ROOT.joinpath(*dotted.split("."))
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def _listed(dotted: str) -> list[str]:
    """The classes and functions that a module names: in `__all__`, a lazy table, or by imports."""
    names: set[str] = set()
    listed = False
    for node in ast.parse(_file(dotted).read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign):
            target = ast.unparse(node.targets[0]).strip("()")
            if target == "__getattr__, __all__" and isinstance(node.value, ast.Call):
                return _code(dotted, ast.literal_eval(node.value.args[1]))
            if target == "__all__" and isinstance(node.value, (ast.List, ast.Tuple)):
                listed = True
                names = {e.value for e in node.value.elts if isinstance(e, ast.Constant)}
        elif isinstance(node, ast.ImportFrom) and not listed:
            names |= {alias.name for alias in node.names if alias.asname == alias.name}
        elif isinstance(node, (ast.ClassDef, ast.FunctionDef)) and not listed:
            names |= set() if node.name.startswith("_") else {node.name}
    return _code(dotted, names)


def _code(dotted: str, names) -> list[str]:
    return [name for name in sorted(names) if _definition(dotted, name)]


def _definition(dotted: str, name: str) -> str:
    """Where a class or function is written; empty for what is neither."""
    tree = ast.parse(_file(dotted).read_text(encoding="utf-8"))
    for node in tree.body:
        if isinstance(node, (ast.ClassDef, ast.FunctionDef)) and node.name == name:
            return f"{dotted}.{name}"
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("dynzoo"):
            for alias in node.names:
                if (alias.asname or alias.name) == name:
                    return _definition(node.module, alias.name)
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == name:
            if isinstance(node.value, ast.Attribute):  # of a module beside it
                return _definition(f"{dotted}.{ast.unparse(node.value.value)}", node.value.attr)
        if isinstance(node, ast.Assign) and "__getattr__" in ast.unparse(node.targets[0]):
            table = ast.literal_eval(node.value.args[1])
            if name in table:
                return _definition(f"{dotted}.{table[name]}", name)
    return ""
