"""The text that `explain` writes, executed, does what `fit` does: the same bits in weights, history, random state, optimizer, place in the data and
in every attribute of learner and subscribers, the same clean-ups, the same error, the same output. And each of its lines is needed."""
import ast, contextlib, functools, importlib, inspect, io, linecache, pkgutil, re, subprocess, sys, traceback, types, warnings
import numpy as np, pytest, torch, torch.nn.functional as F
from torch import nn
from torch.utils.data import TensorDataset
import nntrain
from nntrain import learner
from nntrain.acceleration import AugmentS, GradAccumS, GradClipS, MixedPrecisionS
from nntrain.average import EMAS
from nntrain.checkpoint import CheckpointS
from nntrain.core import freeze, rng_state, set_seed
from nntrain.dataloaders import DataLoaders
from nntrain.events import EVENTS, Listeners
from nntrain.explain import CalledInstead, check_inlinable, explain, source_tree, statements_of
from nntrain.finite import NaNStopS
from nntrain.learner import (CancelBatchException, CancelEpochException, CancelFitException, CancelStepException, DeviceS, Learner, LRFindS, MetricsS, MomentumLearner,
                             ProgressS, PublishEvents, Subscriber)
from nntrain.schedule import EarlyStoppingS, SchedulerS, one_cycle

# ---- a small fit, and all of its state
G = torch.Generator().manual_seed(0)
X = torch.randn(150, 6, generator=G)
Y = (X@torch.randn(6, 3, generator=G)).argmax(1)
def net(): return nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Dropout(.2), nn.Linear(16, 3))
def tensors(): return DataLoaders.from_datasets(TensorDataset(X[:110], Y[:110]), TensorDataset(X[110:], Y[110:]), 16, seed=2)
def dicts():
    def rows(a, b): return [dict(a=X[i], b=X[i]*.5, y=Y[i]) for i in range(a, b)]
    return DataLoaders.from_datasets(rows(0, 110), rows(110, 150), 16, seed=2)

class Net2(nn.Module):
    def __init__(self):
        super().__init__()
        self.l = nn.Linear(6, 3)
    def forward(self, a, b): return self.l(a+b)

LOG = []
def note(o): LOG.append(o)
class SkipS(Subscriber):
    order = 3
    def after_loss(self, learn):
        if learn.batch_idx%4==1 and learn.training: raise CancelBatchException
class NoValidS(Subscriber):
    def before_epoch(self, learn):
        if not learn.training: raise CancelEpochException
class EndS(Subscriber):
    def before_epoch(self, learn):
        if learn.epoch==1: raise CancelFitException
class LazyStepS(Subscriber):
    def before_step(self, learn):
        if learn.batch_idx%2: raise CancelStepException
class FailS(Subscriber):
    order = 1
    def after_backward(self, learn):
        if learn.batch_idx==2: raise RuntimeError('boom')
class LogS(Subscriber):
    def __init__(self, name, order=0, fail=''): self.name,self.order,self.fail,self.log = name,order,fail,LOG
    def cleanup_step(self, learn): self.log.append((self.name, 'step', learn.batch_idx))
    def cleanup_batch(self, learn): self.log.append((self.name, 'batch', learn.batch_idx))
    def cleanup_epoch(self, learn):
        self.log.append((self.name, 'epoch'))
        if self.fail=='epoch': raise ValueError(self.name)
    def cleanup_fit(self, learn): self.log.append((self.name, 'fit'))
class CleanS(Subscriber):
    def cleanup_batch(self, learn): note(learn.batch_idx)
class OneMoreS(Subscriber):
    def before_fit(self, learn): learn.epochs = [*learn.epochs, learn.n_epochs]
class EvalModeS(Subscriber):
    def before_epoch(self, learn): learn.model.eval()
class CancelMetric:
    def reset(self): self.n = 0
    def update(self, preds, targs):
        self.n += 1
        if self.n==3: raise CancelEpochException
    def compute(self): return self.n
class Noisy(Learner):
    def predict(self):
        super().predict()
        self.preds = self.preds + .1*torch.randn_like(self.preds)
class Whole(Learner):
    def one_batch(self): super().one_batch()
    def backward(self):
        self.loss.backward()
        self.n_back = getattr(self, 'n_back', 0)+1
