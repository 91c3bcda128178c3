"Bad input: each gives an exception that names the cause and the remedy, most of them before the first step, and none is silently wrong."
import math, os, re
from functools import partial
from pathlib import Path
from types import SimpleNamespace
import pytest, torch
import torch.nn.functional as F
from torch import nn
from torch.optim.lr_scheduler import OneCycleLR
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset
from nntrain.checkpoint import CheckpointS
from nntrain.dataloaders import DataLoaders, hf_ds_collate_fn
from nntrain.events import Subscriber
from nntrain.finite import NaNStopS
from nntrain.learner import Learner
from nntrain.saving.files import BadCheckpoint
from nntrain.schedule import SchedulerS
from nntrain.subscribers import MetricsS

g = torch.Generator().manual_seed(0)
x,y = torch.randn(64, 4, generator=g),torch.randint(3, (64,), generator=g)
steps = 0

class SGD(torch.optim.SGD):
    "Counts its steps"
    def step(self, *args, **kwargs):
        global steps
        steps += 1
        return super().step(*args, **kwargs)

def loaders(x=x, y=y, bs=16): return SimpleNamespace(train=list(zip(x.split(bs), y.split(bs))), valid=[(x, y)])
def net(out=3): return nn.Sequential(nn.Linear(4,8), nn.ReLU(), nn.Linear(8,out))
def fit(model=None, dls=None, loss_fn=F.cross_entropy, opt=SGD, lr=.1, subs=(), epochs=1, **kwargs):
    learn = Learner(model or net(), dls or loaders(), loss_fn, opt, lr, list(subs))
    learn.quiet = True
    learn.fit(epochs, **kwargs)

def from_ds(n=64, **kwargs): return DataLoaders.from_datasets([dict(image=x[i%64], label=int(y[i%64])) for i in range(n)], batch_size=16, collate_fn=hf_ds_collate_fn, **kwargs)
def rows(change):
    "A list of rows, of which number 20 is changed"
    data = [dict(image=x[i], label=int(y[i])) for i in range(64)]
    change(data[20])
    return DataLoaders.from_datasets(data, batch_size=16, collate_fn=hf_ds_collate_fn, shuffle=False)

class Raises(Subscriber):
    def __init__(self, event): setattr(self, event, self.oops)
    def oops(self, learn): raise LookupError('oops')
class Foreign(SGD):
    def __init__(self, params, lr): super().__init__([nn.Parameter(torch.zeros(1))], lr)
def sampled(**kwargs): return DataLoaders.from_datasets([(x[i], y[i]) for i in range(64)], None, 16, **kwargs)
class Odd:
    "A metric that wants probabilities of one class"
    def reset(self): pass
    def update(self, preds, y): return (preds.squeeze(1)-y[:, None, None]).expand(3)
    def compute(self): return 0
class Tail(nn.Module):
    def __init__(self, f): super().__init__(); self.net,self.f = net(),f
    def forward(self, x): return self.f(self.net(x))
def nan_at(i): z = x.clone(); z[i] = math.nan; return z
def label_at(i, v): z = y.clone(); z[i] = v; return z
def ragged(): return SimpleNamespace(train=[(x[:16], y[:16]), (x[16:32], y[16:30])], valid=None)

