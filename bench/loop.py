"""What does Learner cost? Time per training step as a ratio to a loop written by hand that does the same, and in µs.

Both sides run in one process, in turn (A B A B ...), on one torch thread; ratio and difference are taken for each
pair, and their medians are printed, with the middle half of the ratios. Two sizes of a step, both so short that any
overhead shows: an MLP 784-50-10 with batches of 64 (some 400 µs), and two linear layers 16-16-1 with batches of 8
(some 80 µs, hardly more than what torch itself takes to be called).  Usage: python bench/loop.py [pairs]"""
import io, os, statistics, sys, time, warnings
from contextlib import redirect_stdout
from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace
from typing import Callable

os.environ.setdefault('OMP_NUM_THREADS', '1')
warnings.filterwarnings('ignore')
import torch, torch.nn.functional as F  # noqa: E402
from torch import nn  # noqa: E402
from fastprogress.fastprogress import ConsoleMasterBar, ConsoleProgressBar  # noqa: E402
from torcheval.metrics import MulticlassAccuracy  # noqa: E402
from nntrain.core import set_seed  # noqa: E402
from nntrain.learner import DeviceS, Learner, MetricsS, ProgressS  # noqa: E402

torch.set_num_threads(1)

class Distance:
    "A metric out of torch alone, whose own cost is small: the mean absolute error"
    def __init__(self): self.reset()
    def reset(self): self.total, self.n = torch.zeros(()), 0
    def update(self, preds, y): self.total += (preds-y).abs().sum(); self.n += y.numel()
    def compute(self): return self.total/self.n

@dataclass
class Step:
    "A step to measure: what makes its model, a batch and its metric; the loss"
    name: str
    model: Callable
    batch: Callable
    n: int # Batches in a pass
    loss: Callable
    metric: Callable
    def data(self): set_seed(0); return [self.batch() for _ in range(self.n)]

steps = [Step('MLP 784-50-10, batches of 64', lambda: nn.Sequential(nn.Linear(784, 50), nn.ReLU(), nn.Linear(50, 10)),
              lambda: (torch.randn(64, 784), torch.randint(0, 10, (64,))), 500, F.cross_entropy, MulticlassAccuracy),
         Step('linear 16-16-1, batches of 8', lambda: nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 1)),
              lambda: (torch.randn(8, 16), torch.randn(8, 1)), 2000, F.mse_loss, Distance)]

def bare(step, model, dl):
    "The shortest loop that trains"
    opt = torch.optim.SGD(model.parameters(), 0.01)
    model.train()
    for xb, yb in dl:
        loss = step.loss(model(xb), yb)
        loss.backward()
        opt.step()
        opt.zero_grad()

def by_hand(step, model, dl):
    "A careful loop with a metric, the mean loss, a device and a progress bar; nothing is fetched from the device per batch"
    device = torch.device('cpu')
    opt, metric = torch.optim.SGD(model.parameters(), 0.01), step.metric()
    model.to(device).train()
    bar = ConsoleMasterBar(range(1))
    for epoch in bar:
        losses, sizes = [], []
        metric.reset()
        for xb, yb in ConsoleProgressBar(dl, leave=False, parent=bar):
            xb, yb = xb.to(device), yb.to(device)
            preds = model(xb)
            loss = step.loss(preds, yb)
            loss.backward()
            opt.step()
            opt.zero_grad()
            metric.update(preds.detach(), yb)
            losses.append(loss.detach())
            sizes.append(len(xb))
        weights = torch.tensor(sizes, dtype=torch.float64, device=device)
        mean = (torch.stack(losses).double()*weights).sum()/weights.sum()
        bar.write(f'{epoch} {mean.item():.3f} {metric.compute().item():.3f}')

def learner(step, model, dl, full=False):
    subs = [MetricsS(metric=step.metric()), DeviceS('cpu'), ProgressS(display='terminal')] if full else []
    dls = SimpleNamespace(train=dl, valid=None)
    Learner(model, dls, step.loss, torch.optim.SGD, 0.01, subs).fit(1, valid=False)

def timed(f, step, dl):
    "CPU and wall time of one pass, in µs a step"
    set_seed(0)
    model = step.model()
    cpu, wall = time.process_time(), time.perf_counter()
    with redirect_stdout(io.StringIO()): f(step, model, dl)
    return [t/step.n*1e6 for t in (time.process_time()-cpu, time.perf_counter()-wall)]

def compare(a, b, step, dl, pairs):
    "Median ratio b/a for CPU and wall time with its middle half, the median of b-a in µs of CPU, and that of `a`"
    for f in (a, b): timed(f, step, dl)
    runs = [(timed(a, step, dl), timed(b, step, dl)) for _ in range(pairs)]
    res = []
    for i in (0, 1):
        q = statistics.quantiles([y[i]/x[i] for x, y in runs], n=4)
        res.append(f'{q[1]:.3f} ({q[0]:.3f}-{q[2]:.3f})')
    return *res, statistics.median(y[0]-x[0] for x, y in runs), statistics.median(x[0] for x, _ in runs)

rows = (('no subscribers / bare loop', bare, learner),
        ('MetricsS + DeviceS + ProgressS / the same by hand', by_hand, partial(learner, full=True)))

def main():
    pairs = int(sys.argv[1]) if len(sys.argv) > 1 else 40
    print(f'torch {torch.__version__}, {pairs} pairs, one thread')
    for step in steps:
        print(f"{step.name:50} {'ratio of CPU time':>20} {'ratio of wall time':>21} {'extra µs':>9} {'µs by hand':>11}")
        dl = step.data()
        for name, a, b in rows:
            cpu, wall, extra, us = compare(a, b, step, dl, pairs)
            print(f'{name:50} {cpu:>20} {wall:>21} {extra:>9.1f} {us:>11.0f}', flush=True)

if __name__ == '__main__': main()
