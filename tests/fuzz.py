"""Random trainings that are killed up to three times, and must end as if they hadn't been: `make torture` tries 100.

A trial is a number: from it come a model, loaders, subscribers, the interval of saves, and the places where the run is
killed, all within this process. What it proves is compared bit by bit: weights, optimizer, history, and
the state of the subscribers."""
import argparse, gc, inspect, io, os, random, shutil, signal, sys, tempfile, threading, time, traceback, warnings
from collections import Counter
from contextlib import nullcontext, redirect_stderr, redirect_stdout
from functools import partial
from pathlib import Path
from types import SimpleNamespace
os.environ.setdefault('OMP_NUM_THREADS', '1')
sys.path[:0] = [str(Path(__file__).resolve().parent.parent), str(Path(__file__).resolve().parent)]
import numpy as np, torch
import torch.nn.functional as F
from torch import nn
from torch.optim import lr_scheduler as S
from torch.utils.data import BatchSampler, DataLoader, Dataset, IterableDataset, RandomSampler, WeightedRandomSampler, get_worker_info
from disk import watched
from nntrain.acceleration import EMAS, AugmentS, GradAccumS, GradClipS, MixedPrecisionS, NormalizationS
from nntrain.activations import ActivationStatsS
from nntrain.checkpoint import CheckpointS
from nntrain.core import set_seed
from nntrain.dataloaders import DataLoaders
from nntrain.events import EVENTS, Subscriber
from nntrain.finite import NaNStopS
from nntrain.inspect import TimerS
from nntrain.learner import Learner, MomentumLearner
from nntrain.schedule import EarlyStoppingS, SchedulerS, one_cycle, warmup_cosine
from nntrain.subscribers import DeviceS, MetricsS, ProgressS
from nntrain.tracking import TrackerS, read_log

g = torch.Generator().manual_seed(0)
X = torch.randn(56, 4, generator=g)
Y = (X@torch.randn(4, 3, generator=g)).argmax(1)
BAD = torch.cat([X[:9], torch.full((1,4), torch.nan), X[10:]])

# --- Being killed

class Killed(BaseException): "The end of a process"

class Bomb:
    "Counts what happens in the run that goes on, and ends it where its plan says"
    folder,plan,snapshot,dls,lock = None,None,None,None,threading.RLock()
    def arm(self, folder=None, plan=None):
        self.folder,self.plan,self.counts,self.error,self.snapshot,self.resuming,self.pending = folder,plan,Counter(),None,None,True,False
    def at(self, what):
        self.counts[what] += 1
        if what=='before_batch': self.resuming = False
        if self.plan and not self.error and what==self.plan['at'] and self.counts[what]==self.plan['nth']: self.go()
        elif self.pending and threading.current_thread() is threading.main_thread(): self.pending = False; raise self.error
    def go(self):
        how,self.resumed = self.plan['how'],self.resuming
        if how in ('SIGTERM', 'SIGINT'):
            self.error = SystemExit() if how=='SIGTERM' else KeyboardInterrupt()
            return os.kill(os.getpid(), getattr(signal, how))
        self.error = dict(kill=Killed, exit=SystemExit, interrupt=KeyboardInterrupt, error=LookupError)[how]('a planned end')
        if how=='kill': # nothing that comes later changes the disk
            to = Path(tempfile.mkdtemp(dir=self.folder.parent))/'ckpt'
            with self.lock: # no other thread writes meanwhile
                if self.folder.exists(): shutil.copytree(self.folder, to)
            self.snapshot = to
        if threading.current_thread() is threading.main_thread(): raise self.error
        self.pending = True # this thread can't end the process
    def io(self, name, paths, call):
        with self.lock:
            self.at('io')
            return call()
    def after(self, e):
        "Was `e` that end? If so, the disk is what it was then"
        if self.snapshot:
            shutil.rmtree(self.folder, ignore_errors=True)
            if self.snapshot.exists(): self.snapshot.rename(self.folder)
        if self.error is None: return False
        if not isinstance(self.error, Exception) and e is not None: return type(e) is type(self.error)
        while e is not None and e is not self.error: e = e.__cause__ or e.__context__
        return e is self.error

bomb = Bomb()
bomb.arm()

