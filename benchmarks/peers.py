"""The same sweep in PyTorch, five ways, for `jaxexp bench` to time beside JAX (needs torch).

Letters in names: T trials, N rows, B rows of a batch, F inputs, O outputs of a layer, P parameters
of one network, S distinct seeds (so distinct shuffles).
"""

import math
import multiprocessing as mp
import os
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass, replace
from itertools import pairwise
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
import torch
import torch._inductor.config as inductor
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset

_BETA1, _BETA2, _EPS = 0.9, 0.999, 1e-8  # Adam, the defaults of torch.optim
_STEPS_PER_CALL = 4  # training steps unrolled into one compiled program
_EAGER_BUDGET_S = 12.0  # an eager vmap is slow: time as many steps of an epoch as fit in this


@dataclass(frozen=True)
class Workload:
    """The sweep to time: data, the trials (a learning rate and a seed each) and the network."""

    x_Nx2: np.ndarray
    y_N: np.ndarray
    classes: int
    learning_rates: tuple[float, ...]
    seeds: tuple[int, ...]
    depth: int = 6
    width: int = 16
    batch_size: int = 256
    epochs: int = 2

    def __post_init__(self) -> None:
        """Refuse trials that are not one learning rate and one seed each."""
        if not self.learning_rates or len(self.learning_rates) != len(self.seeds):
            raise ValueError(
                "expected one seed per learning rate and at least one trial, got "
                f"{len(self.learning_rates)} learning rates and {len(self.seeds)} seeds"
            )

    @property
    def sizes(self) -> list[int]:
        """Units of every layer, inputs and outputs included."""
        return [self.x_Nx2.shape[1], *[self.width] * self.depth, self.classes]

    @property
    def steps(self) -> int:
        """Training steps in an epoch, the partial batch included."""
        return math.ceil(len(self.y_N) / self.batch_size)

    def trials(self, start: int, stop: int) -> "Workload":
        """The same sweep with only the trials from `start` to `stop`."""
        lrs, seeds = self.learning_rates[start:stop], self.seeds[start:stop]
        return replace(self, learning_rates=lrs, seeds=seeds)


@dataclass(frozen=True)
class Timing:
    """What a peer took, wall clock.

    setup_s: seconds of process start, compilation and warm-up, before the timed epochs.
    epoch_s: seconds per trial for each timed epoch (an epoch of all trials run, over their number).
    note: what was run.
    """

    setup_s: float
    epoch_s: tuple[float, ...]
    note: str


def _cores() -> int:
    return len(os.sched_getaffinity(0))


