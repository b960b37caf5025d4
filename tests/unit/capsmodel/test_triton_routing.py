"""The Triton kernels of the dynamic routing against float64, on a GPU or under the interpreter.

What is marked `gpu` runs on a GPU where there is one. Without one, a process of its own runs the
same tests under Triton's interpreter, which has to be chosen before Triton is imported; what only
a GPU can show is left out there.
"""

import os
import subprocess
import sys
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from capsmodel.functional import squash
from capsmodel.routing.triton_routing import tiles, triton_routing, triton_usable
from support.reference import route

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
TOLERANCE = 2e-6 if INTERPRETED else 2e-5
"""Relative. Tensor cores do not round every sum to nearest; logits multiply what that leaves."""

INTERPRETED_TESTS = 21
"""How many of the tests need no GPU: fewer must not go by unnoticed."""


@dataclass
class Case:
    """A shape and the settings of a routing."""

    batch: int
    inputs: int
    classes: int
    input_dim: int
    dim: int
    iterations: int = 3
    leaky: bool = False
    detach: bool = False
    biased: bool = False

    def settings(self) -> dict[str, Any]:
        return {"iterations": self.iterations, "leaky": self.leaky, "detach": self.detach}

    def operands(self, device: torch.device, scale: float = 0.5) -> list[Tensor]:
        """Capsules, weight and perhaps a bias, all of which want a gradient."""
        generator = torch.Generator().manual_seed(self.inputs)
        shapes = [
            (self.batch, self.inputs, self.input_dim),
            (self.inputs, self.classes, self.input_dim, self.dim),
            (self.classes, self.dim),
        ]
        drawn = [scale * torch.randn(shape, generator=generator) for shape in shapes]
        return [one.to(device).requires_grad_() for one in drawn[: 2 + self.biased]]

    def gradient(self, device: torch.device) -> Tensor:
        """Of the poses."""
        generator = torch.Generator().manual_seed(self.batch)
        shape = (self.batch, self.classes, self.dim)
        return torch.randn(shape, generator=generator).to(device)


CASES = [
    Case(20, 17, 4, 8, 16),
    Case(1, 300, 3, 1, 24, iterations=2, biased=True),
    Case(33, 9, 2, 3, 4, iterations=5, detach=True, biased=True),
    Case(5, 7, 17, 3, 16, leaky=True, biased=True),
    Case(5, 11, 3, 8, 4, iterations=4, leaky=True),
    Case(2, 40, 3, 8, 16, iterations=1, leaky=True, biased=True),
    Case(70, 9, 2, 3, 24, iterations=2, detach=True),
    Case(1, 3, 100, 8, 24, iterations=2),
]
SMALL = Case(3, 10, 3, 2, 5, biased=True)


@pytest.fixture
def device() -> torch.device:
    if INTERPRETED:
        interpret_as_tensor_cores_do()
        return torch.device("cpu")
    return cuda()


def cuda() -> torch.device:
    if INTERPRETED or not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    if find_spec("triton") is None:
        pytest.skip("Triton is not installed")
    return torch.device("cuda")


def interpret_as_tensor_cores_do() -> None:
    """Let the interpreter cut the operands of products to TF32; and let it be quicker."""
    from triton.runtime.interpreter import InterpreterBuilder, TensorHandle, interpreter_builder

    interpreter_builder.options = replace(interpreter_builder.options, sanitize_overflow=False)
    product = InterpreterBuilder.create_dot

    def cut(operand: TensorHandle) -> TensorHandle:
        return TensorHandle((operand.data.view("i4") & -0x2000).view("f4"), operand.dtype)

    def product_of_cut(self: Any, left: Any, right: Any, *rest: Any) -> Any:
        return product(self, cut(left), cut(right), *rest)

    if product.__name__ != product_of_cut.__name__:
        InterpreterBuilder.create_dot = product_of_cut


def relative_error(actual: Tensor, expected: Tensor) -> float:
    actual, expected = actual.detach().cpu().double(), expected.detach().cpu().double()
    return float((actual - expected).norm() / expected.norm().clamp(min=1e-30))


def routed(case: Case, operands: list[Tensor]) -> Tensor:
    return triton_routing(*operands, **case.settings())


