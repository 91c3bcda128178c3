"""How fast is a pass over a table in memory? 60,000 rows of 64 floats, batches of 256 in a new order: nntrain, torch's DataLoader, and slices by
hand, in turn in one run.  Usage: python bench/tables.py [rounds]"""
import os, statistics, sys, time

os.environ.setdefault('OMP_NUM_THREADS', '1')
import numpy as np, torch  # noqa: E402
from torch.utils.data import DataLoader, TensorDataset  # noqa: E402
from nntrain.dataloaders import DataLoaders  # noqa: E402

N, FEATURES, BS = 60_000, 64, 256

def by_hand(x, y):
    for rows in torch.randperm(len(x)).split(BS): yield x[rows], y[rows]

def passes(batches):
    n = 0
    for x, _ in batches: n += len(x)
    assert n==N

def clock(f):
    "Seconds of CPU time and of wall time"
    t, c = time.perf_counter(), time.process_time()
    f()
    return time.process_time()-c, time.perf_counter()-t

def main():
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 20
    torch.set_num_threads(1)
    rng = np.random.default_rng(0)
    X, y = rng.normal(3, 2, (N, FEATURES)).astype(np.float32), rng.integers(0, 10, N)
    prepare = clock(lambda: DataLoaders.from_arrays(X, y, BS, valid=None))
    table = DataLoaders.from_arrays(X, y, BS, valid=None)
    x, targets = table.train.dataset.ds.tensors
    plain = DataLoaders.from_datasets(TensorDataset(x, targets), None, BS)
    loader = DataLoader(TensorDataset(x, targets), BS, shuffle=True)
    jobs = {'slices by hand': lambda: passes(by_hand(x, targets)), 'nntrain, from_arrays': lambda: passes(table.train),
            'nntrain, a TensorDataset': lambda: passes(plain.train), "torch's DataLoader": lambda: passes(loader)}
    times = {k: [] for k in jobs}
    for f in jobs.values(): f()
    for _ in range(rounds):
        for k, f in jobs.items(): times[k].append(clock(f))
    base = times['slices by hand']
    print(f"{N:,} x {FEATURES} floats, batches of {BS}, {rounds} rounds, medians; target: nntrain at most 1.5 x by hand\n{'a pass':<26} {'CPU':>8} {'wall':>8} {'CPU / by hand':>14} {'wall / by hand':>15}")
    for k, ts in times.items():
        cpu, wall = (statistics.median(t[i] for t in ts) for i in (0, 1))
        ratios = [statistics.median(t[i]/b[i] for t, b in zip(ts, base)) for i in (0, 1)]
        print(f'{k:<26} {cpu:7.4f}s {wall:7.4f}s {ratios[0]:14.2f} {ratios[1]:15.2f}')
    print(f'from_arrays itself (standardised by scikit-learn): {prepare[0]:.2f} s CPU, once')

if __name__ == '__main__': main()