@contextmanager
def _threads(count: int) -> Iterator[None]:
    """Run torch with `count` threads, then with as many as before."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _sample(work: Workload) -> tuple[Tensor, Tensor]:
    """About 4,000 rows spread over the data, on which learning is verified."""
    every = max(1, len(work.y_N) // 4000)
    return torch.tensor(work.x_Nx2[::every]), torch.tensor(work.y_N[::every]).long()


def _verify_learned(work: Workload, before_T: Tensor, after_T: Tensor) -> None:
    """Raise unless the trial with the most ordinary learning rate has lowered its loss."""
    rates = work.learning_rates[: len(before_T)]
    trial = min(range(len(rates)), key=lambda t: abs(math.log10(rates[t]) + 3))
    before, after = float(before_T[trial]), float(after_T[trial])
    learned = after < before if rates[trial] <= 1e-2 else after != before
    if not (math.isfinite(after) and learned):
        raise RuntimeError(
            f"the peer did not train: loss {before:.4g} before, {after:.4g} after, at learning "
            f"rate {rates[trial]:g}"
        )


# --- One trial after another


def _model(work: Workload, seed: int) -> nn.Sequential:
    torch.manual_seed(seed)
    layers: list[nn.Module] = []
    for fan_in, units in pairwise(work.sizes):
        layers += [nn.Linear(fan_in, units), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def _train(model: nn.Module, adam: torch.optim.Adam, batches: Any) -> None:
    for x_BxF, y_B in batches:
        adam.zero_grad()
        functional.cross_entropy(model(x_BxF), y_B).backward()
        adam.step()


@torch.no_grad()
def _model_loss(work: Workload, model: nn.Module) -> Tensor:
    x_NxF, y_N = _sample(work)
    return functional.cross_entropy(model(x_NxF), y_N)


def _time_in_turn(
    work: Workload, batches: Callable[[], Any], epochs: int, fused: bool | None
) -> tuple[float, ...]:
    """Seconds per trial of each epoch, the trials trained one after another."""
    seconds_TxE, losses_Tx2 = [], []
    for lr, seed in zip(work.learning_rates, work.seeds, strict=True):
        model = _model(work, seed)
        adam = torch.optim.Adam(model.parameters(), lr, fused=fused)
        before, ticks = _model_loss(work, model), [time.perf_counter()]
        for _ in range(epochs):
            _train(model, adam, batches())
            ticks.append(time.perf_counter())
        seconds_TxE.append(np.diff(ticks))
        losses_Tx2.append(torch.stack([before, _model_loss(work, model)]))
    _verify_learned(work, *torch.stack(losses_Tx2, dim=1))
    return tuple(np.mean(seconds_TxE, axis=0).tolist())


class _Places(Dataset[tuple[Tensor, Tensor]]):
    """The data as the report has it: one row at a time, by index."""

    def __init__(self, work: Workload) -> None:
        self.x_NxF, self.y_N = torch.tensor(work.x_Nx2), torch.tensor(work.y_N).long()

    def __len__(self) -> int:
        return len(self.y_N)

    def __getitem__(self, row: int) -> tuple[Tensor, Tensor]:
        return self.x_NxF[row], self.y_N[row]


def report_loop(work: Workload) -> Timing:
    """Time the report's way, on one of the trials: Dataset, DataLoader, Adam, default threads."""
    start = time.perf_counter()
    loader = DataLoader(_Places(work), work.batch_size, shuffle=True)
    model = _model(work, work.seeds[0])
    _train(model, torch.optim.Adam(model.parameters()), [next(iter(loader))])
    setup_s = time.perf_counter() - start
    epoch_s = _time_in_turn(work.trials(0, 1), lambda: loader, min(2, work.epochs), fused=None)
    note = f"1 trial, torch's default threads ({torch.get_num_threads()})"
    return Timing(setup_s, epoch_s, note)


def _resident_batches(work: Workload, limit: int | None = None) -> Callable[[], Iterator[Any]]:
    """Batches cut from resident tensors in a new order at each call (`limit`: only so many)."""
    x_NxF, y_N = torch.tensor(work.x_Nx2), torch.tensor(work.y_N).long()

    def batches() -> Iterator[Any]:
        rows = torch.randperm(len(y_N)).split(work.batch_size)
        return ((x_NxF[rows_B], y_N[rows_B]) for rows_B in rows[:limit])

    return batches


def resident_loop(work: Workload) -> Timing:
    """Time a good single-network loop: resident tensors, fused Adam, one trial after another."""
    start = time.perf_counter()
    timed = work.trials(0, 4)
    probe_s = {}
    for threads in sorted({1, _cores()}):
        with _threads(threads):
            # The second epoch of the probe: the first one warms up.
            probe = _time_in_turn(work.trials(0, 1), _resident_batches(work, 50), 2, fused=True)
            probe_s[threads] = probe[1]
    fastest = min(probe_s, key=probe_s.__getitem__)
    setup_s = time.perf_counter() - start
    with _threads(fastest):
        epoch_s = _time_in_turn(timed, _resident_batches(work), work.epochs, fused=True)
    return Timing(
        setup_s, epoch_s, f"{len(timed.seeds)} trials, {fastest} thread(s), the faster of 1 and all"
    )


# --- All trials at once, as torch.func's tutorial has it