class KillS(Subscriber):
    "Tells the bomb of each event; one is called before all others, one after them"
    def __init__(self, order): self.order = order
for _e in EVENTS: setattr(KillS, _e, (lambda e: lambda self, learn: bomb.at(e if self.order < 0 else f'{e}, last'))(_e))

# --- What the trainings are made of

def noise(x):
    "`x`, changed by the dice of all three generators"
    return x+.1*torch.randn(x.shape)+.01*random.random()+.01*float(np.random.rand())

class Points(Dataset):
    def __init__(self, x, noisy=False): self.x,self.noisy = x,noisy
    def __len__(self): return len(self.x)
    def __getitem__(self, i):
        if get_worker_info() is None: bomb.at('row')
        return (noise(self.x[i]) if self.noisy else self.x[i]),Y[i]

class Stream(IterableDataset):
    "The same points as a stream in random order; each worker gives its share of them"
    def __init__(self, x, noisy=False): self.x,self.noisy = x,noisy
    def order(self):
        info,order = get_worker_info(),list(range(len(self.x)))
        if info is None: random.shuffle(order); return order
        return random.sample(mine := order[info.id::info.num_workers], len(mine))
    def row(self, i): return (noise(self.x[i]) if self.noisy else self.x[i]),Y[i]
    def __iter__(self):
        for i in self.order():
            if get_worker_info() is None: bomb.at('row')
            yield self.row(i)

class ListStream(Stream):
    "The same without `yield`: random numbers are drawn when the iteration begins"
    def __iter__(self): return iter([self.row(i) for i in self.order()])

class EpochStream(Stream):
    "Its order depends on the epoch that it is told"
    epoch = 0
    def set_epoch(self, epoch): self.epoch = epoch
    def order(self):
        info = get_worker_info()
        return random.Random(self.epoch).sample(mine := range(len(self.x))[info.id if info else 0::info.num_workers if info else 1], len(mine))

class SizedStream(Stream):
    def __len__(self): return len(self.x)

STREAMS = dict(stream=Stream, list=ListStream, epoch=EpochStream, sized=SizedStream)

class Accuracy:
    def __init__(self): self.reset()
    def reset(self): self.hits = self.n = 0
    def update(self, preds, y): self.hits += (preds.argmax(1)==y).sum(); self.n += len(y)
    def compute(self): return self.hits/self.n

def spread(preds, y): return (preds.max()-preds.min()).item()

class RunningLoss(nn.Module):
    "A loss with a memory"
    def __init__(self): super().__init__(); self.register_buffer('mean', torch.ones(()))
    def forward(self, preds, y):
        loss = F.cross_entropy(preds, y)
        if self.training and torch.is_grad_enabled(): self.mean.mul_(.9).add_(.1*loss.detach())
        return loss/self.mean

class DiceS(Subscriber):
    "Changes the loss at random, by a number that it keeps"
    def __init__(self): self.last = 1.
    def after_loss(self, learn):
        if learn.training: self.last = .5*self.last+.5*random.random(); learn.loss = learn.loss*(self.last+torch.rand(()))
    def state_dict(self): return dict(last=self.last)
    def load_state_dict(self, state): self.last = state['last']

class LogS(TrackerS):
    "Without the figures at the end, which take longer than the training"
    def figures(self, learn): pass

class TwoOptimizers(Learner):
    "Has a second network and optimizer beside the model's"
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.bias = nn.Linear(3, 3)
        self.bias_opt = torch.optim.Adam(self.bias.parameters(), .01)
    def get_loss(self):
        self.preds = self.preds+self.bias(self.preds.float())
        super().get_loss()
    def step(self): super().step(); self.bias_opt.step()
    def zero_grad(self): super().zero_grad(); self.bias_opt.zero_grad()

LEARNERS = dict(Learner=Learner, MomentumLearner=MomentumLearner, TwoOptimizers=TwoOptimizers)
OPTIMIZERS = dict(sgd=torch.optim.SGD, momentum=partial(torch.optim.SGD, momentum=.9, nesterov=True), adam=torch.optim.Adam, adamw=partial(torch.optim.AdamW, amsgrad=True),
                  rmsprop=partial(torch.optim.RMSprop, momentum=.5), adagrad=torch.optim.Adagrad)