class TwoStep(Learner):
    def step(self):
        for _ in range(2):
            if self.epoch==0: return super().step()
        self.opt.step()
class OwnFit(Learner):
    def fit(self, epochs, **kw):
        note(epochs)
        super().fit(epochs, **kw)
class OwnLoop(Learner):
    def one_epoch(self, train):
        super().one_epoch(train)
        if train: super().one_epoch(train)
class OwnEvents(Learner):
    @PublishEvents('batch')
    def one_batch(self):
        self.predict()
        self.publish('halfway')
        self.get_loss()
        self.mean_loss.update(self.loss, self.n_samples())
class HalfS(Subscriber):
    def halfway(self, learn): note(('half', learn.batch_idx))
class Parts(Learner):
    def get_loss(self):
        super().get_loss()
        self.parts = dict(square=self.preds.square().mean())
class Once:
    "A stream that can be read one time"
    left = 3
    def __iter__(self):
        while self.left:
            self.left -= 1
            yield [X[:16], Y[:16]]

# ---- what makes the text hard
class NamesS(Subscriber):
    "Variables with the names of what the loop imports, of Python's own, and of subscribers"
    def before_fit(self, learn):
        torch = perf_counter = batches_of = columns = metrics = train = 3 # noqa: F841
        list = max = len = sorted = 4 # noqa: F841
        note([torch for torch in range(3)] + [list, train])
class LearnS(Subscriber):
    def before_fit(self, learn):
        learn = [learn, 1]
        note(len(learn))
class StartS(Subscriber):
    "A variable that the loop around has too"
    def before_batch(self, learn): start,n = 1e9,-5 # noqa: F841
    def after_batch(self, learn): self.k = v = n = 7 # noqa: F841
class LateS(Subscriber):
    def before_epoch(self, learn): self.fs = []
    def after_batch(self, learn):
        i = learn.batch_idx
        self.fs.append(lambda: i)
    def after_epoch(self, learn): note([f() for f in self.fs])
class GenS(Subscriber):
    def before_batch(self, learn):
        n = learn.batch_idx
        self.g = (n+k for k in range(2))
    def after_batch(self, learn): note([*self.g])
    def after_loss(self, learn): self.all = all(learn.batch_idx >= k for k in range(2))
class ReturnsS(Subscriber):
    def after_batch(self, learn):
        for i in range(2):
            if learn.batch_idx > i+3: return
        note(learn.batch_idx)
class GuardS(Subscriber):
    def __init__(self): self.a,self.n = False,None
    def before_epoch(self, learn):
        if not learn.training or self.a: return
        self.n = 0
    def after_batch(self, learn):
        if self.n is None: return
        self.n += 1
        return self.n
class DecoratedS(Subscriber):
    @torch.no_grad()
    def after_predict(self, learn): note(float((learn.preds*2).sum()))
class InstanceS(Subscriber):
    def __init__(self): self.after_loss = lambda learn: note(learn.batch_idx)
class BorrowS(Subscriber):
    "Answers with the method of another object"
    def __init__(self):
        self.other = SkipS()
        self.after_loss = self.other.after_loss
class LateListenerS(Subscriber):
    "Decides while it runs to what it listens"
    def before_fit(self, learn): self.after_batch = lambda learn: note(learn.batch_idx)
class SwapStepS(Subscriber):
    "Replaces a step while it runs"
    def before_fit(self, learn): learn.backward = lambda: (note('mine'), learn.loss.backward())
    def cleanup_fit(self, learn): del learn.backward
class Mixin:
    def after_loss(self, learn): note(('mixin', learn.batch_idx))
class MixS(Mixin, Subscriber):
    def after_loss(self, learn):
        super().after_loss(learn)
        note('mine')
class SeenS(Subscriber):
    def after_loss(self, learn, seen=[]): seen.append(1); note(len(seen) > 1) # noqa: B006
class MangledS(Subscriber):
    def before_fit(self, learn): self.__n = 1
    def after_batch(self, learn): self.__n += 1