class _EagerVmap:
    """torch.func.vmap over stacked modules, one shuffle for all, Adam by hand."""

    def __init__(self, work: Workload) -> None:
        models = [_model(work, seed) for seed in work.seeds]
        self.params, _ = torch.func.stack_module_state(models)
        self.params = {name: p.detach() for name, p in self.params.items()}
        self.moments = {n: (torch.zeros_like(p),) * 2 for n, p in self.params.items()}
        self.lr_T, self.count = torch.tensor(work.learning_rates, dtype=torch.float32), 0

        def loss(params: dict[str, Tensor], x_BxF: Tensor, y_B: Tensor) -> Tensor:
            logits_BxO = torch.func.functional_call(models[0], params, (x_BxF,))
            return functional.cross_entropy(logits_BxO, y_B)

        self.loss_T = torch.func.vmap(loss, in_dims=(0, None, None))
        self.gradients = torch.func.vmap(torch.func.grad_and_value(loss), in_dims=(0, None, None))

    def step(self, x_BxF: Tensor, y_B: Tensor) -> None:
        gradients, _ = self.gradients(self.params, x_BxF, y_B)
        self.count += 1
        unbias1, unbias2 = 1 - _BETA1**self.count, 1 - _BETA2**self.count
        for name, g in gradients.items():
            m, v = self.moments[name]
            m, v = torch.lerp(m, g, 1 - _BETA1), _BETA2 * v + (1 - _BETA2) * g * g
            self.moments[name] = m, v
            lr = self.lr_T.view(-1, *[1] * (g.dim() - 1))
            change = m / unbias1 / ((v / unbias2).sqrt() + _EPS)
            self.params[name] = self.params[name] - lr * change


def vmap_eager(work: Workload) -> Timing:
    """Time torch.func.vmap over all trials, uncompiled; part of an epoch, scaled, if it is long."""
    start = time.perf_counter()
    peer, batches, all_threads = _EagerVmap(work), _resident_batches(work), _threads(_cores())
    with torch.no_grad(), all_threads:
        before_T = peer.loss_T(peer.params, *_sample(work))
        for batch in _resident_batches(work, 3)():
            tick = time.perf_counter()
            peer.step(*batch)
            step_s = time.perf_counter() - tick
        setup_s = time.perf_counter() - start
        limit = min(work.steps, 1 + int(_EAGER_BUDGET_S / work.epochs / step_s))
        epoch_s = []
        for _ in range(work.epochs):
            tick = time.perf_counter()
            for _, batch in zip(range(limit), batches(), strict=False):
                peer.step(*batch)
            epoch_s.append((time.perf_counter() - tick) * work.steps / limit / len(work.seeds))
        _verify_learned(work, before_T, peer.loss_T(peer.params, *_sample(work)))
    part = "" if limit == work.steps else f", {limit} of {work.steps} steps timed and scaled"
    return Timing(
        setup_s, tuple(epoch_s), f"{len(work.seeds)} trials, {_cores()} threads, one shuffle{part}"
    )


# --- All trials at once, compiled: the fastest found


def _initial(work: Workload) -> Tensor:
    """PyTorch's default initialisation of every trial, each network in one row of T×P."""
    rows = []
    for seed in work.seeds:
        generator = torch.Generator().manual_seed(seed)
        layers = [
            (2 * torch.rand(units * (fan_in + 1), generator=generator) - 1) / math.sqrt(fan_in)
            for fan_in, units in pairwise(work.sizes)
        ]
        rows.append(torch.cat(layers))
    return torch.stack(rows)


def _layers(flat_TxP: Tensor, sizes: list[int]) -> list[tuple[Tensor, Tensor]]:
    """Views of the weights (T×O×F) and the biases (T×O×1) of each layer."""
    layers, at = [], 0
    for fan_in, units in pairwise(sizes):
        end = at + units * fan_in
        w_TxOxF = flat_TxP[:, at:end].view(-1, units, fan_in)
        layers.append((w_TxOxF, flat_TxP[:, end : end + units, None]))
        at = end + units
    return layers


def _forward(layers: list[tuple[Tensor, Tensor]], x_TxFxB: Tensor) -> list[Tensor]:
    """The input of every layer, then the logits (each T×units×B)."""
    inputs = [x_TxFxB]
    for w_TxOxF, b_TxOx1 in layers:
        z_TxOxB = torch.baddbmm(b_TxOx1, w_TxOxF, inputs[-1])
        inputs.append(z_TxOxB.relu() if len(inputs) < len(layers) else z_TxOxB)
    return inputs