BEFORE,LATER = True,False # the first step
CASES = {
    'empty data':              (lambda tmp: fit(dls=SimpleNamespace(train=[], valid=[])), ValueError, ['dls.train has no batches', 'smaller batch_size'], BEFORE),
    'an empty data set':       (lambda tmp: fit(dls=from_ds(0)), ValueError, ['train'], BEFORE),
    'missing column':          (lambda tmp: fit(dls=rows(lambda r: r.pop('label')), valid=False), ValueError, ["item 4 has the columns ['image']|row 20", 'all rows'], LATER),
    'no target column':        (lambda tmp: fit(dls=SimpleNamespace(train=[(x,)], valid=None), valid=False), ValueError, ['batch has 1 columns', 'override `get_loss`'], BEFORE),
    'label out of range':      (lambda tmp: fit(dls=loaders(y=label_at(40, 12))), IndexError, ['labels run from 0 to 12', '3 outputs', 'renumber'], LATER),
    'negative label':          (lambda tmp: fit(dls=loaders(y=label_at(0, -1))), IndexError, ['labels run from -1', 'renumber'], BEFORE),
    'float labels':            (lambda tmp: fit(dls=loaders(y=y.float())), RuntimeError, ['targets are torch.float32', r'y.long\(\)'], BEFORE),
    'NaN in the data':         (lambda tmp: fit(dls=loaders(x=nan_at(40))), FloatingPointError, ['training batch 2', 'look at the data'], LATER),
    'infinite target':         (lambda tmp: fit(net(1), loaders(y=label_at(0, 0)[:, None]/torch.tensor(0.)), F.mse_loss), FloatingPointError, ['training batch 0', 'smaller lr'], LATER),
    'image sizes that differ': (lambda tmp: fit(dls=rows(lambda r: r.update(image=torch.zeros(5))), valid=False), ValueError, ['sizes differ', 'size=160', 'resize or pad'], LATER),
    'strings in a batch':      (lambda tmp: fit(dls=SimpleNamespace(train=[(['a', 'b'], y[:2])], valid=None), valid=False), TypeError, ['input is a list', 'collate'], BEFORE),
    'model: too few rows':     (lambda tmp: fit(Tail(lambda p: p[:4])), ValueError, ['4 predictions', '16 targets', 'first dimension'], BEFORE),
    'model: (N,1) for (N)':    (lambda tmp: fit(net(1), loaders(y=y.float()), F.mse_loss), ValueError, [r'\(16, 1\)', 'squeeze'], BEFORE),
    'model: a tuple':          (lambda tmp: fit(Tail(lambda p: (p, p))), TypeError, ['returned a tuple', 'override get_loss'], BEFORE),
    'input of a wrong shape':  (lambda tmp: fit(dls=loaders(x=x[:, :3])), RuntimeError, [r'got an input of shape \(16, 3\)', 'change the layer'], BEFORE),
    'lr negative':             (lambda tmp: fit(lr=-.1), ValueError, ['lr must be a finite number >= 0, not -0.1'], BEFORE),
    'lr NaN':                  (lambda tmp: fit(lr=math.nan), ValueError, ['lr must be a finite number'], BEFORE),
    'epochs negative':         (lambda tmp: fit(epochs=-1), ValueError, ['epochs must be a whole number from 0, not -1'], BEFORE),
    'epochs 2.5':              (lambda tmp: fit(epochs=2.5), ValueError, ['epochs must be a whole number from 0, not 2.5'], BEFORE),
    'metric: wrong shape':     (lambda tmp: fit(subs=[MetricsS(odd=Odd())]), RuntimeError, ['in after_batch of MetricsS'], LATER),
    'shorter than one batch':  (lambda tmp: fit(dls=from_ds(10, drop_last=True)), ValueError, ['no batch', 'smaller batch_size'], BEFORE),
    'loss: not callable':      (lambda tmp: fit(loss_fn='cross_entropy'), TypeError, ['loss_fn must be callable', 'try torch.nn.functional'], BEFORE),
    'loss: a vector':          (lambda tmp: fit(loss_fn=partial(F.cross_entropy, reduction='none')), ValueError, ['one number for the batch', r"reduction='mean'"], BEFORE),
    'loss: a float':           (lambda tmp: fit(loss_fn=lambda p, t: F.cross_entropy(p, t).item()), TypeError, ['must give a tensor, not float', r'leave out .item\(\)'], BEFORE),
    'loss: detached':          (lambda tmp: fit(Tail(lambda p: p.detach())), ValueError, ["doesn't depend on any trainable parameter", r'leave out .detach\(\)'], BEFORE),
    'dtypes differ':           (lambda tmp: fit(dls=loaders(x=x.double())), RuntimeError, ['input is torch.float64, the model torch.float32', r'x.to\(torch.float32\)'], BEFORE),
    'ragged batch':            (lambda tmp: fit(dls=ragged(), valid=False), ValueError, ['16 inputs but 14 targets', 'correct the data set'], LATER),
    'no parameters':           (lambda tmp: fit(nn.Flatten()), ValueError, ['model has no parameters', 'give it layers'], BEFORE),
    'all frozen':              (lambda tmp: fit(net().requires_grad_(False)), ValueError, ['frozen', r'requires_grad_\(True\)'], BEFORE),
    'optimizer without them':  (lambda tmp: fit(opt=Foreign), ValueError, ['no trainable parameter of model', 'must use the parameters'], BEFORE),
    'model on another device': (lambda tmp: fit(net().to('meta'), loss_fn=F.cross_entropy), (RuntimeError, NotImplementedError), ['model is on meta, the batch on cpu', r'DeviceS\(\)'], BEFORE),
    'checkpoints in a file':   (lambda tmp: ((tmp/'f').touch(), fit(subs=[CheckpointS(tmp/'f')])), OSError, ["dir: checkpoints can't be written there", 'Give CheckpointS another folder'], BEFORE),
    'checkpoints: no folder':  (lambda tmp: ((tmp/'f').touch(), fit(subs=[CheckpointS(tmp/'f'/'run')])), OSError, ["dir: checkpoints can't be written there"], BEFORE),
    'scheduler: too few steps': (lambda tmp: fit(epochs=2, subs=[SchedulerS(lambda opt: OneCycleLR(opt, .1, total_steps=3))]), ValueError, ['total_steps|steps'], LATER),
    'the same one twice':      (lambda tmp: fit(subs=[m := MetricsS(), Raises('before_fit'), m]), ValueError, ['same MetricsS twice', 'leave one out'], BEFORE),
    'labels come first':       (lambda tmp: fit(dls=SimpleNamespace(train=[(y, x)], valid=None), valid=False), RuntimeError, [r'whole numbers of shape \(64,\)', 'change their order'], BEFORE),
    'a sampler used up once':  (lambda tmp: sampled(sampler=iter(range(64))), TypeError, ['sampler must be an iterable with a length', 'give a list of row numbers'], BEFORE),
    'batches without a length': (lambda tmp: sampled(batch_sampler=([i] for i in range(64))), TypeError, ['batch_sampler must be an iterable with a length'], BEFORE),
    'a class as subscriber':   (lambda tmp: fit(subs=[MetricsS]), TypeError, [r'write MetricsS\(\)'], BEFORE),
}
EVENTS = [f'{a}_{b}' for b in ('fit', 'epoch', 'batch') for a in ('before', 'after', 'cleanup')]+['after_predict', 'after_loss', 'after_backward', 'after_step']
for e in EVENTS: CASES[f'raising in {e}'] = (lambda tmp, e=e: fit(subs=[Raises(e)]), LookupError, ['oops', f'in {e} of Raises', 'batch'],
                                             BEFORE if e in ('before_fit', 'before_epoch', 'before_batch', 'after_predict', 'after_loss', 'after_backward') else LATER)

