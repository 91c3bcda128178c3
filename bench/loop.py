"""What does Learner cost? Time per training step as a ratio to a loop written by hand that does the same.

Both sides run in one process, in turn (A B A B ...), on one torch thread; a ratio is taken for each pair, and the
median of the ratios is printed, with the middle half of them. Small batches and a small model on purpose: the step
is so short that any overhead shows.  Usage: python bench/loop.py [pairs]"""
import io, os, statistics, sys, time, warnings
from contextlib import redirect_stdout
from functools import partial
from types import SimpleNamespace

os.environ.setdefault('OMP_NUM_THREADS', '1')
warnings.filterwarnings('ignore')
import torch, torch.nn.functional as F  # noqa: E402
from torch import nn  # noqa: E402
from fastprogress.fastprogress import ConsoleMasterBar, ConsoleProgressBar  # noqa: E402
from torcheval.metrics import MulticlassAccuracy  # noqa: E402
from nntrain.core import set_seed  # noqa: E402
from nntrain.learner import DeviceS, Learner, MetricsS, ProgressS  # noqa: E402

torch.set_num_threads(1)
N_BATCHES, BS, EPOCHS = 500, 64, 1

def data():
    set_seed(0)
    return [(torch.randn(BS, 784), torch.randint(0, 10, (BS,))) for _ in range(N_BATCHES)]

def get_model():
    set_seed(0)
    return nn.Sequential(nn.Linear(784, 50), nn.ReLU(), nn.Linear(50, 10))

def bare(model, dl, epochs):
    "The shortest loop that trains"
    opt = torch.optim.SGD(model.parameters(), 0.01)
    model.train()
    for _ in range(epochs):
        for xb, yb in dl:
            loss = F.cross_entropy(model(xb), yb)
            loss.backward()
            opt.step()
            opt.zero_grad()

def by_hand(model, dl, epochs, device='cpu'):
    "A careful loop with a metric, the mean loss, a device and a progress bar; nothing is fetched from the device per batch"
    opt, metric = torch.optim.SGD(model.parameters(), 0.01), MulticlassAccuracy(device=torch.device(device))
    model.to(device).train()
    bar = ConsoleMasterBar(range(epochs))
    for epoch in bar:
        metric.reset()
        total, n = torch.zeros((), device=device), 0
        for xb, yb in ConsoleProgressBar(dl, leave=False, parent=bar):
            xb, yb = xb.to(device), yb.to(device)
            preds = model(xb)
            loss = F.cross_entropy(preds, yb)
            loss.backward()
            opt.step()
            opt.zero_grad()
            metric.update(preds.detach(), yb)
            total += loss.detach()*len(xb)
            n += len(xb)
        bar.write(f'{epoch} {total.item()/n:.3f} {metric.compute().item():.3f}')

def learner(model, dl, epochs, subs=()):
    Learner(model, SimpleNamespace(train=dl, valid=None), F.cross_entropy, torch.optim.SGD, 0.01, [s() for s in subs]).fit(epochs, valid=False)

def timed(f, *args):
    model = get_model()
    cpu, wall = time.process_time(), time.perf_counter()
    with redirect_stdout(io.StringIO()): f(model, *args)
    return time.process_time()-cpu, time.perf_counter()-wall

def compare(a, b, dl, pairs):
    "Median ratio b/a for CPU and wall time with its middle half, and the median microseconds of a step of `a`"
    for f in (a, b): timed(f, dl, EPOCHS)
    runs = [(timed(a, dl, EPOCHS), timed(b, dl, EPOCHS)) for _ in range(pairs)]
    res = []
    for i in (0, 1):
        q = statistics.quantiles([y[i]/x[i] for x, y in runs], n=4)
        res.append(f'{q[1]:.3f} ({q[0]:.3f}-{q[2]:.3f})')
    us = statistics.median(x[1] for x, _ in runs)/N_BATCHES/EPOCHS*1e6
    return *res, us

def main():
    pairs, dl = int(sys.argv[1]) if len(sys.argv) > 1 else 40, data()
    full = partial(MetricsS, accuracy=MulticlassAccuracy()), DeviceS, partial(ProgressS, display='terminal')
    print(f'torch {torch.__version__}, {pairs} pairs, one thread, batches of {BS}, MLP 784-50-10')
    print(f"{'Learner against a loop by hand':52} {'ratio of CPU time':>22} {'ratio of wall time':>22} {'us/step by hand':>16}")
    for name, a, b in (('no subscribers / bare loop', bare, learner),
                       ('MetricsS + DeviceS + ProgressS / the same by hand', by_hand, partial(learner, subs=full))):
        cpu, wall, us = compare(a, b, dl, pairs)
        print(f'{name:52} {cpu:>22} {wall:>22} {us:>16.0f}', flush=True)

if __name__ == '__main__': main()
