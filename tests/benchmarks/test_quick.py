"""Every script in `benchmarks/` runs with `--quick`, on the real models, and writes the figures it is for."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPTS = sorted(
    path.stem for path in (ROOT / "benchmarks").glob("*.py") if '"--quick"' in path.read_text(encoding="utf-8")
)
FIGURES = {
    "extraction": {"word_f1", "pypdf_time_ratio", "fast_speedup", "cache_speedup"},
    "extractor_learns": {"gate_boilerplate", "gate_text", "distance_closed", "tokens_read_ratio"},
    "step": {"over_bare", "over_hf_rag", "peak_over_hf_rag"},
}
pytestmark = [
    pytest.mark.slow,
    pytest.mark.models,
    pytest.mark.skipif(not (ROOT.parent / "shared" / "data").is_dir(), reason="the data of benchmarks isn't here"),
]


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_quick_run_ends_with_its_figures(script: str, tmp_path: Path) -> None:
    command = [sys.executable, f"benchmarks/{script}.py", "--quick", "--json", str(tmp_path / "figures.json")]
    if '"--out"' in (ROOT / "benchmarks" / f"{script}.py").read_text(encoding="utf-8"):
        command += ["--out", str(tmp_path / "out")]
    done = subprocess.run(command, cwd=ROOT, env=os.environ | {"TQDM_DISABLE": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    figures = json.loads((tmp_path / "figures.json").read_text(encoding="utf-8"))
    assert figures
    if script in FIGURES:
        assert figures.keys() >= FIGURES[script]
    if script == "extractor_learns":
        assert all(figures[name].keys() == {"soft", "hard"} for name in FIGURES[script])
    if script == "gradient_audit":
        assert {"in_reach", "near", "far"} <= figures["marginal"].keys()
