"""Time and peak memory of what grows with a data set, at COCO's size and multiples: each step in a process of its own.

Reading and the doctor's checks of the annotations have 118,000 images with 860,000 boxes at 1x, polygons as COCO's file
has them; ATSS 2,000 objects on a pyramid of 800 x 1344; suppression 100,000 boxes of 80 classes; the diagnosis 50,000
images with 10 detections each.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from harness import write_table
from machine import measured

from tightbox.assigners import atss_assign
from tightbox.assigners.points import grid_points
from tightbox.data.coco import parse_coco, read_coco
from tightbox.data.doctor import _boxes, _empty, _summary
from tightbox.structures import Candidates
from tightbox.suppress import greedy_nms

IMAGES, BOXES, CLASSES, WIDTH, HEIGHT = 118_000, 860_000, 80, 640, 480
HEADER = "| step | size | seconds | peak memory, MB |\n|---|---|---|---|"