LOSSES = dict(plain=lambda: F.cross_entropy, smooth=lambda: partial(F.cross_entropy, label_smoothing=.1), weighted=lambda: nn.CrossEntropyLoss(torch.tensor([1., 2., .5])),
              sum=lambda: nn.CrossEntropyLoss(reduction='sum'), running=RunningLoss)
SCHEDULES = dict(one_cycle=(one_cycle,), warmup_cosine=(warmup_cosine,), step=(partial(S.StepLR, step_size=2, gamma=.5),), exponential=(partial(S.ExponentialLR, gamma=.97), 'batch'),
                 restarts=(partial(S.CosineAnnealingWarmRestarts, T_0=3), 'batch'), cyclic=(partial(S.CyclicLR, base_lr=.001, max_lr=.05, step_size_up=3, cycle_momentum=False),),
                 plateau=(partial(S.ReduceLROnPlateau, patience=0, factor=.5),), lambda_=(partial(S.LambdaLR, lr_lambda=lambda i: .9**i),),
                 sequence=(lambda opt: S.SequentialLR(opt, [S.LinearLR(opt, .1, total_iters=3), S.ExponentialLR(opt, .9)], [3]), 'batch'))
KNOWS_LENGTH = 'one_cycle', 'warmup_cosine'

def draw(seed):
    "The settings of trial `seed`, as plain values"
    r = random.Random(seed)
    def maybe(p, *values): return r.choice(values or (True,)) if r.random() < p else None
    o = SimpleNamespace(seed=r.randrange(1000), loader=r.choice(['ours', 'ours', 'ours stream', 'ours stream', 'torch', 'torch', 'torch', 'torch stream', 'batches']), size=r.choice([5, 8, 8, 16]))
    o.stream,o.noisy,o.noisy_valid,o.nan = maybe('stream' in o.loader, *STREAMS),bool(maybe(.4)),bool(maybe(.2)),None
    o.workers = 'batches'!=o.loader and maybe(.08, 'workers', 'persistent')
    o.order = o.loader in ('ours', 'torch') and maybe(.7, 'generator', 'sampler', 'weighted', 'batch_sampler', 'in order')
    if o.loader.startswith('torch') and o.workers=='persistent': o.noisy = o.noisy_valid = False # a promise that can't be made
    if o.loader=='torch stream' and o.workers=='persistent': o.workers = 'workers'
    o.drop_last = bool(maybe(.2)) and o.order!='batch_sampler' and 'batches'!=o.loader
    o.fits = [dict(epochs=r.randint(2, 4)) for _ in range(1+bool(maybe(.25)))]
    for i,f in enumerate(o.fits):
        if o.loader.startswith('ours') and maybe(.25): f.clear(); f.update(steps=(n := r.randint(2, 5))*r.randint(1, 3), valid_every=n)
        if maybe(.15): f['valid'] = False
        if i: f['keep_opt'] = bool(maybe(.4))
        if maybe(.1): f['lr'] = .003
    valid = all(f.get('valid', True) for f in o.fits)
    o.frozen_first = bool(maybe(.2)) # in the first fit the body is frozen
    o.learner = maybe(.25, 'MomentumLearner', 'TwoOptimizers') or 'Learner'
    o.optimizer,o.loss,o.norm = r.choice(list(OPTIMIZERS)),r.choice(list(LOSSES)),bool(maybe(.5))
    seen = r.choice(['valid_loss', 'train_loss']) if valid else 'train_loss'
    known = o.loader in ('ours', 'torch', 'batches') or all('steps' in f for f in o.fits)
    schedule = maybe(.6, *(k for k in SCHEDULES if known or k not in KNOWS_LENGTH))
    if schedule=='sequence' and len(o.fits) > 1: schedule = 'step'
    subs = dict(metrics=maybe(.6), schedule=schedule and (schedule, seen), accum=o.learner!='MomentumLearner' and maybe(.35, 2, 3), clip=maybe(.4, (.5, None), (None, .01), (None, None)),
                ema=maybe(.35, .9, .99), stop=maybe(.3, (seen, r.randint(1, 2), True), (seen, r.randint(1, 2), False)), mixed=maybe(.2), augment=maybe(.3, 1, 2), normalize=maybe(.2, 'given', 'measured'),
                nan=maybe(.35, 'skip', 'raise', 'warn'), progress=maybe(.3, 'log', 'terminal'), timer=maybe(.2), stats=maybe(.15), device=maybe(.2), dice=maybe(.3), log=maybe(.2, 1, 3))
    if subs['normalize']=='measured' and o.loader!='ours': subs['normalize'] = 'given'
    if subs['nan']=='skip' and o.learner=='Learner' and o.loss!='running': o.nan = maybe(.5) # one row isn't a number
    o.subs = {k: v for k in r.sample(list(subs), len(subs)) if (v := subs[k])}
    o.ckpt = dict(every=r.choice([1, 2, 3, 5, 7, 'epoch', 'epoch', .002, .02]), keep=r.randint(1, 3), monitor=maybe(.4, seen, seen, seen.split('_')[0]+'_acc') if 'metrics' in subs else maybe(.4, seen))
    if o.ckpt['monitor'] and o.ckpt['monitor'].endswith('acc') and not subs['metrics']: o.ckpt['monitor'] = seen
    if 'background' in inspect.signature(CheckpointS).parameters: o.ckpt['background'] = bool(maybe(.4))
    o.went_on,o.kills = False,[None]*r.choice([1, 1, 2, 2, 3]) # chosen when it is known how often things happen
    return o

