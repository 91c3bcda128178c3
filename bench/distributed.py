"""What do several processes cost? `DistributedS` beside a loop with torch's DistributedDataParallel, written by hand.

Both train the same model on the same rows with the same global batch, in turn (A B A B ...) in the same two processes
over gloo, on one torch thread each; the ratio of CPU time is taken for each pair (waiting isn't counted, which would
depend on what else runs on the machine), and the median and the middle half are printed. A fit has 4 epochs of 16,384
rows, and what it costs once is in it; that is also printed by itself, from fits of a single batch. Then one process: a
learner with `DistributedS` beside one without.  Usage: python bench/distributed.py [pairs]"""
import os, statistics, sys, time

os.environ.setdefault('OMP_NUM_THREADS', '1')
import torch, torch.distributed as dist, torch.nn.functional as F  # noqa: E402
from torch import nn  # noqa: E402
from torch.nn.parallel import DistributedDataParallel  # noqa: E402
from torch.utils.data import DataLoader, TensorDataset  # noqa: E402
from nntrain.core import set_seed  # noqa: E402
from nntrain.dataloaders import DataLoaders  # noqa: E402
from nntrain.distributed import DistributedS, launch, rank, start, world  # noqa: E402
from nntrain.learner import Learner  # noqa: E402

def data(n=16384):
    g = torch.Generator().manual_seed(0)
    return torch.randn(n, 784, generator=g), torch.randint(0, 10, (n,), generator=g)

def mlp(width):
    set_seed(0)
    return nn.Sequential(nn.Linear(784, width), nn.ReLU(), nn.Linear(width, 10))

def by_hand(model, dl, epochs=4):
    "The loop of torch's tutorial, with the mean loss that everybody wants"
    start = time.process_time()
    net, opt = DistributedDataParallel(model), torch.optim.SGD(model.parameters(), .01)
    for _ in range(epochs):
        losses = []
        for xb, yb in dl:
            loss = F.cross_entropy(net(xb), yb)
            loss.backward()
            opt.step()
            opt.zero_grad()
            losses.append(loss.item())
        sums = torch.tensor([sum(losses), len(losses)])
        dist.all_reduce(sums)
    return time.process_time()-start

def ours(model, dls, subs, epochs=4):
    learn = Learner(model, dls, F.cross_entropy, torch.optim.SGD, .01, subs)
    learn.quiet = True
    start = time.process_time()
    learn.fit(epochs, valid=False)
    return time.process_time()-start

def quartiles(xs): return f'{statistics.median(xs):.3f} ({statistics.quantiles(xs)[0]:.3f} to {statistics.quantiles(xs)[2]:.3f})'

def several(pairs, width, bs):
    start()
    x, y = data()
    ds = TensorDataset(x, y)
    dls = DataLoaders.from_datasets(ds, None, bs, seed=0)
    # rows are fetched in one piece on both sides: what is compared is the loop
    hand = DataLoader(Whole(x, y), sampler=Batches(len(x), bs), batch_size=None)
    ratios, steps, once = [], [], []
    single = (DataLoader(Whole(x[:bs], y[:bs]), sampler=Batches(bs, bs), batch_size=None),
              DataLoaders.from_datasets(TensorDataset(x[:bs], y[:bs]), None, bs, seed=0))
    for _ in range(2+pairs):
        once.append((ours(mlp(width), single[1], [DistributedS()], 1)-by_hand(mlp(width), single[0], 1))*1e3)
    for _ in range(pairs):
        dist.barrier()
        a = by_hand(mlp(width), hand)
        dist.barrier()
        b = ours(mlp(width), dls, [DistributedS()])
        ratios.append(b/a)
        steps.append(a/len(dls.train)/4*1e3)
    return quartiles(ratios), statistics.median(steps), statistics.median(once[2:])

class Whole(torch.utils.data.Dataset):
    def __init__(self, x, y): self.x, self.y = x, y
    def __len__(self): return len(self.x)
    def __getitem__(self, rows): return self.x[rows], self.y[rows]

class Batches:
    "Each process's rows of each batch, shuffled"
    def __init__(self, n, bs): self.n, self.bs = n, bs//world()
    def __iter__(self): return iter(torch.randperm(self.n)[rank()::world()].split(self.bs))
    def __len__(self): return self.n//self.bs//world()

def one(pairs, width, bs):
    x, y = data()
    dls = DataLoaders.from_datasets(TensorDataset(x, y), None, bs, seed=0)
    return quartiles([ours(mlp(width), dls, [DistributedS()])/ours(mlp(width), dls, []) for _ in range(pairs)])

if __name__ == '__main__':
    pairs = int(sys.argv[1]) if sys.argv[1:] else 12
    for width, bs in ((50, 64), (512, 256)):
        ratio, ms, once = launch(several, pairs, width, bs, n=2)
        print(f'MLP 784-{width}-10, batches of {bs}, two processes: {ratio} times the loop by hand ({ms:.2f} ms a step)')
        print(f'    a fit costs once: {once:.0f} ms more')
        print(f'    one process: {one(pairs, width, bs)} times a learner without DistributedS')
