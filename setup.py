"""Installs the plugin; exact versions are in constraints.txt."""

from pathlib import Path

from setuptools import find_packages, setup

setup(
    name="fairseq_updown",
    version="0.1.0",
    description="Up-down compressed attention for fairseq: long sources, fast decoding",
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="MIT",
    packages=find_packages(include=["fairseq_updown", "fairseq_updown.*"]),
    package_data={"fairseq_updown": ["py.typed", "cli/*.html"]},
    entry_points={
        "console_scripts": [
            "updown-summarize = fairseq_updown.cli.summarize:main",
            "updown-highlight = fairseq_updown.cli.highlight:main",
            "updown-score = fairseq_updown.cli.score:main",
            "updown-prepare = fairseq_updown.cli.prepare:main",
        ]
    },
    python_requires=">=3.10",
    install_requires=[
        "torch>=2.6",
        "fairseq-fixed>=0.12.3",
        "hydra-core",
        "sacrebleu",
        "filelock",
        "jinja2",
        "sentencepiece>=0.2.3",
        "rouge-score",
        "tqdm",
    ],
    extras_require={
        "dev": [
            "hypothesis",
            "matplotlib",
            "mypy",
            "pytest",
            "pytest-xdist",
            "python-debian",
            "ruff",
        ],
        "peers": ["transformers"],  # LED and LongT5 in scripts/benchmarks/cost.py
    },
)