def make_loader(o, train):
    x = (BAD if o.nan and train else X)[:40] if train else X[40:]
    noisy = o.noisy if train else o.noisy_valid
    kw = dict(num_workers=2, persistent_workers=o.workers=='persistent') if o.workers else {}
    if o.loader=='batches': return [(a, b) for a,b in zip(x.split(o.size), (Y[:40] if train else Y[:16]).split(o.size))]
    ds = (STREAMS[o.stream] if o.stream else Points)(x, noisy)
    if o.stream or not train: return ds,dict(batch_size=o.size, **kw)
    gen = torch.Generator().manual_seed(o.seed)
    kw |= dict(batch_size=o.size, drop_last=o.drop_last)
    if o.order=='sampler': kw |= dict(sampler=RandomSampler(ds, generator=gen, replacement=bool(o.seed%2)))
    elif o.order=='weighted': kw |= dict(sampler=WeightedRandomSampler(torch.arange(1., 41), 40, generator=gen))
    elif o.order=='batch_sampler': kw = {k: v for k,v in kw.items() if k not in ('batch_size', 'drop_last')} | dict(batch_sampler=BatchSampler(RandomSampler(ds, generator=gen), o.size, False))
    else: kw |= dict(shuffle=o.order!='in order')
    if o.order=='generator': kw |= dict(generator=gen)
    return ds,kw

def make_dls(o):
    train,valid = make_loader(o, True),make_loader(o, False)
    if o.loader=='batches': return SimpleNamespace(train=train, valid=valid)
    if o.loader.startswith('torch'): return SimpleNamespace(train=DataLoader(train[0], **train[1]), valid=DataLoader(valid[0], **valid[1]))
    return DataLoaders.from_datasets(train[0], valid[0], cache=False if o.seed%3 else 'auto', seed=None if o.seed%2 else o.seed, **({'batch_size': o.size} | train[1]))

def make_subs(o, model, logs):
    "The subscribers, in the order of the settings"
    def schedule(v): return SchedulerS(*SCHEDULES[v[0]], monitor=v[1])
    make = dict(metrics=lambda v: MetricsS(acc=Accuracy(), spread=spread), schedule=schedule, accum=GradAccumS, clip=lambda v: GradClipS(*v), ema=EMAS,
                stop=lambda v: EarlyStoppingS(v[0], patience=v[1], restore_best=v[2]), mixed=lambda v: MixedPrecisionS(torch.bfloat16), augment=lambda v: AugmentS(noise, draws=v, seed=o.seed),
                normalize=lambda v: NormalizationS(*([.1, .9] if v=='given' else [])), nan=NaNStopS, progress=lambda v: ProgressS(display=v), timer=lambda v: TimerS(),
                stats=lambda v: ActivationStatsS(model), device=lambda v: DeviceS('cpu'), dice=lambda v: DiceS(), log=lambda v: LogS(f'csv:{logs}', v, name='run'))
    return [make[k](v) for k,v in o.subs.items()]