class SyntaxS(Subscriber):
    def after_batch(self, learn):
        a,(b,*c) = 1,(2, 3, 4)
        x = y = [a, b]
        y[0],x[1] = x[1],y[0]
        while a < 3: a += 1
        if (z := a*2) > 5: note((x, c, z))
        note(f'{"it"!r} {learn.batch_idx:>{len("ab")+1}}')
class ExcS(Subscriber):
    def after_batch(self, learn):
        try: learn.nothing
        except AttributeError as e: note(str(e)[:20])
class GlobalS(Subscriber):
    def after_batch(self, learn): note(counter)
    def before_batch(self, learn):
        global counter
        counter = learn.batch_idx
counter = 0
class ReadS(Subscriber):
    def after_batch(self, learn): note(counter)
def closed(limit):
    class ClosedS(Subscriber):
        def after_loss(self, learn):
            if learn.batch_idx > limit: note(learn.batch_idx)
    return ClosedS()
cell = '''
import random
from nntrain.learner import Subscriber
LIMIT = [3, .5]
def jitter(x): return x*(1+LIMIT[1]*random.random())
class CellS(Subscriber):
    def before_batch(self, learn): learn.batch = [jitter(learn.batch[0]), learn.batch[1]]
'''
linecache.cache['<a cell>'] = len(cell), None, cell.splitlines(True), '<a cell>'
hidden = {'__name__': 'hidden_away'}
exec(compile(cell, '<a cell>', 'exec'), in_a_cell := {'__name__': __name__})
exec(cell, hidden)

def hooked():
    m = net()
    m[0].register_forward_hook(lambda mod, i, o: o*1.01)
    return m
def frozen():
    m = nn.Sequential(nn.BatchNorm1d(6), *net())
    freeze(m[0])
    return m
class MisspeltS(Subscriber):
    def after_bach(self, learn): pass
    def after_everything(self, learn): pass
def usual(): return [MetricsS(acc=accuracy), DeviceS('cpu'), ProgressS(display='log')]
def accuracy(preds, targs): return (preds.argmax(1)==targs).float().mean()
def rich(): return [GradAccumS(3), MixedPrecisionS(torch.bfloat16), GradClipS(.5), SchedulerS(one_cycle), EMAS(.9), EarlyStoppingS(), *usual()]

