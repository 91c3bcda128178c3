"Worker processes of the scratch DataLoader, and the scratch twins under Learner"
import ast, multiprocessing, os, signal, subprocess, sys, time
from functools import partial
from pathlib import Path
from types import SimpleNamespace
import pytest, torch, torch.nn.functional as F
from torch import nn
from torch.utils import data as tud
from nntrain.learner import DeviceS, Learner, MetricsS, MomentumLearner, ProgressS, Subscriber
from nntrain.schedule import EarlyStoppingS, SchedulerS
from nntrain.scratch import nn as snn, optim
from nntrain.scratch.data import DataLoader, Dataset, SampleError, Sampler, get_dls

# Forking a process that has threads warns from Python 3.12 on; the workers here read tensors only.
pytestmark = pytest.mark.filterwarnings('ignore:.*fork.*:DeprecationWarning')
# a process that is spawned imports torch again, which takes seconds
methods = [pytest.param(o, marks=[pytest.mark.slow]*(o=='spawn')) for o in ('fork', 'spawn') if o in multiprocessing.get_all_start_methods()]

class Rows(Dataset):
    def __init__(self, n): super().__init__(torch.arange(n), torch.arange(n)*10)

class Uneven(Rows):
    "Earlier batches take longer, so that later ones are ready first"
    def __getitem__(self, i): time.sleep(.05 if i<4 else 0); return super().__getitem__(i)

class Meeting(Rows):
    "A batch can only be read while another worker reads one too"
    def __init__(self, n, ctx): super().__init__(n); self.barrier = multiprocessing.get_context(ctx).Barrier(2)
    def __getitem__(self, i): self.barrier.wait(60); return super().__getitem__(i)[0], os.getpid()

class Broken(Rows):
    def __getitem__(self, i):
        if i==13: raise OSError('file is truncated')
        return super().__getitem__(i)

class Unsendable(Rows):
    def __getitem__(self, i): return lambda: i

class Deadly(Rows):
    def __getitem__(self, i):
        if i==5: os.kill(os.getpid(), signal.SIGKILL)
        return super().__getitem__(i)

class Slow(Rows):
    def __getitem__(self, i): time.sleep(60)

class Noise(Rows):
    def __getitem__(self, i): return torch.rand(3)

others = set() # children that tests before ours have left in this process

@pytest.fixture(autouse=True)
def who_was_there():
    others.clear()
    others.update(multiprocessing.active_children())

def children(): return [p for p in multiprocessing.active_children() if p not in others]
def no_children(): assert children()==[]

@pytest.mark.parametrize('ctx', methods)
def test_same_batches_in_order(ctx):
    want = list(DataLoader(Uneven(22), 4))
    got = list(DataLoader(Uneven(22), 4, num_workers=3, multiprocessing_context=ctx))
    assert len(got)==len(want)==6
    for (a,b),(c,d) in zip(got, want): assert torch.equal(a, c) and torch.equal(b, d)
    no_children()

def test_more_workers_than_batches():
    assert len(list(DataLoader(Rows(3), 2, num_workers=5))) == 2
    assert list(DataLoader(Rows(0), 2, num_workers=2)) == []
    no_children()

@pytest.mark.parametrize('ctx', methods)
def test_workers_read_at_the_same_time(ctx):
    pids = [set(p.tolist()) for _,p in DataLoader(Meeting(8, ctx), 2, num_workers=2, multiprocessing_context=ctx)]
    assert len(pids)==4 and pids[0]==pids[2]!=pids[1]==pids[3] and os.getpid() not in pids[0]|pids[1]

@pytest.mark.parametrize('ctx', methods)
def test_error_names_the_sample(ctx):
    dl,got = DataLoader(Broken(40), 4, num_workers=2, multiprocessing_context=ctx),[]
    with pytest.raises(SampleError, match='sample 13 of the data set') as e:
        for xb,_ in dl: got += xb.tolist()
    assert e.value.index==13 and 'OSError: file is truncated' in str(e.value) and '__getitem__' in str(e.value)
    assert got==list(range(12)) # the batches before it came through
    no_children()

def test_what_cannot_be_sent():
    with pytest.raises(SampleError, match="sample .0, 1. of the data set(.|\n)*pickle"): list(DataLoader(Unsendable(4), 2, num_workers=1))
    no_children()

def test_killed_worker_is_noticed():
    with pytest.raises(SampleError, match='sample .4, 5. of the data set: its worker process died'): list(DataLoader(Deadly(12), 2, num_workers=2))
    no_children()

@pytest.mark.parametrize('ctx', methods)
def test_nobody_left_when_the_loop_is_left(ctx):
    dl = DataLoader(Rows(400), 2, num_workers=2, multiprocessing_context=ctx)
    for _ in dl: break
    no_children()
    with pytest.raises(ZeroDivisionError):
        for _ in dl: 1/0
    it = iter(dl)
    next(it)
    assert len(children()) == 2
    it.close()
    no_children()