class Mine:
    "A metric with a fault of its own"
    def reset(self): pass
    def update(self, preds, y): raise ZeroDivisionError('mine')
    def compute(self): return 0
class Rows(Dataset):
    def __init__(self, at): self.at = at
    def __len__(self): return 64
    def __getitem__(self, i):
        if i==40: self.at()
        return x[i],y[i]
class Stream(IterableDataset):
    def __init__(self, n): self.n = n
    def __iter__(self): return iter(zip(x[:self.n], y[:self.n]))
def no_picture(): raise OSError('no such picture')
def norm(): return nn.Sequential(nn.Linear(4,3), nn.BatchNorm1d(3))
def loaded(tmp, what):
    torch.save(what, tmp/'w.pt')
    Learner(net(), loaders(), F.cross_entropy, SGD, .1).load(tmp/'w.pt')
def resumed(tmp, *ns):
    "The same script, but the stream has another length"
    for n in ns: fit(dls=SimpleNamespace(train=DataLoader(Stream(n), 16), valid=None), valid=False, subs=[CheckpointS(tmp)])
def foreign(tmp, name): torch.save([1, 2], tmp/name); fit(subs=[CheckpointS(tmp, monitor='valid_loss')])
def nested(learn): learn.fit(1)

MORE = {
    'a flattened output':      (lambda tmp: fit(nn.Sequential(nn.Linear(4,1), nn.Flatten(0))), RuntimeError, [r'\(16,\), targets \(16,\)', 'leave out flatten or squeeze'], BEFORE),
    'one row and BatchNorm':   (lambda tmp: fit(norm(), SimpleNamespace(train=DataLoader(TensorDataset(x[:33], y[:33]), 16), valid=None), valid=False), ValueError, ['BatchNorm1d', 'drop_last=True'], LATER),
    '(N,1) for (N) in a lambda': (lambda tmp: fit(net(1), loaders(y=y.float()), lambda p,t: F.mse_loss(p, t)), ValueError, [r'\(16, 1\)', 'compares all with all', 'squeeze'], BEFORE),
    '(N,1) for (N) by hand':   (lambda tmp: fit(net(1), loaders(y=y.float()), lambda p,t: ((p-t)**2).mean()), ValueError, ['compares all with all'], BEFORE),
    'a stream that is shorter': (lambda tmp: resumed(tmp, 64, 32), ValueError, ['of another run', r'n=64\), is .*n=32'], LATER),
    'dir=None':                (lambda tmp: CheckpointS(None), TypeError, ["dir must be a folder such as 'runs/mine', not None"], BEFORE),
    "dir=''":                  (lambda tmp: CheckpointS(''), ValueError, ["dir must be a folder such as 'runs/mine', not ''"], BEFORE),
    'every=0':                 (lambda tmp: CheckpointS(tmp, every=0), ValueError, ["every must be 'epoch', a whole number"], BEFORE),
    'two CheckpointS':         (lambda tmp: fit(subs=[CheckpointS(tmp/'a'), CheckpointS(tmp/'b')]), ValueError, ['two CheckpointS', 'leave one out'], BEFORE),
    'no weights in a file':    (lambda tmp: loaded(tmp, [1, 2]), BadCheckpoint, ['holds a list', r'save `model.state_dict\(\)`'], BEFORE),
    'weights of another model': (lambda tmp: loaded(tmp, net(5).state_dict()), ValueError, ["doesn't fit the model", r'2.weight \(5, 8\), should be \(3, 8\)'], BEFORE),
    "somebody's best.pt":      (lambda tmp: foreign(tmp, 'best.pt'), FileExistsError, ["best.pt there isn't a checkpoint", 'Move it'], BEFORE),
    "somebody's checkpoint":   (lambda tmp: foreign(tmp, 'checkpoint-000001.pt'), BadCheckpoint, ['another program', 'resume=False'], BEFORE),
    'unknown monitor':         (lambda tmp: fit(subs=[CheckpointS(tmp, monitor='valid_acc')]), ValueError, ["nobody computes 'acc'", 'There will be: loss'], BEFORE),
    'a metric that raises':    (lambda tmp: fit(subs=[MetricsS(mine=Mine())]), ZeroDivisionError, ['mine', 'in after_batch of MetricsS'], LATER),
    'a metric called loss':    (lambda tmp: MetricsS(loss=Mine()), ValueError, ["can't be called 'loss'"], BEFORE),
    'a row that raises':       (lambda tmp: fit(dls=DataLoaders.from_datasets(Rows(no_picture), None, 16, cache=False), valid=False), ValueError, ["split 'train', row 40", 'no such picture'], LATER),
    'a worker that is killed': (lambda tmp: fit(dls=DataLoaders.from_datasets(Rows(lambda: os.kill(os.getpid(), 9)), None, 16, cache=False, num_workers=1), valid=False), (RuntimeError, ConnectionError, EOFError), ['worker', 'killed'], LATER),
    'an optimizer for its class': (lambda tmp: fit(opt=torch.optim.SGD(net().parameters(), .1)), TypeError, ['write torch.optim.SGD, without brackets'], BEFORE),
    'subs without brackets':   (lambda tmp: Learner(net(), loaders(), F.cross_entropy, SGD, .1, MetricsS()), TypeError, ['put it in brackets'], BEFORE),
    'a loader for two':        (lambda tmp: fit(dls=DataLoader(TensorDataset(x, y), 16)), TypeError, ['has neither', 'DataLoaders.from_datasets'], BEFORE),
    'a class for a model':     (lambda tmp: fit(nn.Flatten), TypeError, [r'write Flatten\(\)'], BEFORE),
    'a class for a loss':      (lambda tmp: fit(loss_fn=nn.CrossEntropyLoss), TypeError, [r'write CrossEntropyLoss\(\)'], BEFORE),
    'epochs and steps':        (lambda tmp: fit(epochs=1, steps=3), ValueError, ['not both'], BEFORE),
    'one-hot whole numbers':   (lambda tmp: fit(dls=loaders(y=F.one_hot(y, 3))), RuntimeError, ['one-hot', r'y.argmax\(1\)'], BEFORE),
    'labels in a column':      (lambda tmp: fit(dls=loaders(y=y[:, None])), RuntimeError, [r'targets \(16, 1\)', 'what loss_fn wants'], BEFORE),
    'a model without an answer': (lambda tmp: fit(Tail(lambda p: None)), TypeError, ['returned a NoneType', 'return the predictions'], BEFORE),
    'bytes as input':          (lambda tmp: fit(dls=loaders(x=(x*20).byte())), RuntimeError, ['input is torch.uint8', r'x.to\(torch.float32\)'], BEFORE),
    'NaN from the model':      (lambda tmp: fit(Tail(lambda p: p*math.nan)), FloatingPointError, ['training batch 0', 'back at the beginning'], LATER),
    'a fit within a fit':      (lambda tmp: fit(subs=[type('NestedS', (Subscriber,), dict(after_loss=lambda self, learn: nested(learn)))()]), RuntimeError, ['in the middle of a fit', 'another Learner'], BEFORE),
}
LEGAL = { # what looks like a mistake and isn't
    'one-hot floats':          lambda: fit(dls=loaders(y=F.one_hot(y, 3).float())),
    'a lazy layer':            lambda: fit(nn.Sequential(nn.LazyLinear(8), nn.Linear(8,3))),
    'sparse gradients':        lambda: fit(nn.EmbeddingBag(10, 3, sparse=True), loaders(x=x.mul(9).abs().long().clamp(max=9)), opt=torch.optim.SparseAdam, subs=[NaNStopS('skip')]),
    'a rate of 0':             lambda: fit(lr=0),
    'no epochs':               lambda: fit(epochs=0),
}

