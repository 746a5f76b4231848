"""Packaging of srum-ds: metadata, dependencies, package data, the console script."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

HERE = Path(__file__).parent


def version() -> str:
    """``__version__`` as it stands in the package, without importing the package."""
    text = (HERE / "srum_ds" / "__init__.py").read_text(encoding="utf-8")
    found = re.search(r'^__version__ = "([^"]+)"$', text, re.MULTILINE)
    if found is None:
        raise RuntimeError("srum_ds/__init__.py has no __version__")
    return found.group(1)


def description() -> str:
    """The README, once there is one."""
    readme = HERE / "README.md"
    return readme.read_text(encoding="utf-8") if readme.exists() else ""


# Lower bounds are releases whose interfaces the code uses; constraints.txt has the exact set that is
# tested. There are no upper bounds: what a later release breaks is fixed here.
REQUIRES = [
    # Builds a library's models without memory.
    "accelerate>=1.10",
    "annotated-types>=0.7",
    "cyclopts>=5.0",
    "deepspeed>=0.19",
    "diffusers>=0.42",
    # Prompts by URL.
    "fsspec>=2025.3",
    # `srum-ds push`; transformers brings it along.
    "huggingface_hub>=2.0",
    # Judges over HTTP.
    "httpx2>=2.16",
    "jinja2>=3.1",
    "markupsafe>=3.0",
    "matplotlib>=3.10",
    # DeepSpeed compiles its CPU communication op with it.
    "ninja>=1.11",
    "numpy>=2.0",
    # Structured configs with tuples and literals.
    "omegaconf>=2.4",
    # What installed packages declare to need (`srum-ds doctor`).
    "packaging>=24.0",
    # LoRA.
    "peft>=0.21",
    "pillow>=12.0",
    "psutil>=7.0",
    "pydantic>=2.12",
    "pyyaml>=6.0.2",
    "rich>=14.0",
    "safetensors>=0.8",
    "scipy>=1.16",
    "tenacity>=9.1",
    "tensorboard>=2.20",
    "tokenizers>=0.22",
    "torch>=2.11",
    "transformers>=5.17",
    "webdataset>=1.0",
]

EXTRAS = {
    "test": [
        # Runs the fused kernels under its interpreter where there is no GPU.
        "triton>=3.6; sys_platform == 'linux'",
        # The floors and rooms of docs/development.md.
        "hypothesis>=6.150",
        "import-linter>=2.17",
        "mypy>=2.0",
        # Drives the reports in headless Chromium, where there is one.
        "playwright>=1.60",
        # Playwright imports it, whatever its metadata say.
        "pyee>=12",
        # Prompts in Parquet files.
        "pyarrow>=22",
        "pytest>=9.0",
        "pytest-xdist>=3.8",
        "ruff>=0.17",
    ],
    # The documentation as a site (`make docs`). MkDocs 2, as announced, has neither plug-ins nor this configuration.
    "docs": [
        "mkdocs>=1.6,<2",
        "mkdocstrings[python]>=1.0",
        "pymdown-extensions>=10.14",
    ],
    # The page of `srum-ds show`. Gradio 6.31 takes Pillow below 13.
    "show": [
        "gradio>=6.31",
    ],
    # Object phrases by noun chunks; its English model is installed by `python -m spacy download en_core_web_sm`.
    "phrases": [
        "spacy>=3.8",
    ],
    # Prompts of one's own in Parquet files and saved data sets, and by https://; s3:// takes s3fs, gs:// gcsfs.
    "prompts": [
        "aiohttp>=3.12",
        "pyarrow>=22",
    ],
    # Experiment trackers (`log.trackers`); mlflow itself works too, and is much larger.
    "wandb": [
        "wandb>=0.22",
    ],
    "mlflow": [
        "mlflow-skinny>=3.5",
    ],
    "trackio": [
        "trackio>=0.27",
    ],
    # Fused kernels (`kernels.fused`). torch's CUDA builds bring it along, in the version that they need.
    "fused": [
        "triton>=3.6; sys_platform == 'linux'",
    ],
}

# Folders of a clone that commands name; a wheel brings them along inside the package (srum_ds.config.marks.SHIPPED).
SHIPPED = ("launch", "ds_configs", "data_shards")


class BuildWithShipped(build_py):  # type: ignore[misc]
    """Copies the folders of ``SHIPPED`` into the package that is built. An editable install reads the clone's own."""

    def run(self) -> None:
        """Builds as setuptools does, then copies."""
        super().run()
        if self.editable_mode:
            return
        target = Path(self.build_lib) / "srum_ds" / "shipped"
        for name in SHIPPED:
            ignored = shutil.ignore_patterns("__pycache__")
            shutil.copytree(HERE / name, target / name, dirs_exist_ok=True, ignore=ignored)


setup(
    name="srum-ds",
    version=version(),
    description="Self-rewarding post-training of unified multimodal models on DeepSpeed ZeRO-3",
    long_description=description(),
    long_description_content_type="text/markdown",
    author="The srum-ds authors",
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.11",
    packages=find_packages(include=["srum_ds", "srum_ds.*"]),
    package_data={
        "srum_ds": [
            "assets/**/*",
            "evaluation/report_html/templates/*",
            "rewards/questions/*",
            "py.typed",
        ],
    },
    cmdclass={"build_py": BuildWithShipped},
    install_requires=REQUIRES,
    extras_require=EXTRAS,
    entry_points={
        "console_scripts": ["srum-ds = srum_ds.commands.main:main"],
        # Called when torch is imported: DeepSpeed's launchers import it before they start a rank.
        "torch.backends": ["srum_ds = srum_ds.common.front_end:attach"],
    },
    classifiers=[
        "Development Status :: 3 - Alpha",
        "Intended Audience :: Science/Research",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Typing :: Typed",
    ],
)