standard = dict(cls=Learner, subs=lambda: [], net=net, dls=tensors, loss=F.cross_entropy, opt=torch.optim.Adam, kw={}, fit={}, epochs=2, setup=lambda learn: None)
configs = dict(
    bare={}, usual=dict(subs=usual), momentum=dict(cls=MomentumLearner, subs=lambda: [MetricsS()], opt=torch.optim.SGD),
    one_cycle=dict(subs=lambda: [GradClipS(.5), SchedulerS(one_cycle)]), accumulation=dict(subs=lambda: [GradAccumS(3), MetricsS()]),
    bfloat16=dict(subs=lambda: [MixedPrecisionS(torch.bfloat16)]), float16=dict(subs=lambda: [MixedPrecisionS(torch.float16), GradClipS(.5)]),
    average=dict(subs=lambda: [EMAS(.9)]), stops=dict(subs=lambda: [EarlyStoppingS(patience=1, min_delta=10.), *usual()], epochs=5),
    cancels_batches=dict(subs=lambda: [SkipS(), MetricsS()]), own_step=dict(cls=Noisy, subs=lambda: [MetricsS()]), dicts=dict(dls=dicts, net=Net2, kw=dict(n_inp=2)),
    rich=dict(subs=rich), augment=dict(subs=lambda: [AugmentS(lambda x: x+.1*torch.randn_like(x)), MetricsS()]), lr_find=dict(subs=lambda: [LRFindS(), MetricsS()]),
    # of the fit
    not_trained=dict(fit=dict(train=False), subs=lambda: [MetricsS()]), not_valid=dict(fit=dict(valid=False, lr=.1)), no_epochs=dict(epochs=0, subs=lambda: [MetricsS(), LogS('a')]),
    steps=dict(epochs=None, fit=dict(steps=8, valid_every=4), subs=usual), of_the_fit=dict(subs=lambda: [MetricsS()], fit=dict(subs=lambda: [GradClipS(.1)])),
    numpy_lr=dict(fit=dict(lr=np.float64(.02))), tensor_lr=dict(fit=dict(lr=torch.tensor(.02)), opt=torch.optim.SGD), kept=dict(setup=lambda learn: learn.fit(1), fit=dict(keep_opt=True)),
    lazy=dict(net=lambda: nn.Sequential(nn.LazyLinear(8), nn.ReLU(), nn.Linear(8, 3))), frozen=dict(net=frozen), hooked=dict(net=hooked),
    parts=dict(cls=Parts), sums=dict(loss=nn.CrossEntropyLoss(reduction='sum')), weighted=dict(loss=nn.CrossEntropyLoss(weight=torch.tensor([1., 2., 3.]))),
    lambda_loss=dict(loss=lambda p, y: F.cross_entropy(p, y)*1.5), with_parts=dict(loss=lambda p, y: (F.cross_entropy(p, y), dict(top=p.max()))),
    terminal=dict(subs=lambda: [MetricsS(acc=accuracy), ProgressS(display='terminal')]),
    misspelt=dict(subs=lambda: [MisspeltS()]), vector_loss=dict(loss=nn.CrossEntropyLoss(reduction='none')), no_monitor=dict(subs=lambda: [EarlyStoppingS(monitor='valid_bliss', mode='min')]),
    progress=dict(subs=lambda: [ProgressS(display='log')]), unseen=dict(subs=lambda: [EarlyStoppingS()], fit=dict(valid=False)),
    # how it ends
    cancels_epochs=dict(subs=lambda: [NoValidS(), LogS('a')]), cancels_fit=dict(subs=lambda: [EndS(), LogS('a'), LogS('b', 9)]), cancels_steps=dict(subs=lambda: [LazyStepS()]),
    cancels_steps_and_cleans=dict(subs=lambda: [LazyStepS(), LogS('a')]), metric_cancels=dict(subs=lambda: [MetricsS(a=CancelMetric())]), cleans=dict(subs=lambda: [CleanS()]),
    fails=dict(subs=lambda: [FailS(), LogS('a', -1), LogS('b', 2, 'epoch'), LogS('c', 3)]), nan=dict(opt=torch.optim.SGD, fit=dict(lr=1e30), subs=lambda: [LogS('a')]),
    nan_seen=dict(opt=torch.optim.SGD, fit=dict(lr=1e30), setup=lambda learn: setattr(learn.mean_loss, 'size', 2)), nan_skips=dict(subs=lambda: [NaNStopS('skip'), MetricsS()]), used_up=dict(dls=lambda: DataLoaders(Once(), [[X[:16], Y[:16]]]), subs=lambda: [LogS('a')]),
    # methods and subscribers of all kinds
    one_more=dict(subs=lambda: [OneMoreS()]), eval_mode=dict(subs=lambda: [EvalModeS()]), whole=dict(cls=Whole), two_step=dict(cls=TwoStep), own_fit=dict(cls=OwnFit), own_loop=dict(cls=OwnLoop, subs=lambda: [MetricsS()]),
    own_events=dict(cls=OwnEvents, subs=lambda: [HalfS()]), patched=dict(setup=lambda learn: setattr(learn, 'step', types.MethodType(lambda self: (LOG.append('p'), self.opt.step()), learn))),
    twins=dict(subs=lambda: [LogS('a'), LogS('b'), MetricsS(), MetricsS()]), names=dict(subs=lambda: [NamesS(), MetricsS()]), learn=dict(subs=lambda: [LearnS()]), start=dict(subs=lambda: [StartS()]),
    late=dict(subs=lambda: [LateS()]), generator=dict(subs=lambda: [GenS()]), returns=dict(subs=lambda: [ReturnsS()]), guard=dict(subs=lambda: [GuardS()]), decorated=dict(subs=lambda: [DecoratedS()]),
    instance=dict(subs=lambda: [InstanceS()]), borrowed=dict(subs=lambda: [BorrowS()]), late_listener=dict(subs=lambda: [LateListenerS()]), swap=dict(subs=lambda: [SwapStepS()]), mixin=dict(subs=lambda: [MixS()]),
    seen=dict(subs=lambda: [SeenS()]), mangled=dict(subs=lambda: [MangledS()]), syntax=dict(subs=lambda: [SyntaxS()]), exception=dict(subs=lambda: [ExcS()]), variable=dict(subs=lambda: [GlobalS()]), global_read=dict(subs=lambda: [ReadS(), GlobalS()]),
    closed=dict(subs=lambda: [closed(3)]), cell=dict(subs=lambda: [in_a_cell['CellS']()]), no_source=dict(subs=lambda: [hidden['CellS']()]))