@pytest.mark.parametrize('case', LEGAL)
def test_legal_input_is_not_refused(case): LEGAL[case]()

@pytest.mark.filterwarnings('ignore:Using a target size', 'ignore:.*is left out', 'ignore:.*fork.*:DeprecationWarning')
@pytest.mark.parametrize('case', {**CASES, **MORE})
def test_bad_input_is_named(case, tmp_path):
    global steps
    make,exc,parts,before = {**CASES, **MORE}[case]
    steps = 0
    with pytest.raises(exc) as e: make(tmp_path)
    text = '\n'.join([str(e.value), *getattr(e.value, '__notes__', [])])
    for part in parts: assert re.search(part, text), text
    assert (steps==0) or not before, f'{steps} steps were taken'

def test_the_front_page_counts_right():
    "Its fourth promise: how many, and two thirds of them before the first step"
    text = (Path(__file__).parent.parent/'README.md').read_text(encoding='utf-8')
    assert int(re.search(r'(\d+) kinds of bad input', text)[1])==len(CASES) and sum(before for *_,before in CASES.values()) >= len(CASES)*2/3

@pytest.mark.skipif(os.name!='posix' or os.geteuid()==0, reason='root may write anywhere')
def test_a_folder_without_permission(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(PermissionError, match="dir: checkpoints can't be written"): fit(subs=[CheckpointS(tmp_path/'run')])