def train(o, logs, folder=None):
    "The script: made and run from the beginning, as after each start. Returns what must be the same."
    set_seed(o.seed)
    dls = bomb.dls = make_dls(o)
    model = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6) if o.norm else nn.Tanh(), nn.Dropout(.2), nn.Linear(6, 3))
    subs = [KillS(-2000), *make_subs(o, model, logs), KillS(2000)]
    if folder: subs.insert(o.seed%len(subs), CheckpointS(folder, **o.ckpt))
    learn = LEARNERS[o.learner](model, dls, LOSSES[o.loss](), OPTIMIZERS[o.optimizer], .02, subs)
    learn.quiet = not (o.subs.keys() & {'progress'})
    for i,fit in enumerate(o.fits):
        model[0].requires_grad_(not (o.frozen_first and i==0))
        learn.fit(**fit)
    rows = [{k: v for k,v in r.items() if k!='seconds'} for r in learn.history]
    stateful = [s for s in learn.subs if hasattr(s, 'state_dict') and not isinstance(s, GradAccumS)] # which has no state after a fit
    res = dict(weights=model.state_dict(), optimizer=learn.opt.state_dict(), history=rows, subs={type(s).__name__: s.state_dict() for s in stateful})
    for s in subs: # a run that begins again has another folder
        if isinstance(s, LogS): res |= dict(log=sorted(r for r in read_log(logs/s.run/'metrics.csv') if 'second' not in r[1])); res['subs']['LogS'].pop('run')
    if o.learner=='TwoOptimizers': res |= dict(bias=learn.bias.state_dict(), bias_opt=learn.bias_opt.state_dict())
    return res

# --- A trial

def differs(a, b, where=''):
    "Where two results differ first, or `None` if every bit is the same"
    if type(a) is not type(b): return f'{where}: {a!r} is now {b!r}'
    if isinstance(a, dict): a,b = ({**x, ' keys': ' '.join(map(str, x))} for x in (a, b))
    if isinstance(a, (list, tuple)): a,b = (dict(enumerate([*x, len(x)])) for x in (a, b))
    if isinstance(a, dict): return next((d for k in reversed(a) if (d := differs(a[k], b.get(k), f'{where}[{k}]'))), None)
    if isinstance(a, torch.Tensor): a,b = ((str(t.dtype), t.detach().numpy().tobytes()) for t in (a, b)); return None if a==b else f'{where}: other bits'
    return None if a==b or repr(a)==repr(b) else f'{where}: {a!r} is now {b!r}'

def plan(o, seen, r):
    "Where a run is killed: at an event, at a row of the data, or in a call of the file system; and how"
    kind = r.choice(['event', 'event', 'event', 'boundary', 'boundary', 'io', 'io', 'io', 'row'])
    events = [k for k in seen if k not in ('row', 'io') and ('fit' in k or 'epoch' in k)==(kind=='boundary')]
    if kind=='row' and not seen['row']: kind = 'io' # workers read the rows
    at = kind if kind in ('io', 'row') else r.choice(sorted(events))
    n = max(1, r.choice([30, 200, 1000]) if at=='io' else seen[at])
    how = r.choice(['kill', 'kill', 'exit', 'interrupt'] + (['kill'] if at=='io' else ['error'] if at=='row' else ['error', 'SIGTERM', 'SIGINT']))
    if at=='io' and o.ckpt.get('background'): how = 'kill' # another thread may make the call
    return dict(kind=kind, at=at, nth=r.randint(1, r.randint(1, n)), how=how)