def make(name):
    c = {**standard, **configs[name]}
    set_seed(1)
    LOG.clear()
    SeenS.after_loss.__defaults__[0].clear()
    globals()['counter'] = 0
    learn = c['cls'](c['net'](), c['dls'](), c['loss'], c['opt'], 1e-2, c['subs'](), **c['kw'])
    c['setup'](learn)
    fit = {k: v() if k=='subs' else v for k,v in c['fit'].items()}
    return learn, [] if c['epochs'] is None else [c['epochs']], fit

def deep(v, seen=()):
    "What can be compared of anything"
    if isinstance(v, torch.Tensor): return 'lazy' if nn.parameter.is_lazy(v) else v.detach().clone()
    if isinstance(v, np.ndarray): return v.tolist()
    if isinstance(v, dict): return {str(k): deep(o, seen) for k,o in v.items() if k not in ('seconds', 'start', 'time')}
    if isinstance(v, (list, tuple)): return [deep(o, seen) for o in v]
    if hasattr(v, 'state_dict') and not isinstance(v, (type, Subscriber, nn.Module, Once, DataLoaders)): return deep(v.state_dict(), seen)
    return v if isinstance(v, (int, float, str, bool, type(None), range)) else type(v).__name__
class Kept(Listeners):
    "Keeps the subscribers of the last fit, those that the learner adds among them"
    def __init__(self, subs):
        super().__init__(subs)
        Kept.subs = self.subs
learner.Listeners = Kept
def state(learn, e):
    chain = []
    while e: chain.append((type(e).__name__, str(e))); e = e.__context__
    return dict(weights=deep(learn.model.state_dict()), learner=deep(vars(learn)), rng=deep(rng_state()), log=deep(LOG), error=chain, subs=[deep(vars(s)) for s in Kept.subs],
                data=None if isinstance(learn.dls.train, Once) else deep(learn.dls.state_dict()), modes=[m.training for m in learn.model.modules()], grads=[p.grad is None for p in learn.model.parameters()])
def run(learn, f):
    "All that there is after `f`"
    e,out = None,io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out), warnings.catch_warnings(record=True) as ws:
        warnings.simplefilter('always')
        try: f()
        except Exception as error: e = error
    return dict(state(learn, e), out=re.sub(r'\d\d:\d\d|[\d.]+ ?it/s', '', out.getvalue()), warnings=sorted({str(w.message) for w in ws}))
def same(a, b): return torch.equal(a.nan_to_num(3.), b.nan_to_num(3.)) and a.dtype==b.dtype if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor) else (
    a.keys()==b.keys() and all(same(a[k], b[k]) for k in a) if isinstance(a, dict) and isinstance(b, dict) else
    len(a)==len(b) and all(map(same, a, b)) if isinstance(a, list) and isinstance(b, list) else repr(a)==repr(b))
def differ(a, b): return [k for k in a if not same(a[k], b[k])]

@functools.lru_cache(maxsize=None)
def fitted(name):
    learn,args,kw = make(name)
    return run(learn, lambda: learn.fit(*args, **kw))

@pytest.mark.parametrize('detail,events', [('steps', False), ('short', True), ('all', False)])
@pytest.mark.parametrize('name', configs)
def test_the_text_is_the_fit(name, detail, events):
    wanted = fitted(name)
    learn,args,kw = make(name)
    Kept.subs = subs = [*learn.subs, *kw.get('subs', [])]
    before = run(learn, lambda: None)
    text = explain(learn, *args, detail=detail, events=events, **kw)
    Kept.subs = subs
    assert not differ(before, run(learn, lambda: None)), 'explaining leaves no trace'
    given = {k: kw[k] for k in ('subs', 'lr') if k in kw and type(kw[k]) is not float}
    found = differ(wanted, run(learn, lambda: exec(str(text), dict(learn=learn, **given))))
    assert not found, f'{found}\n{text}'

