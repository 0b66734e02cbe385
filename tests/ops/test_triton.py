"""The Triton kernels where there is no GPU: compiled for one, and interpreted, by which the tests of the ops run."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.skipif(find_spec("triton") is None, reason="triton is not installed")

ROOT = Path(__file__).parents[2]
# Those that reach every kernel, on few and small maps: the interpreter takes a millisecond for a line.
INTERPRETED = [
    "ops/test_csr.py",
    "ops/test_group_norm_relu.py",
    "ops/test_star_conv.py::test_box_of_one_step_is_the_plain_convolution",
    "ops/test_prroi_pool.py::test_fades_to_zero_outside_the_map",
    "ops/test_prroi_pool.py::test_plane_and_its_gradient_by_hand",
    "ops/test_prroi_pool.py::test_no_boxes",
    "ops/test_triton.py::test_equal_to_the_plain_operators",
    "ops/test_triton.py::test_star_and_its_gradients_equal_the_plain_ones",
    "test_suppress.py",
]
SIGNATURES = {
    "csr._matmul": "*i32 *i32 *fp32 *bf16 *bf16 i32",
    "csr._add_transposed_matmul": "*i32 *i32 *fp32 *bf16 *fp32 i32",
    "csr._sampled_matmul": "*i32 *i32 *bf16 *bf16 *fp32 i32",
    "greedy_nms._keep": "*fp32 *i64 *fp64 *i64 *i64 i32 i32 i32",
    "group_norm_relu._tile_statistics": "*bf16 *fp32 i32",
    "group_norm_relu._combine": "*fp32 *fp32 i32 i32 fp32",
    "group_norm_relu._normalise": "*bf16 *fp32 *fp32 *fp32 *bf16 i32",
    "group_norm_relu._sum_gradients": "*bf16 *fp32 *fp32 *fp32 *bf16 *fp32 i32",
    "group_norm_relu._to_input": "*bf16 *fp32 *fp32 *fp32 *bf16 *fp32 *bf16 i32",
    "prroi_pool._pool": "*fp32 *i64 *bf16 *bf16 i32 i32",
    "prroi_pool._add_to_features": "*fp32 *i64 *bf16 *fp32 i32 i32",
    "prroi_pool._to_spans": "*fp32 *i64 *bf16 *bf16 *fp32 i32 i32",
}


@pytest.mark.parametrize("name", SIGNATURES)
def test_compiles_for_a_gpu(name: str) -> None:
    import importlib

    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    module, _, function = name.partition(".")
    kernel: Any = getattr(importlib.import_module(f"tightbox.ops.{module}_triton"), function)
    types = SIGNATURES[name].split()
    constants = {"DTYPE": triton.language.float32, "BLOCK": 256, "AGNOSTIC": False}
    constants |= {"GROUPS": 32, "WIDTH": 8, "ROWS": 32}
    constants = {name: constants[name] for name in kernel.arg_names[len(types) :]}
    types += ["constexpr"] * len(constants)
    source = ASTSource(kernel, dict(zip(kernel.arg_names, types, strict=True)), constants)
    assert "cubin" in triton.compile(source, target=GPUTarget("cuda", 90, 32)).asm  # for an H100


def test_interpreted_kernels_pass_the_tests_of_the_ops() -> None:
    tests = [str(Path("tests") / test) for test in INTERPRETED]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *tests],
        cwd=ROOT,
        env=os.environ | {"TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
    assert "passed" in done.stdout


@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") != "1", reason="run by the test above, interpreted")
def test_equal_to_the_plain_operators(monkeypatch: pytest.MonkeyPatch) -> None:
    # Random boxes, some off the map, one empty, in float32: forwards, for the features and for both axes' edges.
    import importlib

    import torch

    from tightbox.ops import csr, prroi_pool_triton

    plain = importlib.import_module("tightbox.ops.prroi_pool")  # the package's attribute of this name is the function
    features, images = torch.randn(2, 3, 6, 7), torch.tensor([1.0, 0, 1, 0])
    y = torch.tensor([[1.2, 3.4, 5.6], [-2.0, 0.5, 3.0], [2.0, 2.0, 2.0], [3.0, 7.5, 12.0]])
    x = torch.tensor([[-1.0, 2, 5, 8], [0.0, 1, 2, 3], [1.0, 2, 3, 4], [2.5, 2.75, 3, 3.25]])
    inputs, gradient = (features, y, x, images), torch.randn(4, 2, 3, 3)
    ours = [
        prroi_pool_triton.pool(*inputs),
        prroi_pool_triton.features_gradient(gradient, *inputs),
        *prroi_pool_triton.edges_gradient(gradient, *inputs),
    ]
    monkeypatch.setattr(plain, "uses_triton", lambda _: False)
    monkeypatch.setattr(csr, "uses_triton", lambda _: False)
    theirs = [
        plain._pool_bins(*inputs),
        plain._features_gradient(gradient, *inputs),
        *plain._edges_gradient(gradient, *inputs),
    ]
    for actual, expected in zip(ours, theirs, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)
    # Nothing here waits for a device: what is wrong with a box shows as NaN.
    y[0, 0], images[1] = torch.nan, 5.0
    assert prroi_pool_triton.pool(*inputs).isnan().flatten(1).all(1).tolist() == [True, True, False, False]


@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") != "1", reason="run by the test above, interpreted")
def test_star_and_its_gradients_equal_the_plain_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    from tightbox.ops import StarSampling, csr, star_conv, star_conv2d

    leaves = [torch.randn(1, 3, 2, 3), 24 * torch.rand(1, 4, 2, 3), torch.randn(2, 3, 3, 3)]
    leaves = [leaf.requires_grad_() for leaf in leaves]

    def run() -> list[torch.Tensor]:
        output = star_conv2d(leaves[0], StarSampling(leaves[1], 8.0), leaves[2])
        return [output, *torch.autograd.grad(output.square().sum(), leaves)]

    assert csr.uses_triton(leaves[0])
    ours = run()
    monkeypatch.setattr(csr, "uses_triton", lambda _: False)
    monkeypatch.setattr(star_conv, "uses_triton", lambda _: False)
    for actual, expected in zip(ours, run(), strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)