def test_busy_workers_are_stopped():
    it = iter(DataLoader(Slow(4), 1, num_workers=2))
    def stop(*_): raise TimeoutError
    old = signal.signal(signal.SIGALRM, stop)
    try:
        signal.alarm(1)
        with pytest.raises(TimeoutError): next(it)
    finally: signal.alarm(0); signal.signal(signal.SIGALRM, old)
    no_children()

def test_random_numbers_depend_on_the_batch_alone():
    def run(n): return list(DataLoader(Noise(12), 3, num_workers=n, seed=5))
    one,three = run(1),run(3)
    for a,b in zip(one, three): assert torch.equal(a, b)
    assert len({o.sum().item() for o in one}) == 4 # each batch draws its own
    dl = DataLoader(Noise(6), 3, num_workers=2, seed=5)
    assert not torch.equal(next(iter(dl)), next(iter(dl))) # and so does each epoch
    before = torch.get_rng_state()
    list(dl)
    assert torch.equal(torch.get_rng_state(), before)

orphans = '''
import os, sys, time
sys.path.insert(0, {tests!r})
from test_scratch import DataLoader, Rows, multiprocessing
if __name__ == '__main__':
    it = iter(DataLoader(Rows(400), 2, num_workers=2, multiprocessing_context={ctx!r}))
    next(it)
    print(*[p.pid for p in multiprocessing.active_children()], flush=True)
    time.sleep(60)
'''

def alive(pid):
    try: return Path(f'/proc/{pid}/stat').read_text().rsplit(')', 1)[1].split()[0] != 'Z'
    except FileNotFoundError: return False

@pytest.mark.skipif(not os.path.isdir('/proc/self'), reason='looks processes up in /proc')
@pytest.mark.parametrize('ctx', methods)
def test_nobody_left_when_the_main_process_is_killed(ctx, tmp_path):
    script = tmp_path/'main.py'
    script.write_text(orphans.format(tests=os.path.dirname(__file__), ctx=ctx))
    p = subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, text=True)
    pids = [int(o) for o in p.stdout.readline().split()]
    try:
        assert len(pids)==2 and all(alive(o) for o in pids)
        p.kill(); p.wait(); p.stdout.close()
        end = time.monotonic()+30
        while any(alive(o) for o in pids) and time.monotonic()<end: time.sleep(.05)
        assert not any(alive(o) for o in pids)
    finally:
        for o in filter(alive, pids): os.kill(o, signal.SIGKILL)

# Twins that drop in: scratch parts under Learner, against torch's parts under an equal Learner

class Accuracy:
    def reset(self): self.right = self.n = 0
    def update(self, preds, y): self.right += (preds.argmax(1)==y).sum(); self.n += len(y)
    def compute(self): return self.right/self.n

class ModesS(Subscriber):
    "Notes the mode of every module in each epoch"
    def __init__(self): self.modes = []
    def before_epoch(self, learn): self.modes.append([m.training for m in learn.model.modules()])

def seeded(f): torch.manual_seed(3); return f()
def data(n=330):
    g = torch.Generator().manual_seed(1)
    x = torch.rand(n, 64, generator=g)
    y = (x@torch.randn(64, 10, generator=g)).argmax(1)
    return Dataset(x[:250], y[:250]), Dataset(x[250:], y[250:])

def ours(num_workers=0): return dict(model=seeded(lambda: snn.Sequential(snn.Linear(64, 50), snn.ReLU(), snn.Linear(50, 10))),
    dls=get_dls(*data(), 32, seed=0, num_workers=num_workers), loss_fn=snn.cross_entropy)
def theirs():
    train, valid = (tud.TensorDataset(*o.columns) for o in data())
    return dict(model=seeded(lambda: nn.Sequential(nn.Linear(64, 50), nn.ReLU(), nn.Linear(50, 10))), loss_fn=F.cross_entropy,
        dls=SimpleNamespace(train=tud.DataLoader(train, 32, sampler=Sampler(train, shuffle=True, seed=0)), valid=tud.DataLoader(valid, 64)))

def learner(parts, opt, lr, subs=(), cls=Learner): return cls(parts['model'], parts['dls'], parts['loss_fn'], opt, lr, list(subs))
def some_subs(): return [MetricsS(accuracy=Accuracy()), DeviceS('cpu'), ProgressS(display='log'), ModesS()]
def assert_same(a, b, eps=1e-6):
    for (k,p),(l,q) in zip(a.model.named_parameters(), b.model.named_parameters(), strict=True):
        assert k==l and (p-q).abs().max().item() <= eps, k
    assert len(a.history)==len(b.history)
    for r,s in zip(a.history, b.history):
        assert r.keys()==s.keys()
        for k in r.keys()-{'seconds'}: assert r[k]==pytest.approx(s[k], abs=1e-5), k