# ---- is the comparison sharp?
def left_out(text):
    "Each line that does something, and the text without it"
    ls = text.splitlines()
    for i,l in enumerate(ls):
        code,indent = l.split('  #')[0].strip(), l[:len(l)-len(l.lstrip())]
        if not code or l.startswith(('import ', 'from ')) or code.endswith(':') or code.startswith('#') or code=='pass' or code.startswith('except'): continue
        head = re.match(r'(try|finally|else|(?:if|for|with) .*?): (?=\w)', code)
        yield code[len(head[0]) if head else 0:], '\n'.join([*ls[:i], indent + (head[0] if head else '') + 'pass', *ls[i+1:]])
def broken(name, **kw):
    "Which lines are noticed when they are missing, and which aren't"
    learn,args,fit = make(name)
    text = explain(learn, *args, **kw, **fit)
    seen = {True: set(), False: set()}
    for code,rest in left_out(text):
        wanted,(learn,_,fit) = fitted(name),make(name)
        given = dict(learn=learn, **{k: v for k,v in fit.items() if k=='subs'})
        seen[bool(differ(wanted, run(learn, functools.partial(exec, rest, given))))].add(code)
    return seen[True], seen[False]
harmless = { # here, and why
    'learn.batch = to_device(learn.batch, device.device)', 'part.to(device.device)', # all is on the CPU
    'progress.before_epoch(learn)', # there is no bar in a log
    'ema.after_epoch(learn)', 'ema.cleanup_epoch(learn)', # each does what the other has left
    'grad_accum.after_epoch(learn)', 'grad_accum.cleanup_epoch(learn)', 'grad_accum.i, grad_accum.total = 0, 0.0'} # the last batch closes the window
@pytest.mark.slow
def test_each_line_is_needed():
    noticed,missed = set(), set()
    for name in ('usual', 'progress', 'lazy', 'frozen', 'dicts', 'with_parts', 'sums', 'weighted', 'accumulation', 'average', 'of_the_fit', 'misspelt', 'vector_loss', 'no_monitor', 'unseen', 'stops', 'nan_seen', 'cleans'):
        a,b = broken(name)
        noticed,missed = noticed | a, missed | b
    assert len(noticed) > 40 and sorted(missed - noticed)==sorted(harmless)

# ---- what it shows, and its limits
def test_quick_start():
    text = explain(make('usual')[0])
    program = text.partition('\n\n')[2].splitlines()
    print(f'\nquick start: {len(program)} lines besides {len(text.splitlines())-len(program)} of imports')
    assert len(program) <= 62 and 'learn.loss.backward()' in text and 'except' not in text and max(map(len, program)) <= 130

reasons = dict(no_source='has no source', late='defines a function', generator='keeps a generator', variable='assigns a variable outside', closed='uses variables around it', decorated='is decorated', returns='returns early',
    exception='names an exception', mangled='has names like __x', seen='takes an argument that is computed', learn='assigns a parameter', instance='is no method of its class', borrowed='is no method of its class',
    late_listener='who listens is decided while it runs', swap='is replaced', patched='is replaced', own_fit='takes *args', cancels_steps_and_cleans='cleanup_step comes before', usual='imports', global_read='reads counter')
@pytest.mark.parametrize('name', reasons)
def test_what_cannot_be_shown_is_called_and_says_why(name):
    learn,args,kw = make(name)
    assert re.search(f'# .*: {re.escape(reasons[name])}', explain(learn, *args, detail='all', **kw))

def test_stale_source(tmp_path):
    path = tmp_path/'mine.py'
    path.write_text('from nntrain.learner import Subscriber\nclass MineS(Subscriber):\n    def after_loss(self, learn): self.n = 1\n')
    ns = {'__name__': 'mine', '__file__': str(path)}
    exec(compile(path.read_text(), str(path), 'exec'), ns)
    learn = make('bare')[0]
    learn.subs = [ns['MineS']()]
    assert 'mine.n = 1  # MineS' in explain(learn)
    path.write_text(path.read_text().replace('1', '2345'))
    assert 'mine.after_loss(learn)  # MineS: has no source, or it has changed' in explain(learn)

