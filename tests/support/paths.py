"""Where the repository, its recipes and models, and the data beside it stand. Every test takes these from here."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TESTS = ROOT / "tests"
GOLDEN = TESTS / "golden"
WORKERS = TESTS / "integration"
RECIPES = ROOT / "launch" / "recipes"
RECIPE = RECIPES / "tiny.yaml"
MODEL = ROOT / "srum_ds" / "assets" / "tiny_bagel"
PROMPTS = ROOT / "data_shards" / "shapes"

# Outside the repository: present on some machines alone, and tests that need it are skipped without it.
SHARED = ROOT.parent / "shared"
CONFORMANCE = SHARED / "conformance"
