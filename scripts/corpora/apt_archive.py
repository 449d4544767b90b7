"""apt in a private directory: the system's own sources, no root, nothing of the system touched."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

from fairseq_updown.errors import UserError

SETTINGS = """\
#clear Acquire::Languages;
#clear Acquire::IndexTargets;
#clear APT::Update::Pre-Invoke;
#clear APT::Update::Post-Invoke;
#clear APT::Update::Post-Invoke-Success;
APT::Update::Error-Mode "any";
Dir::State "{root}/state";
Dir::State::lists "{root}/state/lists";
Dir::State::status "{root}/state/status";
Dir::Cache "{root}/cache";
"""
PACKAGES = """\
Acquire::Languages "none";
Acquire::IndexTargets::deb::Packages {{
  MetaKey "$(COMPONENT)/binary-$(ARCHITECTURE)/Packages";
  flatMetaKey "Packages";
  ShortDescription "Packages";
  Description "$(RELEASE)/$(COMPONENT) $(ARCHITECTURE) Packages";
}};
Dir::Etc::sourcelist "{root}/sources/sources.list";
Dir::Etc::sourceparts "{root}/sources";
"""


def python_debian(module: str, instead: str = "") -> Any:
    """A module of python-debian, which only what is fetched needs.

    Raises:
        UserError: it is not installed
    """
    try:
        return import_module(f"debian.{module}")
    except ImportError as error:
        remedy = "Debian's files are read by python-debian: pip install '.[corpora]'"
        raise UserError(f"{remedy}, or {instead}" if instead else remedy) from error


def private_apt(apt_dir: Path, settings: str, instead: str) -> Path:
    """Prepare ``apt_dir`` for apt and return the configuration file to run it with.

    Args:
        apt_dir: holds all that apt reads and writes, but for the system's configuration and keys
        settings: apt.conf text to add, in which "{root}" stands for the directory
        instead: what the user can do who has no apt

    Raises:
        UserError: apt or python-debian is not installed, or apt cannot work in this directory
    """
    if shutil.which("apt-get") is None:
        raise UserError(
            "apt-get is not on PATH, so nothing can be fetched. Run this on a Debian-like system, "
            f"or {instead}"
        )
    python_debian("deb822", instead)
    root = apt_dir.resolve()
    if '"' in str(root):
        raise UserError(f"apt cannot work in {root}: name a directory without a quotation mark")
    (root / "state" / "lists" / "partial").mkdir(parents=True, exist_ok=True)
    (root / "cache" / "archives" / "partial").mkdir(parents=True, exist_ok=True)
    (root / "state" / "status").touch()
    text = (SETTINGS + settings).format(root=root)
    if os.geteuid() == 0:  # apt would drop to a user who may not enter a private directory
        text += 'APT::Sandbox::User "root";\n'
    config = root / "apt.conf"
    config.write_text(text, encoding="utf-8")
    return config


def update(config: Path, instead: str) -> Path:
    """Run ``apt-get update`` and return the folder of the indexes it fetched.

    Raises:
        UserError: it fetched nothing
    """
    lists = config.parent / "state" / "lists"
    done = subprocess.run(["apt-get", "-c", str(config), "update"], stdout=2, check=False)
    if done.returncode and not any(lists.glob("*Release")):
        raise UserError(
            f"apt-get update fetched nothing (exit status {done.returncode}, its messages are "
            f"above). Check the network and the system's apt sources, or {instead}"
        )
    if done.returncode:
        print("warning: apt could not fetch every index; using what it has", file=sys.stderr)
    return lists


def copy_sources(root: Path) -> None:
    """Write the system's package sources to ``root``/sources, with only non-free for component.

    Ubuntu's archive calls it multiverse. Sources without a component "main" are left out.
    """
    asked = ("LIST", "Dir::Etc::sourcelist/f", "PARTS", "Dir::Etc::sourceparts/d")
    answer = ask("apt-config", "shell", *asked)
    found = dict(re.findall(r"^(LIST|PARTS)='(.*)'$", answer, re.MULTILINE))
    paths = [Path(found.get("LIST", "")), *sorted(Path(found.get("PARTS", "")).glob("*"))]
    folder = root / "sources"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    (folder / "sources.list").touch()
    for path in paths:
        if path.suffix in (".list", ".sources") and path.is_file():
            text = path.read_text(encoding="utf-8", errors="replace")
            change = non_free_stanzas if path.suffix == ".sources" else non_free_lines
            (folder / path.name).write_text(change(text), encoding="utf-8")


def non_free(components: str) -> str | None:
    """The component that holds what is not free, in an archive with these; None if unlike one."""
    names = components.split()
    if "main" not in names:
        return None
    return "multiverse" if {"restricted", "universe"} & set(names) else "non-free"


def non_free_lines(text: str) -> str:
    """One-line sources (``deb [options] URI suite components``) with only their non-free part."""
    lines = []
    for line in text.splitlines():
        parts = re.match(r"\s*(deb\s+(?:\[[^]]*\]\s*)?\S+\s+\S+)\s+([^#]+)", line)
        component = parts and non_free(parts[2])
        if parts and component:
            lines.append(f"{parts[1]} {component}\n")
    return "".join(dict.fromkeys(lines))


def non_free_stanzas(text: str) -> str:
    """Sources in deb822 form (stanzas of ``Field: value``) with only their non-free part."""
    stanzas = []
    for stanza in python_debian("deb822").Deb822.iter_paragraphs(text, use_apt_pkg=False):
        component = non_free(stanza.get("Components", ""))
        if component and "deb" in stanza.get("Types", "").split():
            stanza["Components"], stanza["Types"] = component, "deb"
            stanzas.append(stanza.dump())
    return "\n".join(stanzas)


def package_names(config: Path, prefix: str) -> list[str]:
    """The packages in the fetched indexes whose names start with ``prefix``."""
    command = ["apt-cache", "-c", str(config), "pkgnames", prefix]
    return sorted(ask(*command).split())


def ask(*command: str) -> str:
    """What one of apt's programs answers.

    Raises:
        UserError: it is not there or fails
    """
    try:
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise UserError(f"{command[0]} of the system's apt does not work: {error}") from error
    return done.stdout


def download(config: Path, packages: list[str], folder: Path) -> list[Path]:
    """Fetch packages into ``folder``, checked by apt against the archive's signatures.

    Raises:
        UserError: apt could not fetch all of them
    """
    folder.mkdir(parents=True, exist_ok=True)
    command = ["apt-get", "-c", str(config.resolve()), "download", *packages]
    done = subprocess.run(command, cwd=folder, stdout=2, check=False)
    files = sorted(folder.glob("*.deb"))
    if done.returncode or len(files) < len(packages):
        raise UserError(
            f"apt-get download fetched {len(files)} of {len(packages)} packages (exit status "
            f"{done.returncode}, its messages are above): check the network and run this again"
        )
    return files
