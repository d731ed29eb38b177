"""The files around the library agree with one another."""

import json
import re
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from statistics import mean, stdev

import pytest
import yaml
from packaging.requirements import Requirement

import sdap_lite
from sdap_lite.recipes import RECIPES

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "book").glob("*.ipynb"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
CONFIG = yaml.safe_load((ROOT / "book/_config.yml").read_text())
TAGS = {"hide-cell", "hide-input", "hide-output", "remove-cell", "remove-input", "remove-output", "raises-exception", "solution", "exercise", "parameters"}


def direct_dependencies() -> dict[str, Requirement]:
    """All that the pyproject names, but for the package itself."""
    lines = [*PROJECT["dependencies"], *(line for extra in PROJECT["optional-dependencies"].values() for line in extra)]
    found = {(requirement := Requirement(line)).name: requirement for line in lines}
    del found["sdap_lite"]
    return found


def files() -> list[Path]:
    """The project's text files."""
    listed = subprocess.run(["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("this is no git clone")
    binary = {".png", ".npz", ".safetensors", ".ico"}
    return [path for name in listed.stdout.split("\0") if name and (path := ROOT / name).is_file() and path.suffix not in binary]


def test_environment_names_the_same_packages() -> None:
    conda = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    pip = next(entry for entry in conda if isinstance(entry, dict))["pip"]
    lines = [line for line in [*conda, *pip] if isinstance(line, str) and line not in ("pip", "-e .")]
    there = {(requirement := Requirement(line)).name: requirement.specifier for line in lines}
    assert there.pop("python") == PROJECT["requires-python"]
    wanted = {{"torch": "pytorch"}.get(name, name): requirement.specifier for name, requirement in direct_dependencies().items()}
    assert there == wanted


def test_constraints_pin_every_direct_dependency() -> None:
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line and not line.startswith("#")]
    pins = {(requirement := Requirement(line)).name.lower().replace("_", "-"): requirement for line in lines}
    for name, requirement in direct_dependencies().items():
        pinned = [specifier.version for specifier in pins[name.lower()].specifier if specifier.operator == "=="]
        assert len(pinned) == 1, f"{name} must be pinned to one version"
        assert requirement.specifier.contains(pinned[0]), f"{name}: {pinned[0]} is not in {requirement.specifier}"
    assert all(str(pin.specifier).startswith("==") for pin in pins.values())


def test_runtime_dependencies_are_open_ranges() -> None:
    for line in PROJECT["dependencies"]:
        assert {specifier.operator for specifier in Requirement(line).specifier} == {">="}, f"{line} could replace what a notebook service has"


def test_one_version() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert sdap_lite.__version__ == PROJECT["version"] == citation["version"]
    assert f"## {PROJECT['version']}" in (ROOT / "CHANGELOG.md").read_text()


def test_one_repository_address() -> None:
    owner, name = PROJECT["urls"]["Repository"].removeprefix("https://github.com/").split("/")
    assert CONFIG["repository"]["url"] == PROJECT["urls"]["Repository"]
    assert CONFIG["html"]["baseurl"] == PROJECT["urls"]["Book"] == f"https://{owner}.github.io/{name}/"
    mentioned = re.compile(r"(?:github\.com|google\.com/github)/([\w.-]+/sdap[\w-]*)")
    for path in files():
        for address in mentioned.findall(path.read_text()):
            assert address == f"{owner}/{name}", path


@pytest.mark.parametrize("name", ["_config.yml", "_toc.yml"])
def test_book_files_at_the_top_are_links(name: str) -> None:
    link = ROOT / name
    assert link.is_symlink()
    assert link.readlink() == Path("book") / name


def test_a_failing_chapter_fails_the_build() -> None:
    execute = CONFIG["execute"]
    assert execute["execute_notebooks"] == "force"
    assert execute["raise_on_error"]
    assert not execute["allow_errors"]
    assert execute["timeout"] >= 300, "the default of 30 s stops a chapter on a slow machine"


def test_contents_name_every_chapter() -> None:
    toc = yaml.safe_load((ROOT / "book/_toc.yml").read_text())
    listed = [toc["root"], *(chapter["file"] for part in toc["parts"] for chapter in part["chapters"])]
    there = {path.stem for path in [*NOTEBOOKS, *(ROOT / "book").glob("*.md")]}
    assert sorted(listed) == sorted(there)


def test_every_public_name_is_in_the_reference() -> None:
    reference = (ROOT / "book/api.md").read_text()
    named = set(re.findall(r"auto(?:function|class|exception|data|module):: [\w.]*?(\w+)$", reference, re.MULTILINE))
    assert set(sdap_lite.__all__) <= named
    assert {"data", "measure", "models", "plots", "saving"} <= named


@pytest.mark.parametrize("path", [path for path in NOTEBOOKS if path.stem[0].isdigit()], ids=lambda path: path.stem)
def test_chapter_links_to_glossary_and_reference(path: Path) -> None:
    prose = "".join("".join(cell["source"]) + "\n\n" for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == "markdown")
    assert "](glossary.md#" in prose
    summary = prose.partition("## Summary")[2].partition("\n## ")[0]
    assert re.search(r"^In the library: .*\(api\.md#", summary, re.MULTILINE), "a chapter's summary names its part of the reference"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_is_clean(path: Path) -> None:
    notebook = json.loads(path.read_text())
    for cell in notebook["cells"]:
        assert not cell.get("outputs"), "outputs are computed by the build"
        assert cell.get("execution_count") is None
        assert set(cell["metadata"].get("tags", [])) <= TAGS
    assert notebook["metadata"]["kernelspec"]["name"] == "python3"


def test_citations_are_in_the_bibliography() -> None:
    listed = (ROOT / "book/references.bib").read_text()
    paper = re.compile(r"https://(?:arxiv\.org/abs|doi\.org)/([^\s)\]\"\\>]+)")
    for path in [*NOTEBOOKS, *(ROOT / "sdap_lite").rglob("*.py"), ROOT / "README.md"]:
        missing = [found for found in paper.findall(path.read_text()) if found.rstrip(".,;") not in listed]
        assert not missing, f"{path.name} cites what references.bib does not list: {missing}"


def test_both_estimates_for_imagenet_assume_the_same() -> None:
    assumed = []
    for name in ("what_it_costs", "12_many_machines"):
        cells = ["".join(cell["source"]) for cell in json.loads((ROOT / f"book/{name}.ipynb").read_text())["cells"]]
        (cell,) = [cell for cell in cells if cell.startswith("ASSUMED = {")]
        assumed.append(dict(re.findall(r'"([\w ]+)": ([\d._e]+),', cell)))
    shared = assumed[0].keys() & assumed[1].keys()
    assert len(shared) == 9
    assert all(assumed[0][key] == assumed[1][key] for key in shared)


def test_no_path_of_one_machine() -> None:
    local = re.compile(r"(?<![\w.}/~-])/(?:home|root|Users|work|mnt|opt|tmp)/\w")
    for path in files():
        found = [line for line in path.read_text().splitlines() if local.search(line)]
        assert not found, f"{path.relative_to(ROOT)}: {found[0][:160]}"


def test_readme_says_what_was_recorded() -> None:
    """Each row of its table with seeds is a record's; all records are on the book's page of results, which computes its tables."""
    recorded = set()
    for name in [name for name in sdap_lite.records.names() if name.startswith("headline")]:
        record, runs = sdap_lite.records.recorded(name), defaultdict(list)
        for row in record["rows"]:
            runs[row["net"], row.get("arm", "sdap"), row["rate"]].append(row)
        for (net, arm, rate), rows in runs.items():
            if len({row["seed"] for row in rows}) == len(rows) == 3 and arm.startswith("sdap") and rate > 0:
                begun = RECIPES[name].begin_with  # a second step counts from the whole network
                dense = sdap_lite.models.pruned_card(begun)["dense"] if begun else {"test": record["card"]["dense test"][net]}
                gone = mean(1 - row["params"] / dense["params"] if begun else row["achieved"] for row in rows)
                recorded.add(f"{100 * dense['test']:.2f} % | {spread(row['test'] for row in rows)} | {100 * gone:.1f} %")
    rows = [line.removesuffix(" |").split(" | ", 2)[2] for line in (ROOT / "README.md").read_text().splitlines() if "±" in line and line.startswith("|")]
    assert len(rows) == 10
    assert set(rows) <= recorded


def spread(values: Iterable[float]) -> str:
    """Mean and standard deviation of shares, in percent."""
    percent = [100 * value for value in values]
    return f"{mean(percent):.2f} ± {stdev(percent):.2f} %"


def test_what_readme_names_is_there() -> None:
    readme = (ROOT / "README.md").read_text()
    assert re.findall(r'pruned\("([\w-]+)"\)', readme)
    assert set(re.findall(r'pruned\("([\w-]+)"\)', readme)) <= set(sdap_lite.models.PRUNED)
    assert set(re.findall(r"sdap_lite experiment ([\w-]+)", readme)) <= set(RECIPES)


def test_promises_say_what_was_counted() -> None:
    page, counts = (ROOT / "book/promises.md").read_text(), sdap_lite.records.recorded("trust")
    kills, load = counts["kills"], counts["load"]
    before, after = load["sweep"]["before"], load["sweep"]["after"]
    deep, wide = (load[net]["trace, CPU seconds"] for net in ("deep", "wide"))
    rows = {
        f"Kills, each resumed, in {kills['runs']} runs": kills["kills"],
        **{f"… killed during {moment}": times for moment, times in kills["killed during"].items()},
        "Damaged, foreign and hostile files read": counts["files"]["examples"],
        **({"Random networks pruned": counts["networks"]["examples"]} if "networks" in counts else {}),
        "Tests of bad input, faults, archives and checkpoints passed": sum(value for value in counts["inputs"].values() if isinstance(value, int)),
        **({"Chapters run at once on two cores": counts["notebooks"]["at once"]} if "notebooks" in counts else {}),
        "Prunings in one process": load["sweep"]["prunings"],
        "… memory in use afterwards": f"{after['MiB'] - before['MiB']} MiB more",
        f"Trace of a chain of {load['deep']['layers']:,} layers": f"{deep} s",
        f"Trace of {load['wide']['channels']:,} channels": f"{wide} s",
    }
    lines = [f"| {what} | {count:,} |" if isinstance(count, int) else f"| {what} | {count} |" for what, count in rows.items()]
    assert "\n".join(lines) in page, "\n".join(lines)
    assert kills["wrong results"] == kills["checkpoints lost"] == 0
    assert all(after[key] == before[key] for key in ("threads", "tensors", "modules", "hooks", "files"))


def test_nothing_is_released_untested() -> None:
    """And a newer push stops the build of a page, but no deployment."""
    workflows = {path.stem: yaml.safe_load(path.read_text()) for path in (ROOT / ".github/workflows").glob("*.yml")}
    release, tests, book = (workflows[name]["jobs"] for name in ("release", "tests", "book"))
    for job in release.values():
        if any("gh release create" in step.get("run", "") for step in job.get("steps", [])):
            assert release[job["needs"]]["uses"] == "./.github/workflows/tests.yml"
    assert "workflow_call" in workflows["tests"][True]  # YAML takes 'on' for a truth
    assert {"make lint", "make test"} <= {step.get("run") for step in tests["test"]["steps"]}
    assert "concurrency" not in workflows["book"]
    assert book["publish"]["concurrency"]["cancel-in-progress"] is False
    assert book["publish"]["concurrency"]["group"] != book["build"]["concurrency"]["group"]


def test_no_workflow_leaves_its_token_in_the_checkout() -> None:
    """What a step installs could read it there."""
    for path in (ROOT / ".github/workflows").glob("*.yml"):
        for job in yaml.safe_load(path.read_text())["jobs"].values():
            for step in job.get("steps", []):
                assert "checkout" not in step.get("uses", "") or step["with"]["persist-credentials"] is False, path


def test_nothing_is_read_that_could_run_code() -> None:
    """No bare pickle anywhere: of the library, the scripts and the chapters."""
    sources = [path for path in files() if path.suffix in (".py", ".ipynb") and path.parent.name != "tests"]
    assert len(sources) > 20
    for path in sources:
        text = path.read_text()
        assert not re.findall(r"\b(?:pickle|dill|joblib|cloudpickle|marshal)\.loads?\(|\beval\(\w|\bexec\(|yaml\.load\(", text), path
        assert all("weights_only=True" in call for call in re.findall(r"torch\.load\([^\n]*", text)), path
        assert all("allow_pickle=False" in call for call in re.findall(r"np\.load\([^\n]*", text)), path
