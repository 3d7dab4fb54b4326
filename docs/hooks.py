"""What the site takes from outside docs/: pages of the repository, its results, an example, the table of settings.

Every page is written to be read in the repository as well: its links lead from file to file there. On the site they
lead to the same pages; a link to a file that is not on the site, source code say, becomes its text.
"""

import os
import re
from pathlib import Path, PurePosixPath

import griffe
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]
BROUGHT = ("CHANGELOG.md", "CONTRIBUTING.md", "bench/results/adaptation.md", "bench/results/adaptation/*.png")
LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^)#\s:]+)(#[^)\s]*)?\)")
SOURCE = re.compile(r"<!-- (\S+\.py) -->")
CODE = re.compile(r"(^ *```.*?^ *```)", re.MULTILINE | re.DOTALL)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    for pattern in BROUGHT:
        for path in ROOT.glob(pattern):
            name = path.relative_to(ROOT).as_posix()
            files.append(File.generated(config, name, abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    here = PurePosixPath(Path(page.file.abs_src_path).relative_to(ROOT).as_posix())
    docs = PurePosixPath(Path(config.docs_dir).relative_to(ROOT).as_posix())

    def on_the_site(link: re.Match) -> str:
        picture, text, target, anchor = link.groups()
        path = os.path.normpath(here.parent / target)
        name = os.path.relpath(path, docs) if PurePosixPath(path).is_relative_to(docs) else path
        if files.get_file_from_path(name):
            return f"{picture}[{text}]({os.path.relpath(name, PurePosixPath(page.file.src_uri).parent)}{anchor or ''})"
        return text if (ROOT / path).exists() else link[0]  # mkdocs warns of what is nowhere

    if "<!-- settings -->" in markdown:
        markdown = markdown.replace("<!-- settings -->", settings())
    markdown = SOURCE.sub(lambda file: f"```python\n{(ROOT / file[1]).read_text()}```", markdown)
    parts = CODE.split(markdown)
    parts[::2] = [LINK.sub(on_the_site, text) for text in parts[::2]]
    return "".join(parts)


KINDS = {
    "bool": "yes or no",
    "int": "whole number",
    "float": "number",
    "str": "name",
    "Path": "path",
    "tuple[int, int]": "two whole numbers",
    "tuple[int, ...]": "whole numbers",
    "tuple[float, float]": "two numbers",
    "Classes": "built-in list or file",
    "tuple[str, ...]": "names",
    "tuple[str | None, ...]": "names",
    "tuple[Path | None, ...]": "paths",
}
DEFAULTS = {
    "CITYSCAPES": "cityscapes",
}


def settings() -> str:
    """A table for each group of settings: flag, values, default, meaning."""
    module, lines = griffe.load("simfast.config.settings", search_paths=[ROOT]), []
    for group in (one for one in module.classes.values() if not one.is_alias):
        lines += ["", f"### {group.name}", "", group.docstring.value, ""]
        lines += ["| setting | values | default | meaning |", "|---|---|---|---|"]
        for field in group.attributes.values():
            kind = str(field.annotation).removesuffix(" | None")
            several = re.fullmatch(r"tuple\[(\w+), \.\.\.\]", kind)
            kind = several[1] if several and several[1] in module.attributes else kind
            kind = str(module[kind].value) if kind in module.attributes else kind
            choices = re.fullmatch(r"Literal\[(.*)\]", kind)
            kind = re.sub("[\"']", "", choices[1]) if choices else KINDS[kind]
            flag = field.name.replace("_", "-")
            flags = f"`--{flag}`, `--no-{flag}`" if kind == KINDS["bool"] else f"`--{flag}`"
            default = re.sub(r"\((.*),\)", r"\1", str(field.value)).strip("\"'").replace("None", "")
            default = DEFAULTS.get(default, default)
            cells = (flags, kind, default, " ".join(field.docstring.value.split()))
            lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines)
