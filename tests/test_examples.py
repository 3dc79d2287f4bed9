"""The examples, and the code on the pages that people read first: all of it runs."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from suture.ir.errors import Code

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"
sys.path.insert(0, str(EXAMPLES))

import minilm  # noqa: E402


def python(*arguments: str, folder: Path) -> str:
    """Run a fresh interpreter and return what it printed; its errors are this test's."""
    done = subprocess.run([sys.executable, *arguments], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_pairs_are_many_distinct_and_of_every_relation() -> None:
    pairs = minilm.pairs()
    sentences = [sentence for _, *both in pairs for sentence in both]
    assert len(pairs) >= 120
    assert len(set(sentences)) == len(sentences)
    assert {relation for relation, _, _ in pairs} == {"paraphrase", "related", "unrelated"}


def test_calibration_sees_none_of_the_pairs() -> None:
    calibration = (EXAMPLES / "calibration.txt").read_text(encoding="utf-8").splitlines()
    judged = {sentence for _, *both in minilm.pairs() for sentence in both}
    assert len(set(calibration)) == len(calibration)
    assert not judged & set(calibration)


def test_the_calibration_file_is_what_its_sentences_give() -> None:
    with np.load(EXAMPLES / "calibration.npz", allow_pickle=False) as stored:
        arrays = dict(stored)
    wanted = minilm.calibration()
    assert arrays.keys() == wanted.keys()
    for name, tensor in wanted.items():
        np.testing.assert_array_equal(arrays[name], tensor.numpy())


def test_the_pretrained_encoder_tells_paraphrases_from_unrelated_sentences() -> None:
    module = minilm.encoder()
    pairs = minilm.pairs()
    with torch.no_grad():
        first = module(**minilm.tokenize([one for _, one, _ in pairs]))
        second = module(**minilm.tokenize([two for _, _, two in pairs]))
    torch.testing.assert_close(first.norm(dim=1), torch.ones(len(pairs)))
    similarity = (first * second).sum(dim=1)
    by_relation = {
        relation: similarity[[k for k, row in enumerate(pairs) if row[0] == relation]]
        for relation in ("paraphrase", "related", "unrelated")
    }
    assert by_relation["paraphrase"].min() > by_relation["unrelated"].max()
    assert by_relation["paraphrase"].mean() > by_relation["related"].mean() > by_relation["unrelated"].mean()


def test_rank_correlation_agrees_with_ties_counted_by_hand() -> None:
    from minilm_report import ranks, spearman

    np.testing.assert_array_equal(ranks(np.array([3.0, 1.0, 3.0, 2.0])), [3.5, 1.0, 3.5, 2.0])
    assert spearman(np.array([1.0, 2.0, 3.0]), np.array([10.0, 30.0, 20.0])) == pytest.approx(0.5)
    assert spearman(np.array([1.0, 2.0, 3.0]), np.array([9.0, 4.0, 1.0])) == pytest.approx(-1.0)


def test_the_demo_plans_to_its_bounds_and_is_in_the_canonical_layout() -> None:
    from suture.frontends.script.format import format_source
    from suture.surgery import check

    script = EXAMPLES / "minilm_edge.suture"
    source = script.read_text(encoding="utf-8")
    assert format_source(source) == source
    planned = check(script)
    assert planned.ok, [str(failure) for failure in planned.failures]


@pytest.mark.slow
def test_the_demo_runs_from_script_to_table(tmp_path: Path) -> None:
    folder = shutil.copytree(EXAMPLES, tmp_path / "examples", ignore=shutil.ignore_patterns("*.onnx", "*.suture-graph"))
    python("-m", "suture.cli", "run", "--quiet", "minilm_edge.suture", folder=folder)
    assert (folder / "minilm_edge.onnx").stat().st_size < 0.9 * (folder / "minilm.onnx").stat().st_size
    table = python("minilm_report.py", "--rounds", "2", folder=folder)
    cells = {row[0]: row[1:] for row in map(cells_of, table.splitlines()) if len(row) == 4}
    assert float(cells["mean cosine to the original's embedding"][0]) == pytest.approx(1.0, abs=1e-4)
    assert 0.8 < float(cells["mean cosine to the original's embedding"][1]) < 0.9999
    assert float(cells["rank correlation of the pairs"][1]) > 0.95
    assert float(cells["MACs (16 tokens), millions"][1]) <= 0.7 * float(cells["MACs (16 tokens), millions"][0]) + 0.1


def cells_of(line: str) -> list[str]:
    """Return the cells of a line of a table drawn with box characters."""
    return [cell.strip() for cell in re.split("[│┃]", line)[1:-1]]


@pytest.mark.slow
@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md"])
def test_the_python_on_a_page_runs(page: str, tmp_path: Path) -> None:
    blocks = re.findall(r"^```python\n(.*?)^```", (ROOT / page).read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    assert blocks
    python("-c", "\n".join(blocks), folder=tmp_path)


def test_every_error_code_is_documented() -> None:
    page = (ROOT / "docs" / "errors.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| (S\d{3}) \| `(\w+)` \| .+ \|$", page, re.MULTILINE))
    assert rows == {code.value: code.name for code in Code}


def test_every_direct_dependency_is_pinned() -> None:
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = [
        *project["dependencies"],
        *(line for extra in project["optional-dependencies"].values() for line in extra),
    ]
    pinned = re.findall(r"^([A-Za-z0-9._-]+)==", (ROOT / "constraints.txt").read_text(encoding="utf-8"), re.MULTILINE)
    assert {name_of(line) for line in wanted} <= {name_of(line) for line in pinned}


def name_of(requirement: str) -> str:
    """Return the normalised project name of a requirement."""
    return re.sub(r"[-_.]+", "-", re.split(r"[\[<>=!~; ]", requirement)[0]).lower()


def test_a_benchmark_that_misses_an_aim_exits_with_one_and_says_so_in_its_file(tmp_path: Path) -> None:
    code = "from pathlib import Path; from measure import Aim, Report, interleaved\n"
    code += "seen = []; variants = {'a': lambda: seen.append('a') or 1.0, 'b': lambda: seen.append('b') or 2.0}\n"
    code += "assert interleaved(variants, rounds=2, warmup=1) == {'a': [1.0, 1.0], 'b': [2.0, 2.0]}; assert seen == ['a', 'b'] * 3\n"
    code += "report = Report('t', quick=True); report.add('speed', 3.0, 'x', Aim('at least', 2)); assert report.finish(None) == 0\n"
    code += "report.add('time', 3.0, 's', Aim('at most', 2)); assert report.finish(Path('out.json')) == 1"
    python("-c", f"import sys; sys.path.insert(0, {str(ROOT / 'benchmarks')!r})\n{code}", folder=tmp_path)
    stored = json.loads((tmp_path / "out.json").read_text(encoding="utf-8"))
    assert [figure["met"] for figure in stored["figures"]] == [True, False]