def test_run_and_diff():
    wanted,(learn,_,_) = fitted('usual'),make('usual')
    x = explain(learn, 2)
    assert not differ(wanted, run(learn, x.run))
    same_kind,other = make('usual')[0], make('bare')[0]
    assert not differ(wanted, run(same_kind, lambda: x.run(same_kind)))
    with pytest.raises(ValueError, match='(?s)fits in another way.*- .*to_device'): x.run(other)
    assert not other.history
    with pytest.raises(ValueError, match='epochs'): explain(learn, -1)
    with pytest.raises(ValueError, match='detail'): explain(learn, 1, 'long')
    learn.fitting = True
    with pytest.raises(RuntimeError, match='in the middle'): explain(learn)
    other.subs = [CleanS()]
    added = [l for l in explain(make('bare')[0]).diff(explain(other)).splitlines() if l[0] in '+-']
    assert [l.split('  #')[0].split() for l in added if 'learn.subs' not in l and 'import' not in l]==[['+', 'try:'], ['+', 'finally:', 'note(learn.batch_idx)']], added

def test_an_error_shows_its_line():
    learn = make('fails')[0]
    x = explain(learn, 1)
    with pytest.raises(ValueError) as e: x.run()
    assert any("raise RuntimeError('boom')  # FailS" in line for line in traceback.format_exception(e.value))

def test_killed_and_resumed(tmp_path):
    """A run that is killed in the middle of the text is resumed by the text, and one that is killed in `fit` too; both end as the one that nobody stopped"""
    class KillS(Subscriber):
        order = 99
        def __init__(self, at): self.at = at
        def after_batch(self, learn):
            if learn.training and learn.epoch*7+learn.batch_idx==self.at: raise KeyboardInterrupt
    def learner(folder, at=-1):
        set_seed(1)
        return Learner(net(), tensors(), F.cross_entropy, torch.optim.Adam, 1e-2, [CheckpointS(folder, every=2), GradClipS(.5), SchedulerS(one_cycle), KillS(at)])
    whole = learner(tmp_path/'a')
    whole.fit(3)
    for i,first in enumerate((lambda l: l.fit(3), lambda l: explain(l, 3, 'all').run())):
        folder = tmp_path/f'b{i}'
        killed = learner(folder, at=10)
        with pytest.raises(KeyboardInterrupt), contextlib.redirect_stdout(io.StringIO()): first(killed)
        resumed = learner(folder)
        with contextlib.redirect_stdout(io.StringIO()): explain(resumed, 3, 'all').run()
        assert same(deep(resumed.model.state_dict()), deep(whole.model.state_dict())) and same(deep(resumed.opt), deep(whole.opt))
        assert same(deep(resumed.history), deep(whole.history))

# ---- the library is written so that it can be shown
def test_nothing_is_loaded_before_it_is_used():
    code = "import sys, nntrain.learner; print('nntrain.explain' in sys.modules)"
    assert subprocess.run([sys.executable, '-c', code], capture_output=True, text=True).stdout.strip()=='False'

def test_listeners_of_the_library():
    "All of them can be shown in their place, but for a few, each with a reason"
    def classes(c): return {c}.union(*map(classes, c.__subclasses__()))
    for m in pkgutil.iter_modules(nntrain.__path__): importlib.import_module(f'nntrain.{m.name}')
    shown,why = 0, {}
    for c in classes(Subscriber)-{Subscriber}:
        for event in EVENTS:
            if not c.__module__.startswith('nntrain.') or not isinstance(f := vars(c).get(event), types.FunctionType): continue
            try:
                tree = source_tree(inspect.unwrap(f))
                body,_ = statements_of(tree)
                check_inlinable(inspect.unwrap(f), tree, [n for s in body for n in ast.walk(s)])
                shown += 1
            except CalledInstead as e: why[f'{c.__name__}.{event}'] = str(e)
    print(f'\n{shown} listeners can be shown, {len(why)} are called:', why)
    assert shown > 70 and len(why) <= 15 and not any('source' in o or 'early' in o for o in why.values())

if __name__=='__main__':
    for name in sys.argv[1:]: print(name, *sorted(broken(name)[1]), sep='\n    ')
