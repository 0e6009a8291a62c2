"""Whether the links of the documents lead somewhere: scripts/check-deploy runs it.

Links of Markdown to files and to headings, as GitHub makes anchors of them, and paths of documents that other files
name. Every page for users is there in both languages, stays in its own, and is linked from the README.
"""

import os
import re
import subprocess
import sys
from pathlib import Path
from urllib.parse import unquote

ROOT = Path(__file__).resolve().parents[2]
CHINESE = ".zh-CN.md"
# Also what is not committed yet.
LIST = ["git", "-C", ROOT, "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
NAMES = subprocess.run(LIST, capture_output=True, text=True, check=True).stdout.split("\0")
FILES = [ROOT / name for name in NAMES if (ROOT / name).is_file()]
PAGES = [file for file in FILES if file.suffix == ".md"]
# What users read; the rest is for those who work on it, and English.
MANUAL = [page for page in PAGES if re.match(r"README|docs/|examples/|clients/", str(page.relative_to(ROOT)))]


def prose(page):
    """Its text without blocks of code, which stay as empty lines."""
    return re.sub(r"^( *)(```|~~~).*?^\1\2 *$", lambda block: "\n" * block[0].count("\n"), page.read_text(), flags=re.M | re.S)


def anchors(page):
    """Those of its headings, as GitHub makes them."""
    found = []
    for heading in re.findall(r"^#{1,6} +(.*?)[ #]*$", prose(page), re.M):
        heading = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading).lower()
        anchor = re.sub(r"[^\w\- ]", "", heading).replace(" ", "-")
        again = found.count(anchor)
        found.append(f"{anchor}-{again}" if again else anchor)
    return found + re.findall(r'<a (?:id|name)="([^"]+)"', page.read_text())


def links(page):
    """Where it links to in the repository: line, file, anchor."""
    text = re.sub(r"`[^`\n]*`", lambda code: " " * len(code[0]), prose(page))
    for link in re.finditer(r'\]\(<?([^)\s>]+)>?(?: "[^"]*")?\)|\b(?:src|srcset|href)="([^"]+)"|^\[[^]]+\]: +(\S+)', text, re.M):
        target = unquote(next(filter(None, link.groups())))
        if not re.match(r"[a-z][a-z+.-]*:", target):
            file, _, anchor = target.partition("#")
            yield text.count("\n", 0, link.start()) + 1, (page.parent / file).resolve() if file else page, anchor


def is_chinese(page):
    return page.name.endswith(CHINESE)


def other_language(page):
    return page.with_name(page.name.replace(CHINESE, ".md") if is_chinese(page) else page.name.replace(".md", CHINESE))


def mistakes():
    linked = {page: list(links(page)) for page in PAGES}
    for page, targets in linked.items():
        where = page.relative_to(ROOT)
        for line, file, anchor in targets:
            if not file.exists() or ROOT not in (file, *file.parents):
                yield f"{where}:{line}: there is no {os.path.relpath(file, ROOT)}"
            elif anchor and file.suffix == ".md" and anchor not in anchors(file):
                yield f"{where}:{line}: {file.relative_to(ROOT)} has no heading #{anchor}"
            elif {page, file} <= set(MANUAL) and is_chinese(file) != is_chinese(page) and file != other_language(page):
                yield f"{where}:{line}: {file.relative_to(ROOT)} is in the other language"

    for page in MANUAL:
        where = page.relative_to(ROOT)
        readme = ROOT / f"README{CHINESE if is_chinese(page) else '.md'}"
        if not any(file == other_language(page) for _, file, _ in linked[page]):
            yield f"{where}: does not link to itself in the other language"
        if page != readme and not any(file == page for _, file, _ in linked[readme]):
            yield f"{where}: is not linked from {readme.name}"

    for file in set(FILES) - set(PAGES):
        try:
            text = file.read_text()
        except UnicodeDecodeError:
            continue
        for name in re.findall(r"(?<![\w./-])(?:docs/[\w.-]+|\w+(?:/[\w-]+)*/README)\.md\b", text):
            if not (ROOT / name).exists() and not (file.parent / name).exists():
                yield f"{file.relative_to(ROOT)}: there is no {name}"


found = list(mistakes())
print(*found, sep="\n", end="\n" if found else "")
sys.exit(bool(found))