def _loss_and_gradient(
    flat_TxP: Tensor, x_TxFxB: Tensor, y_TxB: Tensor, sizes: list[int]
) -> tuple[Tensor, Tensor]:
    """Cross entropy of each trial (T) and its gradient (T×P), differentiated by hand."""
    layers = _layers(flat_TxP, sizes)
    *inputs, logits_TxOxB = _forward(layers, x_TxFxB)
    hit_TxOxB = y_TxB[:, None, :] == torch.arange(sizes[-1], dtype=y_TxB.dtype)[:, None]
    shifted_TxOxB = logits_TxOxB - logits_TxOxB.amax(1, keepdim=True)
    sum_Tx1xB = shifted_TxOxB.exp().sum(1, keepdim=True)
    loss_T = (sum_Tx1xB.log() - (shifted_TxOxB * hit_TxOxB).sum(1, keepdim=True)).mean((1, 2))
    g_TxOxB = (shifted_TxOxB.exp() / sum_Tx1xB - hit_TxOxB.float()) / x_TxFxB.shape[-1]
    parts: list[Tensor] = []
    for depth in reversed(range(len(layers))):
        gw_TxOxF = torch.bmm(g_TxOxB, inputs[depth].transpose(1, 2))
        parts[:0] = [gw_TxOxF.flatten(1), g_TxOxB.sum(2)]
        if depth:
            g_TxOxB = torch.bmm(layers[depth][0].transpose(1, 2), g_TxOxB) * (inputs[depth] > 0)
    return loss_T, torch.cat(parts, 1)


def _functional_loss_and_gradient(
    flat_TxP: Tensor, x_TxFxB: Tensor, y_TxB: Tensor, sizes: list[int]
) -> tuple[Tensor, Tensor]:
    """The same, as one writes it: torch.func.vmap of torch.func.grad of one network's loss."""

    def loss(flat_P: Tensor, x_FxB: Tensor, y_B: Tensor) -> Tensor:
        logits_OxB = _forward(_layers(flat_P[None], sizes), x_FxB[None])[-1][0]
        return functional.cross_entropy(logits_OxB.T, y_B.long())

    g_TxP, loss_T = torch.func.vmap(torch.func.grad_and_value(loss))(flat_TxP, x_TxFxB, y_TxB)
    return loss_T, g_TxP


_State = tuple[Tensor, Tensor, Tensor, Tensor]  # parameters, both moments (T×P), steps taken


def _adam(state: _State, g_TxP: Tensor, lr_Tx1: Tensor) -> _State:
    flat_TxP, m_TxP, v_TxP, count = state
    count = count + 1
    m_TxP = _BETA1 * m_TxP + (1 - _BETA1) * g_TxP
    v_TxP = _BETA2 * v_TxP + (1 - _BETA2) * g_TxP * g_TxP
    unbiased_TxP = (v_TxP / (1 - _BETA2**count)).sqrt()
    change_TxP = m_TxP / (1 - _BETA1**count) / (unbiased_TxP + _EPS)
    return flat_TxP - lr_Tx1 * change_TxP, m_TxP, v_TxP, count


