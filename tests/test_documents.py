"""What the documents quote stands in the results that a script wrote."""

import importlib.util
import json
from pathlib import Path

ROOT = Path(__file__).parents[1]


def load_script(path: Path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_table_in_the_readme_is_that_of_the_saved_results():
    script = load_script(ROOT / "benchmarks" / "foundation.py")
    table = script.as_table(json.loads(script.RESULTS.read_text()))
    assert f"<!-- results:foundation -->\n{table}\n<!-- /results -->" in (ROOT / "README.md").read_text()
