"""What is installed is what is in the tree: the page needs no build."""

import zipfile
from pathlib import Path

from hatchling.builders.wheel import WheelBuilder

ROOT = Path(__file__).parents[2]
STATIC = ROOT / "t3vis" / "viewer" / "static"


def test_a_wheel_contains_every_file_of_the_page(tmp_path):
    built = Path(next(WheelBuilder(str(ROOT)).build(directory=str(tmp_path), versions=["standard"])))
    with zipfile.ZipFile(built) as wheel:
        packed = {name: wheel.read(name) for name in wheel.namelist()}
    in_tree = {file.relative_to(ROOT).as_posix(): file.read_bytes() for file in STATIC.rglob("*") if file.is_file()}
    assert {"index.html", "main.js", "style.css"} <= {Path(name).name for name in in_tree}
    assert {name: content for name, content in packed.items() if name.startswith("t3vis/viewer/static/")} == in_tree
    assert "t3vis/viewer/static/vendor/LICENSE-preact" in packed


def test_the_page_asks_for_all_its_modules_at_once():
    page = (STATIC / "index.html").read_text()
    for module in STATIC.rglob("*.js"):
        assert f'"{module.relative_to(STATIC).as_posix()}"' in page
