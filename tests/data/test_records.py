from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from tightbox.data.coco import parse_coco
from tightbox.data.doctor import _repeated
from tightbox.data.records import Parsed, RawBox, RawBoxes, RawImage

SIDE = st.floats(-1e6, 1e6)
ROW = st.builds(
    RawBox,
    st.integers(0, 4),
    st.integers(0, 9),
    st.tuples(SIDE, SIDE, SIDE, SIDE),
    st.booleans(),
    st.one_of(st.just(math.nan), st.floats(1, 1e6)),
)


@given(st.lists(ROW, max_size=20))
def test_boxes_come_back_as_they_were_appended(rows: list[RawBox]) -> None:
    kept = RawBoxes()
    for row in rows:
        kept.append(row)
    assert len(kept) == len(rows)
    for name in RawBox._fields:
        given = np.array([getattr(row, name) for row in rows]).reshape(kept.column(name).shape)
        np.testing.assert_array_equal(kept.column(name), given)  # nan is equal to nan
    # The arrays, in order of the images and otherwise as appended, against Python's stable sort.
    parsed = Parsed("", Path(), "", images=[RawImage(Path(), i, 50, 40) for i in range(5)], boxes=kept)
    table, expected = parsed.columns(), sorted(rows, key=lambda row: row.image)
    assert table.image.tolist() == [row.image for row in expected]
    assert table.labels.tolist() == [row.label for row in expected]
    assert table.crowd.tolist() == [row.crowd for row in expected]
    assert table.boxes.tolist() == [[float(np.float32(side)) for side in row.box] for row in expected]


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2)), max_size=12))
def test_repeated_rows(rows: list[tuple[int, int]]) -> None:
    expected = {rows.index(row): rows.count(row) for row in rows if rows.count(row) > 1}
    found = list(_repeated(np.array(rows, dtype=np.float64).reshape(-1, 2)))
    assert found == sorted(expected.items())


def test_polygons_are_not_kept_and_a_byte_order_mark_is_no_mistake(tmp_path: Path) -> None:
    content = {
        "images": [{"id": 1, "file_name": "a.png", "width": 9, "height": 9}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 2, 3, 4], "segmentation": [[1, 2]]}],
        "categories": [{"id": 1, "name": "cat"}],
    }
    for encoding in ("utf-8", "utf-8-sig", "utf-16"):
        (tmp_path / "a.json").write_text(json.dumps(content), encoding=encoding)
        parsed = parse_coco(tmp_path / "a.json", [tmp_path], root=tmp_path, split="train")
        assert parsed.findings == []
        assert parsed.boxes.column("box").tolist() == [[1, 2, 4, 6]]