def assert_equals_the_reference(case: Case, device: torch.device) -> None:
    operands = case.operands(device)
    poses = routed(case, operands)
    gradients = torch.autograd.grad(poses, operands, case.gradient(device))

    exact = [operand.detach().cpu().double().requires_grad_() for operand in operands]
    votes = torch.einsum("bip,ijpd->bijd", exact[0], exact[1])
    bias = exact[2] if case.biased else torch.zeros((), dtype=torch.float64)
    expected = route({"type": "dynamic", **case.settings()}, votes, bias)
    of_poses = case.gradient(device).cpu().double()
    expected_gradients = torch.autograd.grad(expected, exact, of_poses)

    assert poses.dtype == torch.float32
    assert relative_error(poses, expected) < TOLERANCE
    for actual, wanted in zip(gradients, expected_gradients, strict=True):
        assert actual.shape == wanted.shape
        assert relative_error(actual, wanted) < TOLERANCE


@pytest.mark.gpu
@pytest.mark.parametrize("case", CASES, ids=str)
def test_equals_the_reference(device: torch.device, case: Case) -> None:
    assert_equals_the_reference(case, device)


@pytest.mark.gpu
def test_a_program_adds_up_several_tiles(
    device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tiles, "ENOUGH_PROGRAMS", 2)
    monkeypatch.setattr(tiles, "ENOUGH_SUMS", 1)
    case = Case(2, 150, 2, 2, 4)
    assert tiles.pass_tile(tiles.Shape(2, 150, 2, 2, 4)).parts == 2
    assert_equals_the_reference(case, device)


@pytest.mark.gpu
def test_two_forwards_may_precede_a_backward(device: torch.device) -> None:
    first, second = SMALL.operands(device), SMALL.operands(device, scale=1.5)
    gradient = SMALL.gradient(device)
    alone = torch.autograd.grad(routed(SMALL, first), first, gradient)
    poses = routed(SMALL, first)
    others = routed(SMALL, second)
    together = torch.autograd.grad([poses, others], first + second, [gradient, gradient])
    assert not torch.equal(poses, others)
    for one, other in zip(alone, together[:3], strict=True):
        assert torch.equal(one, other)


@pytest.mark.gpu
def test_every_run_gives_the_same(device: torch.device) -> None:
    operands = SMALL.operands(device)
    runs = []
    for _ in range(2):
        poses = routed(SMALL, operands)
        runs.append([poses, *torch.autograd.grad(poses, operands, SMALL.gradient(device))])
    for one, other in zip(*runs, strict=True):
        assert torch.equal(one, other)


@pytest.mark.gpu
def test_strides_do_not_matter(device: torch.device) -> None:
    capsules, weight, bias = SMALL.operands(device)
    spread = [
        capsules.detach().transpose(0, 1).contiguous().transpose(0, 1).requires_grad_(),
        weight.detach().transpose(0, 2).contiguous().transpose(0, 2).requires_grad_(),
        bias.detach().T.contiguous().T.requires_grad_(),
    ]
    gradient = SMALL.gradient(device)
    spread_gradient = gradient.transpose(0, 2).contiguous().transpose(0, 2)
    assert not any(one.is_contiguous() for one in [*spread, spread_gradient])
    poses, wanted = routed(SMALL, spread), routed(SMALL, [capsules, weight, bias])
    assert torch.equal(poses, wanted)
    gradients = torch.autograd.grad(poses, spread, spread_gradient)
    expected = torch.autograd.grad(wanted, [capsules, weight, bias], gradient)
    for one, other in zip(gradients, expected, strict=True):
        assert torch.equal(one, other)


@pytest.mark.gpu
def test_zero_capsules_have_zero_poses_and_gradients(device: torch.device) -> None:
    _, weight, _ = SMALL.operands(device)
    capsules = torch.zeros(3, 10, 2, device=device, requires_grad=True)
    poses = routed(SMALL, [capsules, weight])
    gradients = torch.autograd.grad(poses, [capsules, weight], SMALL.gradient(device))
    for one in (poses, *gradients):
        assert not one.any()


@pytest.mark.gpu
@pytest.mark.parametrize("wrong", [float("inf"), float("-inf"), float("nan")])
def test_what_is_not_finite_is_noticed(device: torch.device, wrong: float) -> None:
    operands = SMALL.operands(device)
    expected = routed(SMALL, operands).detach()
    with torch.no_grad():
        operands[0][1, 4, 0] = wrong
    poses = routed(SMALL, operands)
    gradients = torch.autograd.grad(poses, operands, SMALL.gradient(device))
    assert poses[1].isnan().all()
    assert torch.equal(poses[[0, 2]], expected[[0, 2]])
    for gradient in gradients:
        assert gradient.isnan().any()


@pytest.mark.gpu
def test_huge_votes_do_not_overflow(device: torch.device) -> None:
    capsules, weight, _ = SMALL.operands(device)
    case = replace(SMALL, iterations=1)
    for power in (10, 18, 25):
        huge = capsules.detach() * 10.0**power
        poses = routed(case, [huge, weight])
        s = torch.einsum("bip,ijpd->bjd", huge.double(), weight.double()) / 3
        assert relative_error(poses, squash(s.clamp(-1e17, 1e17))) < 1e-5
        routed_again = routed(SMALL, [huge, weight])
        lengths = routed_again.detach().norm(dim=-1)
        assert ((lengths < 1e-6) | ((lengths - 1).abs() < 1e-5)).all()  # a parent may get nothing