optimizers = dict(Adam=(optim.Adam, torch.optim.Adam, 1e-3), AdamW=(optim.AdamW, torch.optim.AdamW, 1e-3), RMSProp=(optim.RMSProp, torch.optim.RMSprop, 1e-3),
    SGD=(optim.SGD, torch.optim.SGD, .1), momentum=(partial(optim.SGD, momentum=.9), partial(torch.optim.SGD, momentum=.9), .05))

@pytest.mark.parametrize('name', optimizers)
def test_twins_train_to_the_same_weights(name, capsys):
    mine, torchs, lr = optimizers[name]
    a, b = learner(ours(), mine, lr, some_subs()), learner(theirs(), torchs, lr, some_subs())
    start = [p.detach().clone() for p in a.model.parameters()]
    a.fit(3); out = capsys.readouterr().out
    b.fit(3); assert capsys.readouterr().out == out
    assert_same(a, b)
    assert len(a.history)==6 and 'accuracy' in a.history[0] and a.history[-1]['samples']==80
    assert all((p-q).abs().max()>1e-3 for p,q in zip(a.model.parameters(), start)) # and not by standing still
    assert a.subs[3].modes==b.subs[3].modes==[[True]*4, [False]*4]*3
    assert all(p.grad is None for p in a.model.parameters()) and a.model.training

def test_each_part_alone():
    "Any one part may be ours among torch's"
    want = learner(theirs(), torch.optim.Adam, 1e-3); want.fit(3)
    for part in ('model', 'dls', 'loss_fn', 'opt'):
        parts = theirs() | ({} if part=='opt' else {part: ours()[part]})
        got = learner(parts, optim.Adam if part=='opt' else torch.optim.Adam, 1e-3); got.fit(3)
        assert_same(got, want)

def test_with_worker_processes():
    a, b = learner(ours(num_workers=2), optim.Adam, 1e-3), learner(ours(), optim.Adam, 1e-3)
    a.fit(2); b.fit(2)
    assert_same(a, b, eps=0)
    no_children()

def test_what_learner_does_around_a_fit():
    a, b = learner(ours(), optim.SGD, .1), learner(theirs(), torch.optim.SGD, .1)
    for l in (a, b): l.fit(1)
    weights = [p.detach().clone() for p in a.model.parameters()]
    with pytest.warns(UserWarning, match='no suggestion'): a.lr_find(plot=False), b.lr_find(plot=False) # they are trained already
    assert a.lr_finder.losses == pytest.approx(b.lr_finder.losses, abs=1e-5)
    assert all(torch.equal(p, q) for p,q in zip(a.model.parameters(), weights)) # the search puts everything back
    assert a.validate()['loss'] == pytest.approx(b.validate()['loss'], abs=1e-6)
    for l in (a, b): l.fit(1, keep_opt=True, lr=.05)
    assert_same(a, b)

def test_momentum_learner():
    a, b = learner(ours(), optim.SGD, .05, cls=MomentumLearner), learner(theirs(), torch.optim.SGD, .05, cls=MomentumLearner)
    a.fit(3); b.fit(3)
    assert_same(a, b)

def test_scheduler_and_early_stopping():
    def cosine(opt, total_steps): return optim.Scheduler(opt, optim.cosine(total_steps, 3))
    def torch_cosine(opt, total_steps): return torch.optim.lr_scheduler.LambdaLR(opt, optim.cosine(total_steps, 3))
    res = []
    for parts,opt,sched in ((ours(), optim.SGD, cosine), (theirs(), torch.optim.SGD, torch_cosine)):
        s, stop = SchedulerS(sched), EarlyStoppingS(patience=1, min_delta=.3)
        l = learner(parts, opt, .2, [s, stop])
        l.fit(6)
        assert len(s.lrs)==8*len([r for r in l.history if r['mode']=='train'])
        res.append((l, s.lrs, stop.best_epoch))
    (a, lrs, best), (b, lrs2, best2) = res
    assert lrs==lrs2 and best==best2 and len(a.history)<12 # stopped early
    assert_same(a, b)

class Torn(Broken):
    def __getitem__(self, i): super().__getitem__(i); return torch.ones(1), 0

@pytest.mark.parametrize('num_workers', (0, 2))
def test_a_broken_sample_reaches_the_caller_of_fit(num_workers):
    l = Learner(snn.Linear(1, 2), get_dls(Torn(40), Torn(4), 4, num_workers=num_workers), snn.cross_entropy, optim.SGD, .1)
    with pytest.raises(SampleError) as e: l.fit(1)
    assert e.value.index==13
    no_children()

def test_only_scratch_imports_scratch():
    top = Path(optim.__file__).parent.parent
    for path in top.rglob('*.py'):
        if path.parent.name=='scratch' or path.name=='_modidx.py': continue
        for o in ast.walk(ast.parse(path.read_text())):
            names = [a.name for a in o.names]+[getattr(o, 'module', None) or ''] if isinstance(o, (ast.Import, ast.ImportFrom)) else []
            assert not any('scratch' in n.split('.') for n in names), path