class _Compiled:
    """Every trial trained by one compiled program of a few steps.

    The formulation kept, on 4 cores at depth 6 and width 16, by the minimum of several epochs:
    - stacked products differentiated by hand; torch.func.vmap of grad took 1.2 to 1.8 times as
      long; autograd through stacked products lay around these, within the noise with 4 threads;
    - feature-major activations (T×units×B), whose products are a little faster with few trials;
    - parameters and moments flat, so that Adam is one kernel and a call has few arguments;
    - Inductor's C++ wrapper and 4 steps a call: 0.042 to 0.028 s with 4 trials on one thread.
    `max-autotune-no-cudagraphs` and in-place updates made no clear difference.
    """

    def __init__(
        self, work: Workload, loss_and_gradient: Callable[..., Any] = _loss_and_gradient
    ) -> None:
        self.work, self.sizes, self.loss_and_gradient = work, work.sizes, loss_and_gradient
        self.x_FxN = torch.tensor(work.x_Nx2).T.contiguous()
        self.y_N = torch.tensor(work.y_N)
        self.lr_Tx1 = torch.tensor(work.learning_rates, dtype=torch.float32)[:, None]
        distinct, shuffle_T = np.unique(work.seeds, return_inverse=True)
        self.shuffle_T = torch.tensor(shuffle_T)
        self.generators = [torch.Generator().manual_seed(int(seed)) for seed in distinct]
        flat_TxP = _initial(work)
        moments_TxP = torch.zeros_like(flat_TxP)
        self.state: _State = (flat_TxP, moments_TxP, moments_TxP.clone(), torch.zeros(()))
        self.program = torch.compile(
            self._steps, fullgraph=True, dynamic=False, options={"cpp_wrapper": True}
        )

    def _per_trial(self, block_SxxB: Tensor) -> Tensor:
        """A block of each shuffle (S first) as a block for each trial (T first)."""
        if len(self.generators) == 1:
            return block_SxxB.expand(len(self.shuffle_T), *block_SxxB.shape[1:])
        return block_SxxB[self.shuffle_T]

    def _steps(self, state: _State, x_SxFxM: Tensor, y_SxM: Tensor) -> tuple[_State, Tensor]:
        """Train on M rows, batch after batch; also the trials' losses, averaged over the steps."""
        losses, size = [], self.work.batch_size
        for x_SxFxB, y_SxB in zip(x_SxFxM.split(size, -1), y_SxM.split(size, -1), strict=True):
            x_TxFxB, y_TxB = self._per_trial(x_SxFxB), self._per_trial(y_SxB)
            loss_T, g_TxP = self.loss_and_gradient(state[0], x_TxFxB, y_TxB, self.sizes)
            state = _adam(state, g_TxP, self.lr_Tx1)
            losses.append(loss_T)
        return state, torch.stack(losses).mean(0)

    def _blocks(self) -> list[tuple[Tensor, Tensor]]:
        """An epoch's shuffled data, cut into what one call trains on."""
        rows = [torch.randperm(len(self.y_N), generator=g) for g in self.generators]
        x_SxFxN = torch.stack([self.x_FxN[:, rows_N] for rows_N in rows])
        y_SxN = torch.stack([self.y_N[rows_N] for rows_N in rows])
        size = self.work.batch_size * _STEPS_PER_CALL
        return list(zip(x_SxFxN.split(size, -1), y_SxN.split(size, -1), strict=True))

    @torch.no_grad()
    def warm_up(self) -> None:
        """Compile: the first block, and the last, whose shape differs."""
        blocks = self._blocks()
        self.before_T = self._sample_loss()
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                for block in [blocks[0], blocks[0], blocks[-1]]:
                    self.state, _ = self.program(self.state, *block)
        except Exception as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise RuntimeError(f"torch.compile failed: {reason}") from error

    @torch.no_grad()
    def epoch(self) -> None:
        """Train every trial for an epoch."""
        for block in self._blocks():
            self.state, _ = self.program(self.state, *block)

    @torch.no_grad()
    def _sample_loss(self) -> Tensor:
        x_NxF, y_N = _sample(self.work)
        trials = len(self.work.seeds)
        layers = _layers(self.state[0], self.sizes)
        logits_TxOxN = _forward(layers, x_NxF.T.expand(trials, -1, -1))[-1]
        y_TxN = y_N.expand(trials, -1)
        return functional.cross_entropy(logits_TxOxN, y_TxN, reduction="none").mean(1)

    def verify(self) -> None:
        """Raise unless training has lowered the loss."""
        _verify_learned(self.work, self.before_T, self._sample_loss())


def _shuffles(work: Workload) -> str:
    return "one shuffle" if len(set(work.seeds)) == 1 else f"{len(set(work.seeds))} shuffles"