@pytest.mark.gpu
@pytest.mark.parametrize("biased", [False, True])
def test_it_is_an_operator_that_pytorch_understands(device: torch.device, biased: bool) -> None:
    case = Case(2, 3, 2, 2, 3, iterations=2, biased=biased)
    operands: list[Tensor | None] = [*case.operands(device)]
    operands += [None] * (3 - len(operands))
    torch.library.opcheck(torch.ops.capsmodel.triton_routing.default, (*operands, 2, True, False))


@pytest.mark.gpu
def test_the_backward_is_an_operator_that_pytorch_understands(device: torch.device) -> None:
    case = Case(2, 3, 2, 2, 3, iterations=2)
    capsules, weight = (operand.detach() for operand in case.operands(device))
    made = torch.ops.capsmodel.triton_routing(capsules, weight, None, 2, False, False)
    arguments = (case.gradient(device), capsules, weight, *made[1:], False, False)
    torch.library.opcheck(torch.ops.capsmodel.triton_routing_backward.default, arguments)


@pytest.mark.gpu
def test_torch_compile_takes_it_whole(device: torch.device) -> None:
    case = Case(2, 3, 2, 2, 3, iterations=2, biased=True)
    operands, gradient = case.operands(device), case.gradient(device)

    def doubled(*operands: Tensor) -> Tensor:
        return 2 * triton_routing(*operands, **case.settings())

    backend = "aot_eager" if INTERPRETED else "inductor"
    compiled = torch.compile(doubled, fullgraph=True, backend=backend)
    poses, expected = compiled(*operands), doubled(*operands)
    assert torch.equal(poses, expected)
    gradients = torch.autograd.grad(poses, operands, gradient)
    wanted = torch.autograd.grad(expected, operands, gradient)
    for one, other in zip(gradients, wanted, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.gpu
@pytest.mark.parametrize(
    "case",
    [
        Case(257, 1152, 10, 8, 16),
        Case(4, 4000, 10, 8, 16, leaky=True, biased=True),
        Case(65, 301, 100, 8, 24, detach=True),
        Case(64, 50, 10, 16, 128, iterations=4),
        Case(64, 50, 10, 128, 16),
    ],
    ids=str,
)
def test_large_shapes_equal_the_reference(case: Case) -> None:
    device = cuda()
    assert triton_usable(*case.operands(device)[:2])
    assert_equals_the_reference(case, device)


@pytest.mark.gpu
def test_a_cuda_graph_holds_forward_and_backward() -> None:
    device = cuda()
    case = Case(32, 200, 10, 8, 16, biased=True)
    operands, gradient = case.operands(device), case.gradient(device)

    def step() -> list[Tensor]:
        poses = routed(case, operands)
        return [poses.detach(), *torch.autograd.grad(poses, operands, gradient)]

    aside = torch.cuda.Stream()
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):
        step()
    torch.cuda.current_stream().wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        held = step()
    with torch.no_grad():
        for operand in operands:
            operand.mul_(1.25)
    graph.replay()
    for one, other in zip(held, step(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.gpu
def test_a_forward_and_backward_do_not_wait_for_the_gpu() -> None:
    device = cuda()
    operands, gradient = SMALL.operands(device), SMALL.gradient(device)
    torch.autograd.grad(routed(SMALL, operands), operands, gradient)
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        torch.autograd.grad(routed(SMALL, operands), operands, gradient)
    finally:
        torch.cuda.set_sync_debug_mode(before)


@pytest.mark.slow
def test_the_tests_of_the_kernels_pass_under_the_interpreter() -> None:
    pytest.importorskip("triton", reason="Triton is not installed")
    hidden = {"TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "-n", "0", "-p", "no:cacheprovider"]
    environment = {**os.environ, **hidden}
    ran = subprocess.run([*command, __file__], env=environment, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert f"\n{INTERPRETED_TESTS} passed" in ran.stdout


COMPILER = """
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from capsmodel.routing.triton_routing import passes, sums, tiles

def compile(kernel, tile, **known):
    if tile is not None:
        known |= {"BLOCK_B": tile.samples, "BLOCK_I": tile.inputs, "BLOCK_P": tile.input_dim}
        known |= {"PARTS": tile.parts}
    known |= {"I": 1152, "J": 10, "P": 8, "D": 16, "SHARE": 0.1, "BLOCK_D": 16}
    types, values = {}, {}
    for place, name in enumerate(kernel.arg_names):
        constant = name in known
        types[name] = "constexpr" if constant else "i32" if name in ("B", "groups") else "*fp32"
        if constant:
            values[place,] = known[name]
    target = GPUTarget("cuda", 90, 32)
    options = {"num_warps": 8 if tile is None else tile.warps, "num_stages": 2}
    compiled = triton.compile(ASTSource(kernel, types, values), target, options)
    assert compiled.metadata.shared <= 227 * 1024, compiled.metadata.shared
    assert len(compiled.asm["cubin"]) > 1000
    print(kernel.__name__)

shape = tiles.Shape(128, 1152, 10, 8, 16)
tile = tiles.pass_tile(shape)
compile(passes.forward_pass, tile, FIRST=False, LEAKY=True)
compile(passes.backward_pass, tile, FIRST=False, LOGITS=True, ADD=True)
compile(passes.weight_gradient, tiles.gradient_tile(shape), R=3, FIRST_LOGITS=0)
blocks = {"BLOCK_G": 32, "BLOCK_J": 16}
compile(sums.finish_forward, None, BIASED=True, EARLIER=True, **blocks)
compile(sums.finish_backward, None, SUMMED=True, LATER=True, **blocks)
"""


@pytest.mark.slow
def test_the_kernels_compile_for_an_h100(tmp_path: Path) -> None:
    pytest.importorskip("triton", reason="Triton is not installed")
    environment = {**os.environ, "TRITON_CACHE_DIR": str(tmp_path)}
    command = [sys.executable, "-c", COMPILER]
    ran = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert len(ran.stdout.splitlines()) == 5


def test_the_module_needs_no_triton() -> None:
    code = (
        "import sys; sys.modules['triton'] = None; import torch;"
        "from capsmodel.routing.triton_routing import _gpu_usable;"
        "assert not _gpu_usable(torch.device('cuda'))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert found.returncode == 0, found.stderr


def test_it_is_not_for_a_cpu() -> None:
    capsules, weight, _ = SMALL.operands(torch.device("cpu"))
    assert not triton_usable(capsules, weight)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"capsules": torch.zeros(2, 4, 3)}, r"capsules \[2, 4, 3\] do not fit weight"),
        ({"bias": torch.zeros(5)}, r"bias is \[5\], expected \[J, D\] = \[2, 5\]"),
        ({"weight": torch.zeros(4, 2, 6, 5).double()}, "weight is torch.float64"),
        ({"iterations": 0}, "iterations is 0, expected at least 1"),
        ({"capsules": torch.zeros(0, 4, 6)}, "empty or too large"),
    ],
)
def test_operands_that_do_not_fit_are_told(changes: dict[str, Any], words: str) -> None:
    fitting = {
        "capsules": torch.zeros(2, 4, 6),
        "weight": torch.zeros(4, 2, 6, 5),
        "bias": None,
        "iterations": 3,
        "leaky": False,
        "detach": False,
    }
    with pytest.raises(ValueError, match=words):
        triton_routing(**{**fitting, **changes})


@pytest.mark.parametrize("batch", [1, 17, 128, 1024])
@pytest.mark.parametrize("shape", [(1152, 10, 8, 16), (7, 2, 3, 4), (4000, 100, 8, 24)])
def test_tiles_cover_the_inputs_and_fit_the_tensor_cores(
    batch: int, shape: tuple[int, int, int, int]
) -> None:
    sizes = tiles.Shape(batch, *shape)
    assert tiles.fits(sizes)
    for tile in (tiles.pass_tile(sizes), tiles.gradient_tile(sizes)):
        assert min(tile.samples, tile.dim, tile.inputs * tile.input_dim) >= 16
        assert tile.dim >= sizes.dim
        assert tile.input_dim >= sizes.input_dim
        step = tile.inputs * tile.parts
        assert step * (tile.groups(sizes.inputs) - 1) < sizes.inputs
        assert step * tile.groups(sizes.inputs) >= sizes.inputs
        for size in (tile.samples, tile.inputs, tile.input_dim, tile.dim):
            assert size & (size - 1) == 0


@pytest.mark.parametrize(
    "shape",
    [
        tiles.Shape(0, 7, 2, 3, 4),
        tiles.Shape(1, 7, 2, 3, 129),
        tiles.Shape(1, 7, 2, 64, 64),
        tiles.Shape(2**14, 2**14, 10, 8, 16),
    ],
)
def test_what_does_not_fit_is_left_to_pytorch(shape: tiles.Shape) -> None:
    assert not tiles.fits(shape)
