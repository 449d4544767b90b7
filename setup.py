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
            "updown-export = fairseq_updown.cli.export:main",
        ]
    },
    classifiers=[
        "License :: OSI Approved :: MIT License",
        "Operating System :: POSIX",
        "Programming Language :: Python :: 3.10",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Typing :: Typed",
    ],
    python_requires=">=3.10",
    # Tested is what constraints.txt pins; a bound is the next version that may break what it has.
    install_requires=[
        "torch>=2.6,<2.14",  # before 2.6 its loader is not safe by default
        "fairseq-fixed>=0.12.3,<0.13",
        "hydra-core>=1.3,<1.4",
        "omegaconf>=2.3,<2.4",
        "numpy<3",
        "filelock<5",
        "jinja2>=3,<4",
        "regex<2028",
        "rouge-score<0.2",
        "sacrebleu>=2,<3",
        "sentencepiece>=0.2.3,<0.3",
        "tqdm>=4,<5",
    ],
    extras_require={
        "chart": ["matplotlib>=3.8,<4"],  # updown-highlight --png, updown-score --picture
        "corpora": ["python-debian>=1,<2"],  # scripts/corpora/rfc.py and debian_translation.py
        "ctranslate2": ["ctranslate2>=4,<5"],  # updown-export --to ctranslate2
        "dev": [
            "ctranslate2>=4,<5",
            "hypothesis>=6,<7",
            "matplotlib>=3.8,<4",
            "mypy>=2,<3",
            "pytest>=9,<10",
            "pytest-xdist>=3,<4",
            "python-debian>=1,<2",
            "ruff>=0.17,<0.18",
        ],
        "peers": ["transformers>=5,<6"],  # LED and LongT5 in scripts/benchmarks/cost.py
    },
)