def start(o, tmp, folder=None, kill=None):
    "Run the script as a new process would. Returns its result, or `None` if it was killed as planned; or raises."
    set_seed(random.SystemRandom().randrange(10**6)) # what a process that does something else first would draw
    bomb.arm(folder, kill)
    with warnings.catch_warnings(record=True) as ws:
        warnings.simplefilter('always')
        res = error = None
        with redirect_stdout(out := io.StringIO()), redirect_stderr(out), watched(folder, bomb.io) if folder else nullcontext():
            try: res = train(o, tmp/('logs' if folder else 'straight'), folder)
            except BaseException as e: error = e
        planned,came = bomb.after(error),bomb.error is not None
        if error is not None and not planned: raise error
        if came and not planned and kill['how'] in ('exit', 'interrupt'): raise AssertionError(f'{bomb.error!r} was swallowed')
        if bad := [str(w.message) for w in ws if 'is left out' in str(w.message)]: raise AssertionError(bad[0])
        bomb.error = bomb.plan = error = None
        for it in (getattr(dl, '_iterator', None) for dl in (bomb.dls.train, bomb.dls.valid)):
            if it is not None: it._shutdown_workers() # persistent ones end with their process
        bomb.dls = None
        gc.collect() # what else it leaves to its end
    return None if planned or bomb.snapshot else res

def trial(seed, tmp):
    "Returns `(None or what is wrong, settings, the kills that came)`"
    o,folder,kills = draw(seed),Path(tmp)/str(seed)/'ckpt',[]
    r = random.Random(seed+1)
    folder.parent.mkdir(parents=True)
    me = os.getpid()
    def end(*args): sys.exit(143) if os.getpid()==me else os._exit(1) # a worker has this handler, too
    handlers = {s: signal.signal(s, f) for s,f in ((signal.SIGTERM, end), (signal.SIGINT, signal.default_int_handler))}
    try:
        want = start(o, folder.parent)
        seen = Counter(bomb.counts)
        o.kills = [plan(o, seen, r) for _ in o.kills]
        for kill in [*o.kills, None]:
            got = start(o, folder.parent, folder, kill)
            if got is not None: break
            kills.append(kill | dict(resuming=bool(kills) and bomb.resumed))
        o.went_on = bomb.counts['before_batch'] < seen['before_batch']
        wrong = differs(want, got)
        left = sorted(p.name for p in folder.iterdir() if p.suffix=='.tmp')
        if left: wrong = wrong or f'{left} was left'
        if o.ckpt['monitor'] and not (folder/'best.pt').exists(): wrong = wrong or 'there is no best.pt'
    except Exception as e: wrong = ''.join(traceback.format_exception(e)[-6:])
    finally:
        for s,f in handlers.items(): signal.signal(s, f)
        shutil.rmtree(folder.parent)
    return wrong,o,kills

KINDS = dict(event='at a step', boundary='at a boundary', io='in a call of the file system', row='while a row was read')

def main(argv=None):
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--trials', type=int, default=100)
    p.add_argument('--seed', type=int, default=time.time_ns()%10**6, help='number of the first trial')
    args = p.parse_args(argv)
    gc.freeze() # what has been imported isn't looked at in each trial
    began,bad,counts,groups = time.monotonic(),0,Counter(),Counter()
    with tempfile.TemporaryDirectory(dir='/dev/shm' if os.access('/dev/shm', os.W_OK) else None) as tmp:
        for seed in range(args.seed, args.seed+args.trials):
            wrong,o,kills = trial(seed, tmp)
            bad += bool(wrong)
            if wrong: print(f'trial {seed}: {wrong}\n  {vars(o)}\n  again: python tests/fuzz.py --seed {seed} --trials 1', flush=True)
            counts.update(KINDS[k['kind']] for k in kills)
            counts.update('while resuming' for k in kills if k['resuming'])
            counts.update('by a signal' for k in kills if k['how'].startswith('SIG'))
            groups.update([f'loader: {o.loader}', *(['that went on from a checkpoint'] if kills and o.went_on else []), f'{len(kills)} kills in a run', *(['workers'] if o.workers else []), *(['two fits'] if len(o.fits) > 1 else []), *(['fit(steps=)'] if 'steps' in o.fits[0] else []),
                           *(['random data'] if o.noisy or 'augment' in o.subs else [])])
    gc.unfreeze()
    print(f'seed {args.seed}: {args.trials-bad} of {args.trials} runs identical after {sum(counts[k] for k in KINDS.values())} kills, {bad} not; {time.monotonic()-began:.0f} s')
    print('kills:', ', '.join(f'{v} {k}' for k,v in sorted(counts.items())))
    print('runs:', ', '.join(f'{v} {k}' for k,v in sorted(groups.items())))
    return int(bool(bad))

if __name__ == '__main__': sys.exit(main())
