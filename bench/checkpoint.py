"""What a checkpoint costs: a ratio to `torch.save` + fsync of the same state, measured in turns in one run (median of pairs).

    OMP_NUM_THREADS=1 python bench/checkpoint.py [--folder DIR]"""
import argparse, itertools, os, statistics, sys, tempfile, time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import torch
import torch.nn.functional as F
from torch import nn
from nntrain.checkpoint import CheckpointS
from nntrain.learner import Learner
from nntrain.saving.state import run_state
from nntrain.saving.files import read_file, write_file

def timed(f):
    start = time.perf_counter()
    f()
    return time.perf_counter()-start

def ratio(ours, theirs, n):
    "Median of the ratios, and of the seconds of each"
    ours(); theirs()
    pairs = [(timed(ours), timed(theirs)) if i%2 else tuple(reversed((timed(theirs), timed(ours)))) for i in range(n)]
    return statistics.median(a/b for a,b in pairs),statistics.median(a for a,_ in pairs),statistics.median(b for _,b in pairs)

def plain(state, path, n=itertools.count()):
    "`torch.save` and fsync to a new file, whose name then becomes `path`: over an old one it would be faster, and lose that when it is stopped"
    new = path.with_name(f'{path.name}{next(n)}')
    with open(new, 'wb') as f: torch.save(state, f); f.flush(); os.fsync(f.fileno())
    os.replace(new, path)

def fitted(width, d):
    "A learner after a fit, with Adam's state, and its CheckpointS"
    model = nn.Sequential(nn.Linear(64,width), nn.ReLU(), nn.Linear(width,width), nn.ReLU(), nn.Linear(width,10))
    class Dls: train,valid = [(torch.randn(32,64), torch.randint(10,(32,)))]*2,None
    learn,ckpt = Learner(model, Dls, F.cross_entropy, torch.optim.Adam, 1e-3),CheckpointS(d)
    learn.fit(1, valid=False, subs=[ckpt])
    return learn,ckpt

def behind(learn, ckpt, theirs, n):
    "The same for how long a save in the background stops the training; the files are waited for aside"
    with ThreadPoolExecutor(1) as pool:
        ckpt.pool,ckpt.background = pool,True
        pairs = []
        for _ in range(n):
            pairs.append((timed(lambda: ckpt.save(learn)), ckpt.writing.result(), timed(theirs)))
    ckpt.background = False
    return statistics.median(a/b for a,_,b in pairs),statistics.median(a for a,_,_ in pairs)

def row(width, d, n):
    "A row of the table, for a network of this width"
    learn,ckpt = fitted(width, d/'run')
    state,theirs,ours = run_state(learn),d/'plain.pt',d/'ours.pt'
    r,a,b = ratio(lambda: ckpt.save(learn), lambda: plain(state, theirs), n)
    rb,c = behind(learn, ckpt, lambda: plain(state, theirs), n)
    rw = ratio(lambda: write_file(state, ours), lambda: plain(state, theirs), n)[0]
    rr = ratio(lambda: read_file(ours), lambda: torch.load(theirs, weights_only=True), n)[0]
    return f'| {theirs.stat().st_size/1e6:.1f} MB | {a*1e3:.0f} ms | {b*1e3:.0f} ms | {r:.2f} | {c*1e3:.0f} ms | {rb:.2f} | {rw:.2f} | {rr:.2f} |'

def main():
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument('--folder', help='on the disk to be measured; the default is that of temporary files')
    p.add_argument('--pairs', type=int, default=15)
    args = p.parse_args()
    print(f'| state | save of CheckpointS | torch.save + fsync | ratio | the training waits for one in the background | ratio | write_file alone | read_file / torch.load |\n|{" --- |"*8}')
    for width in (64, 720, 2000, 4050):
        with tempfile.TemporaryDirectory(dir=args.folder) as d: print(row(width, Path(d), args.pairs), flush=True)

if __name__ == '__main__': main()