def functional_compiled(work: Workload) -> Timing:
    """Time torch.func.vmap under torch.compile, one process, all threads."""
    return vmap_compiled(work, _functional_loss_and_gradient)


def vmap_compiled(
    work: Workload, loss_and_gradient: Callable[..., Any] = _loss_and_gradient
) -> Timing:
    """Time all trials in one compiled program, one process, all threads."""
    start = time.perf_counter()
    torch.compiler.reset()  # Dynamo refuses to compile the same function for many workloads
    with _threads(_cores()):
        peer = _Compiled(work, loss_and_gradient)
        peer.warm_up()
        ticks = [time.perf_counter()]
        for _ in range(work.epochs):
            peer.epoch()
            ticks.append(time.perf_counter())
        peer.verify()
    epoch_s = tuple((np.diff(ticks) / len(work.seeds)).tolist())
    note = f"{len(work.seeds)} trials, {_cores()} threads, {_shuffles(work)}"
    return Timing(ticks[0] - start, epoch_s, note)


def _process(work: Workload, pipe: Connection) -> None:
    """A process's share: says None when ready, then after each epoch it is told to train."""
    try:
        torch.set_num_threads(1)
        inductor.compile_threads = 1  # a pool of compilers in every process would outlive it
        peer = _Compiled(work)
        peer.warm_up()
        pipe.send(None)
        for _ in range(work.epochs):
            pipe.recv()
            peer.epoch()
            pipe.send(None)
        peer.verify()
        pipe.send(None)
    except EOFError:  # the parent has given up
        pass
    except Exception as error:
        with suppress(OSError):
            pipe.send(str(error))  # for the parent to raise


def _await_all(pipes: list[Connection]) -> None:
    """Wait for every process's word, and raise the first complaint."""
    for pipe in pipes:
        try:
            complaint = pipe.recv()
        except EOFError:
            complaint = "a process died"
        if complaint is not None:
            raise RuntimeError(complaint)


def _end(process: mp.process.BaseProcess) -> None:
    process.join(2)  # time to end by itself, its pipe being closed
    process.terminate()
    process.join()


@contextmanager
def _processes(shares: list[Workload]) -> Iterator[list[Connection]]:
    """One process per share, each at the other end of a pipe; none outlives the block."""
    context = mp.get_context("spawn")
    with ExitStack() as stack:
        pipes = []
        for share in shares:
            ours, theirs = context.Pipe()
            process = context.Process(target=_process, args=(share, theirs), daemon=True)
            process.start()
            stack.callback(_end, process)
            theirs.close()  # so that its death ends our recv
            pipes.append(stack.enter_context(closing(ours)))
        yield pipes


def vmap_compiled_processes(work: Workload) -> Timing:
    """Time the compiled program in one single-threaded process per core, trials split evenly."""
    start = time.perf_counter()
    count = min(_cores(), len(work.seeds))
    share = len(work.seeds) // count
    shares = [work.trials(i * share, (i + 1) * share) for i in range(count)]
    with _processes(shares) as pipes:
        _await_all(pipes)
        ticks = [time.perf_counter()]
        for _ in range(work.epochs):
            for pipe in pipes:
                pipe.send(None)
            _await_all(pipes)
            ticks.append(time.perf_counter())
        _await_all(pipes)  # each has verified that it learned
    epoch_s = tuple((np.diff(ticks) / (count * share)).tolist())
    left_out = len(work.seeds) - count * share
    note = f"{count} processes of {share} trials, 1 thread each, {_shuffles(work)}"
    return Timing(ticks[0] - start, epoch_s, note + (f", {left_out} left out" if left_out else ""))


PEERS: dict[str, Callable[[Workload], Timing]] = {
    "PyTorch, DataLoader, one after another (the report's way)": report_loop,
    "PyTorch, resident tensors, fused Adam, one after another": resident_loop,
    "PyTorch, torch.func.vmap, eager": vmap_eager,
    "PyTorch, torch.func.vmap, torch.compile": functional_compiled,
    "PyTorch, stacked and differentiated by hand, torch.compile": vmap_compiled,
    "the same, one process per core": vmap_compiled_processes,
}
