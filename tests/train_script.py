"""A training that can be killed at any moment and started again: the process tests run it, and so may anybody.

    python tests/train_script.py --dir CKPT_DIR --steps-file STEPS --out HASH_FILE [--augment] [--workers N] [--ours] [--every N] [--accumulate N]

Digits, dropout, batch norm, Adam, one-cycle, 4 epochs of batches of 32. Checkpoints go to CKPT_DIR and nowhere else, and a run that finds some
there continues. After each optimizer step one line `STEP LOSS` is appended to STEPS in a single write (STEP counts from 1 over the whole training,
LOSS is `float.hex()`). At the end HASH_FILE gets `weights=HEX optim=HEX`."""
import argparse, hashlib, os, random, sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import numpy as np, torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, Dataset
from nntrain.checkpoint import CheckpointS
from nntrain.core import set_seed
from nntrain.dataloaders import DataLoaders
from nntrain.events import CancelStepException, Subscriber
from nntrain.learner import Learner
from nntrain.subscribers import MetricsS

def digits():
    "scikit-learn's digits as tensors, read from its file: importing the package takes longer than training"
    from importlib.util import find_spec
    f = Path(find_spec('sklearn').submodule_search_locations[0])/'datasets'/'data'/'digits.csv.gz'
    d = torch.from_numpy(np.loadtxt(f, delimiter=',', dtype=np.float32))
    return d[:,:-1]/16,d[:,-1].long()

class Digits(Dataset):
    "Digits; with `augment`, shifted and noisy, by the dice of all three generators"
    def __init__(self, x, y, augment=False): self.x,self.y,self.augment = x,y,augment
    def __len__(self): return len(self.x)
    def __getitem__(self, i):
        x = self.x[i]
        if self.augment:
            x = x.view(8,8).roll((random.randint(-1,1), int(np.random.randint(-1,2))), (0,1)).flatten()
            x = x+.1*torch.randn(64)
        return x,self.y[i]

class OneCycleS(Subscriber):
    "One-cycle over all optimizer steps"
    def __init__(self, accumulate): self.accumulate = accumulate
    def before_fit(self, learn):
        steps = learn.n_epochs*len(learn.dls.train)//self.accumulate
        self.sched = torch.optim.lr_scheduler.OneCycleLR(learn.opt, 1e-2, total_steps=max(steps, 2)+1)
    def after_step(self, learn): self.sched.step()
    def state_dict(self): return self.sched.state_dict()
    def load_state_dict(self, state): self.sched.load_state_dict(state)

class AccumulateS(Subscriber):
    "A step after every `n` batches, on the mean of their gradients; what is left at the end of an epoch goes on in the next"
    def __init__(self, n): self.n,self.i = n,0
    def after_loss(self, learn):
        if learn.training: learn.loss = learn.loss/self.n
    def before_step(self, learn):
        self.i += 1
        if self.i%self.n: raise CancelStepException
    def state_dict(self): return dict(i=self.i)
    def load_state_dict(self, state): self.i = state['i']

class StepsS(Subscriber):
    "Writes a line to `path` after each optimizer step"
    order = 10
    def __init__(self, path): self.fd,self.n = os.open(path, os.O_WRONLY|os.O_APPEND|os.O_CREAT, 0o644),0
    def after_step(self, learn):
        self.n += 1
        os.write(self.fd, f'{self.n} {float(learn.loss.detach()).hex()}\n'.encode())
    def state_dict(self): return dict(n=self.n)
    def load_state_dict(self, state): self.n = state['n']

class Accuracy:
    "A metric without `state_dict`"
    def __init__(self): self.reset()
    def reset(self): self.hits = self.n = 0
    def update(self, preds, y): self.hits += (preds.argmax(1)==y).sum(); self.n += len(y)
    def compute(self): return self.hits/self.n

def digest(x):
    "SHA-256 of nested tensors and plain values"
    h = hashlib.sha256()
    def walk(x):
        if isinstance(x, torch.Tensor): h.update(f'{x.dtype}{tuple(x.shape)}'.encode()); h.update(x.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
        elif isinstance(x, dict):
            for k in x: h.update(repr(k).encode()); walk(x[k])
        elif isinstance(x, (list, tuple)):
            for v in x: walk(v)
        else: h.update(repr(x).encode())
    walk(x)
    return h.hexdigest()

def get_learner(args):
    set_seed(42)
    x,y = digits()
    kw = dict(batch_size=32, num_workers=args.workers)
    train,valid = Digits(x[:1438], y[:1438], args.augment),Digits(x[1438:], y[1438:])
    if args.ours: dls = DataLoaders.from_datasets(train, valid, seed=1, cache=False, **kw)
    else: dls = SimpleNamespace(train=DataLoader(train, shuffle=True, **kw), valid=DataLoader(valid, **kw))
    model = nn.Sequential(nn.Linear(64,64), nn.BatchNorm1d(64), nn.ReLU(), nn.Dropout(.3), nn.Linear(64,10))
    subs = [MetricsS(accuracy=Accuracy()), OneCycleS(args.accumulate), StepsS(args.steps_file)]
    if args.accumulate > 1: subs.append(AccumulateS(args.accumulate))
    every = args.every if args.every=='epoch' else float(args.every) if '.' in args.every else int(args.every)
    return Learner(model, dls, F.cross_entropy, partial(torch.optim.Adam, weight_decay=1e-4), 1e-3, [*subs, CheckpointS(args.dir, every=every)])

def write(path, text):
    Path(path+'.tmp').write_text(text)
    os.replace(path+'.tmp', path)

def main(argv=None):
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ('--dir', '--steps-file', '--out'): p.add_argument(name, required=True)
    p.add_argument('--augment', action='store_true')
    p.add_argument('--workers', type=int, default=0)
    p.add_argument('--ours', action='store_true', help="the loaders of `DataLoaders`, not torch's own")
    p.add_argument('--every', default='7', help="training batches, seconds (2.5), or 'epoch'")
    p.add_argument('--accumulate', type=int, default=1)
    p.add_argument('--epochs', type=int, default=4)
    p.add_argument('--history', help="a file for the hash of `learn.history`, times left out")
    args = p.parse_args(argv)
    learn = get_learner(args)
    learn.fit(args.epochs)
    write(args.out, f'weights={digest(learn.model.state_dict())} optim={digest(learn.opt.state_dict())}\n')
    if args.history: write(args.history, digest([{k: v for k,v in r.items() if k!='seconds'} for r in learn.history]))

if __name__ == '__main__': main()
