"""Several processes train as one: the same numbers, failures that end soon. Each scenario runs in processes forked from this one, which has imported everything, so it takes about a second; torchrun is in the slow tests."""
import os, signal, socket, subprocess, sys, time, traceback, warnings
from contextlib import nullcontext
from pathlib import Path
from functools import lru_cache
from types import SimpleNamespace
import pytest, torch, torch.nn.functional as F
import torchmetrics
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.utils.data import default_collate
root = Path(__file__).resolve().parent.parent
from nntrain import distributed
from nntrain.acceleration import GradAccumS, GradClipS, MixedPrecisionS
from nntrain.average import EMAS
from nntrain.checkpoint import CheckpointS
from nntrain.core import local, set_seed
from nntrain.dataloaders import DataLoaders
from nntrain.distributed import DistributedS, gathered, meet, rank
from nntrain.events import CancelBatchException, CancelEpochException, CancelFitException, Subscriber
from nntrain.finite import NaNStopS
from nntrain.learner import DeviceS, Learner, MetricsS, MomentumLearner, ProgressS
from nntrain.metrics import Accuracy
from nntrain.schedule import EarlyStoppingS
from nntrain.saving.files import CheckpointFolder, locked
from nntrain.trainable import Model
from train_script import digits

pytestmark = pytest.mark.filterwarnings('ignore:.*fork.*:DeprecationWarning')
x,y = digits()
def slow(*args): return pytest.param(*args, marks=pytest.mark.slow)

def free_port():
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        return s.getsockname()[1]

def forked(f, n, folder, limit=30):
    "Call `f` in `n` processes. As torchrun does: when one has failed, the others have 3 seconds left. Returns exit codes, what each printed, seconds"
    port,pids,start = free_port(),[],time.monotonic()
    folder.mkdir(parents=True, exist_ok=True)
    for r in range(n):
        if not (pid := os.fork()):
            code = 1
            try:
                fd = os.open(folder/f'out{r}', os.O_WRONLY|os.O_CREAT|os.O_TRUNC)
                os.dup2(fd, 1); os.dup2(fd, 2)
                sys.stdout = os.fdopen(1, 'w', buffering=1, closefd=False); sys.stderr = os.fdopen(2, 'w', buffering=1, closefd=False)
                os.environ.update(RANK=str(r), LOCAL_RANK=str(r), WORLD_SIZE=str(n), MASTER_ADDR='127.0.0.1', MASTER_PORT=str(port))
                warnings.resetwarnings()
                f()
                code = 0
            except SystemExit as e: code = e.code or 0
            except BaseException as e: traceback.print_exception(e)
            finally:
                try: distributed.leave()
                finally: os._exit(code)
        pids.append(pid)
    codes,failed = {},None
    while len(codes) < n:
        for p in pids:
            if p not in codes and (got := os.waitpid(p, os.WNOHANG))[0]: codes[p] = os.waitstatus_to_exitcode(got[1])
        if any(codes.values()): failed = failed or time.monotonic()
        if time.monotonic()-start > limit or failed and time.monotonic()-failed > 3:
            for p in set(pids)-set(codes): os.kill(p, signal.SIGKILL); codes[p] = 'hung'; os.waitpid(p, 0)
        time.sleep(.005)
    return [codes[p] for p in pids],[(folder/f'out{r}').read_text() for r in range(n)],time.monotonic()-start

class DieS(Subscriber):
    "Ends process 1 at a batch of an epoch"
    order = 50
    def __init__(self, how, epoch=1, batch=7): self.how,self.at = how,(epoch, batch)
    def after_batch(self, learn):
        if not learn.training or rank()!=1 or (learn.epoch, learn.batch_idx)!=self.at: return
        self.how(learn)

EXTRA = dict(ema=lambda: EMAS(.9), accum=lambda: GradAccumS(3), clip=lambda: GradClipS(.5), early=lambda: EarlyStoppingS(patience=1), amp=lambda: MixedPrecisionS(torch.float16), skip=lambda: NaNStopS('skip'))

def job(out, extra='', n=1437, bs=64, epochs=2, subs=(), model=None, cls=Learner, drop=0., fit=None, loss=F.cross_entropy, valid=360, sync_bn=False, shard=False, stream=None, **kw):
    "Train on digits, and write down weights and history"
    set_seed(42)
    TD = torch.utils.data.TensorDataset
    dls = DataLoaders.from_datasets(stream() if stream else TD(x[:n], y[:n]), TD(x[1437:1437+valid], y[1437:1437+valid]), batch_size=bs, **kw)
    model = model() if model else nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Dropout(drop), nn.Linear(64, 10))
    metrics = MetricsS(accuracy=Accuracy(), tm=torchmetrics.Accuracy('multiclass', num_classes=10), error=lambda p,y: (p.argmax(1)!=y).float().mean())
    learn = Learner(model, dls, loss, torch.optim.Adam, 1e-2, [metrics, DeviceS(), ProgressS(), DistributedS(sync_bn, shard), *[EXTRA[k]() for k in extra.split()], *subs])
    if cls is not Learner: learn = cls(model, dls, loss, torch.optim.SGD, 1e-2, learn.subs)
    fit(learn) if fit else learn.fit(epochs)
    history = [{k: v for k,v in r.items() if k!='seconds'} for r in learn.history]
    torch.save(dict(w={k: getattr(v, 'full_tensor', lambda v=v: v)() for k,v in learn.model.state_dict().items()}, history=history), f'{out}-{rank()}.pt')
    return learn

def run(tmp, world, **kw):
    codes,outs,s = forked(lambda: job(tmp/f'{world}', **kw), world, tmp/f'out{world}')
    assert codes==[0]*world, '\n'.join(outs)
    return [torch.load(tmp/f'{world}-{r}.pt', weights_only=False) for r in range(world)]

def weights_differ(a, b): return max(float((a['w'][k].double()-v.double()).abs().max()) for k,v in b['w'].items())

def same(a, b, tol=1e-6):
    "Are two results the same? Counts exactly, weights and means up to rounding"
    assert weights_differ(a, b) <= tol
    assert len(a['history'])==len(b['history'])
    for r,s in zip(a['history'], b['history']):
        assert r.keys()==s.keys()
        for k in r:
            if k in ('samples', 'epoch', 'mode', 'accuracy', 'tm', 'error'): assert r[k]==s[k], k
            else: assert abs(r[k]-s[k]) <= tol, k

def as_one(tmp, tol=1e-6, worlds=(2,), **kw):
    "Do several processes give the numbers of one, and all the same?"
    one, = run(tmp, 1, **kw)
    for w in worlds:
        first,*others = run(tmp, w, **kw)
        same(one, first, tol)
        for o in others: assert weights_differ(first, o)==0 and o['history']==first['history']
    return one

def test_two_and_three_processes_are_as_one(tmp_path): as_one(tmp_path, worlds=(2,3))

def test_a_last_batch_of_one_row(tmp_path): as_one(tmp_path, n=1381, bs=60, valid=361, worlds=(2,3)) # and one of validation

@pytest.mark.parametrize('extra', ['ema clip', 'accum clip', 'early'])
def test_with_other_subscribers(tmp_path, extra): as_one(tmp_path, 1e-5, extra=extra, n=641, epochs=3 if extra=='early' else 2)

def one_cycle(learn): learn.fit_one_cycle(2)
def find_lr(learn):
    lr = learn.lr_find(plot=False)
    assert lr
    learn.fit(1, lr=lr)
    learn.history[-1] |= dict(tried=len(learn.lr_finder.lrs))
def in_steps(learn): learn.fit(steps=20, valid_every=10)
@pytest.mark.parametrize('fit', [one_cycle, find_lr, in_steps])
def test_other_fits(tmp_path, fit): as_one(tmp_path, 1e-5, fit=fit, n=641)

class OwnModel(nn.Module):
    def __init__(self):
        super().__init__()
        self.a,self.b = nn.Linear(64, 32),nn.Linear(32, 10)
    def forward(self, x): return self.b(self.a(x).relu())
    def answer(self, x): return self(x)*1.5
class OwnLearner(Learner):
    "Calls a method of the model, which calls the model"
    def predict(self): self.preds = self.model.answer(self.batch[0])
class Around(Learner):
    def predict(self): self.preds = self.model.b(self.model.a(self.batch[0]))

@pytest.mark.parametrize('cls', [OwnLearner, MomentumLearner])
def test_other_learners(tmp_path, cls): as_one(tmp_path, cls=cls, model=OwnModel, n=641)

def ignoring(p, y): return F.cross_entropy(p, y.where(y<7, -100))
@pytest.mark.parametrize('extra,loss', [('', nn.CrossEntropyLoss(ignore_index=3)), ('accum', nn.CrossEntropyLoss(weight=torch.arange(1., 11))), ('', nn.CrossEntropyLoss(reduction='sum')), ('accum', nn.CrossEntropyLoss(ignore_index=3, weight=torch.arange(1., 11)))], ids=['ignored', 'weights', 'sum', 'both'])
def test_what_a_batch_weighs(tmp_path, extra, loss): as_one(tmp_path, 1e-4 if loss.reduction=='sum' else 1e-6, loss=loss, n=300, bs=50, extra=extra)

def refused(tmp, match, world=2, f=None, **kw):
    "All processes end soon, with an error that says what is wrong"
    codes,outs,s = forked(f or (lambda: job(tmp/'x', **kw)), world, tmp/'out')
    assert 0 not in codes and 'hung' not in codes, outs
    assert all(match in o for o in outs), '\n'.join(outs)
    return outs
def test_the_model_must_be_called(tmp_path): refused(tmp_path, "wasn't called by learn.model", cls=Around, model=OwnModel)
def test_each_process_needs_a_row(tmp_path): refused(tmp_path, 'batch_size of 2, and 3 processes', world=3, bs=2)
def test_other_data_or_subscribers(tmp_path):
    refused(tmp_path, 'process 1 has another data', f=lambda: job(tmp_path/'x', n=640+64*rank()))
    refused(tmp_path, 'process 1 has another subscribers', f=lambda: job(tmp_path/'x', extra='ema' if rank() else ''))

def test_mixed_precision(tmp_path):
    "float16 rounds otherwise, but all processes leave out the same steps"
    a,b = run(tmp_path, 2, extra='amp', n=641)
    assert weights_differ(a, b)==0 and a['history']==b['history'] and a['history'][-1]['accuracy'] > .6

# ---- resuming
def kill(learn): os.kill(os.getpid(), signal.SIGKILL)
def term(learn): os.kill(os.getpid(), signal.SIGTERM)
def broken(learn): raise ValueError('a row is broken')
def nan(learn): next(iter(learn.model.parameters())).data.fill_(float('nan'))

RESUMED = dict(extra='ema accum', drop=.3, n=700, fit=one_cycle)
def checkpoint(folder): return CheckpointS(folder, every=5, monitor='valid_accuracy')

@pytest.fixture(scope='module')
def straight(tmp_path_factory):
    "Runs that were never stopped, by what is trained how"
    @lru_cache
    def made(world, shard=False, **kw):
        d = tmp_path_factory.mktemp('straight')
        return run(d, world, **(RESUMED | dict(subs=[checkpoint(d/'c')], shard=shard) | kw))
    return made

@pytest.mark.parametrize('how,codes,shard', [(kill, (None, -9), False), (term, (143, 143), False), slow(broken, (1, 1), False), (nan, (1, 1), False), slow(term, (143, 143), True)])
def test_resumed_to_the_last_bit(tmp_path, straight, how, codes, shard):
    "Process 1 ends, and the other one soon, within a window of batches; resumed, the run ends as one that was never stopped"
    kw = RESUMED | dict(shard=shard)
    got,outs,s = forked(lambda: job(tmp_path/'x', subs=[checkpoint(tmp_path/'b'), DieS(how)], **kw), 2, tmp_path/'dead')
    assert not {0, 'hung'} & set(got) and got[1]==codes[1] and codes[0] in (None, got[0]), (got, outs)
    resumed = run(tmp_path/'resumed', 2, subs=[checkpoint(tmp_path/'b')], **kw)
    for a,b in zip(straight(2, shard), resumed): assert weights_differ(a, b)==0 and a['history']==b['history']
    assert not [p for p in (tmp_path/'b').iterdir() if p.name.startswith('.')]

@pytest.mark.parametrize('before,after,shard', [(2, 1, False), (1, 2, False), slow(2, 3, False), (2, 1, True), slow(2, 3, True)])
def test_resumed_with_other_processes(tmp_path, straight, before, after, shard):
    kw = dict(n=700, extra='accum', shard=shard, drop=0., fit=None)
    codes,outs,s = forked(lambda: job(tmp_path/'x', subs=[CheckpointS(tmp_path/'b', every=5), StopS()], **kw), before, tmp_path/'dead')
    assert set(codes)=={143}, outs
    one, = straight(1, extra='accum', drop=0., fit=None)
    for r in run(tmp_path/'resumed', after, subs=[CheckpointS(tmp_path/'b', every=5)], **kw): same(one, r)

class StopS(Subscriber):
    "Ends all processes by a signal to the last one"
    def __init__(self, batch=7): self.batch = batch
    def after_batch(self, learn):
        if learn.training and (learn.epoch, learn.batch_idx)==(1, self.batch) and rank()==distributed.world()-1: os.kill(os.getpid(), signal.SIGTERM)

# ---- failures
class CancelS(Subscriber):
    "Process 1 cancels something by itself"
    def __init__(self, error, event): setattr(self, event, self.cancel); self.error = error
    def cancel(self, learn):
        if rank()==1 and learn.epoch==1: raise self.error

@pytest.mark.parametrize('error,event', [(CancelBatchException, 'before_batch'), slow(CancelEpochException, 'after_loss'), (CancelFitException, 'after_batch'), (CancelEpochException, 'before_epoch'), (CancelFitException, 'after_epoch')])
def test_one_process_that_leaves_alone(tmp_path, monkeypatch, error, event):
    "The job ends soon, and says what must not be"
    monkeypatch.setattr(distributed, 'meet', lambda place, seconds=5.: meet(place, min(seconds, 1.)))
    codes,outs,s = forked(lambda: job(tmp_path/'x', n=300, subs=[CancelS(error, event)]), 2, tmp_path)
    assert 0 not in codes and 'hung' not in codes and s < 8, (codes, outs)
    assert any('learn.processes.any_of(flag)' in o for o in outs), outs

def test_the_error_of_the_one_that_failed(tmp_path):
    codes,outs,s = forked(lambda: job(tmp_path/'x', subs=[DieS(broken)]), 2, tmp_path)
    assert codes==[1, 1] and s < 5
    assert outs[1].rstrip().splitlines()[-1].startswith(('ValueError: a row is broken', 'nntrain: ')) and 'a row is broken' not in outs[0]
    assert 'another process has ended' in outs[0]

def test_one_script_that_ends_early(tmp_path):
    codes,outs,s = forked(lambda: job(tmp_path/'x', epochs=1+1*(rank()==0)), 2, tmp_path)
    assert 0 not in codes and 'hung' not in codes and s < 8, (codes, outs)
    assert 'the processes have parted: 0 is at epoch 1, training, 1 is at the end of the fit' in outs[0]

@pytest.mark.parametrize('action,split', [('raise', 'train'), ('skip', 'train'), ('warn', 'train'), ('raise', 'valid')])
def test_nan_in_one_process(tmp_path, action, split):
    i = 100 if split=='train' else 1500
    def f():
        x[i] = float('nan')
        job(tmp_path/'x', n=640, shuffle=False, valid_batch_size=64, subs=[NaNStopS(action)], epochs=1)
    codes,outs,s = forked(f, 2, tmp_path)
    assert codes==([1, 1] if action=='raise' else [0, 0]), (codes, outs)
    if action=='raise': assert all("FloatingPointError: process 1: the loss (nan) isn't finite at epoch 0" in o for o in outs), outs
    if action=='skip':
        a,b = [torch.load(tmp_path/f'x-{r}.pt', weights_only=False) for r in range(2)]
        assert weights_differ(a, b)==0 and a['history']==b['history'] and a['history'][0]['samples']==576

@pytest.mark.parametrize('background', [False, True])
def test_two_jobs_in_one_folder(tmp_path, monkeypatch, background):
    "The processes of one job are one writer, the first; another job is refused, as a whole"
    def write(self, *args, own=CheckpointFolder.write, **kw):
        (tmp_path/f'process {rank()} wrote').touch()
        return own(self, *args, **kw)
    monkeypatch.setattr(CheckpointFolder, 'write', write)
    def subs(): return [CheckpointS(tmp_path/'c', background=background)]
    run(tmp_path, 2, n=300, epochs=1, subs=subs())
    assert [p.name for p in sorted((tmp_path/'c').iterdir())]==['checkpoint-000001.pt']
    assert [p.name for p in tmp_path.glob('*wrote')]==['process 0 wrote']
    if not background:
        with locked(tmp_path/'c'/'.lock'): refused(tmp_path, 'it is in use by process', n=300, subs=subs())

def test_a_disk_that_is_full(tmp_path, monkeypatch):
    "The first can't write, and all say so"
    def write(self, *args, **kw): raise OSError(28, 'No space left on device', 'checkpoint')
    monkeypatch.setattr(CheckpointFolder, 'write', write)
    refused(tmp_path, 'No space left on device', n=300, subs=[CheckpointS(tmp_path/'c')])

def test_nothing_is_left(tmp_path):
    "The model has its own forward, the learner nothing of the others, after an error too; and no process group at the end"
    def f():
        for subs in ([], [CancelS(ValueError('no'), 'after_loss')]):
            learn = None
            class KeepS(Subscriber):
                def before_fit(self, l): nonlocal learn; learn = l
                def after_batch(self, l): assert 'forward' in vars(l.model) and l.dls.train.share==(rank(), 2)
            set_seed(rank())
            try: job(tmp_path/'x', n=300, epochs=1+bool(subs), subs=[KeepS(), *subs])
            except Exception: pass
            assert 'forward' not in vars(learn.model) and learn.dls.train.share==(0, 1) and not {'processes', 'n_samples', 'backward', 'n_all'} & set(vars(learn)) and learn.quiet is False
            if not subs: assert len(set(distributed.gathered(torch.rand(()).item())))==1, 'all go on with the random numbers of the first'
        distributed.leave()
        assert not torch.distributed.is_initialized()
    codes,outs,s = forked(f, 2, tmp_path)
    assert codes==[0, 0], outs

def test_alone_outside_of_a_fit(tmp_path):
    "Each process can validate and predict by itself, without the others"
    def f():
        learn = job(tmp_path/'x', n=300, epochs=1)
        row = learn.history[-1]
        if rank()==0:
            v = learn.validate()
            assert v['samples']==360==len(learn.get_preds()) and v['accuracy']==row['accuracy'] and v['tm']==row['tm']
    codes,outs,s = forked(f, 2, tmp_path)
    assert codes==[0, 0], outs

def test_predictions_within_a_fit_are_whole(tmp_path):
    class PredictS(Subscriber):
        def after_epoch(self, learn): learn.history[-1]['preds'] = float(learn.get_preds().sum()); learn.history[-1]['rows'] = len(learn.get_preds())
    one = as_one(tmp_path, 1e-3, n=300, epochs=1, subs=[PredictS()])
    assert one['history'][0]['rows']==360

def test_batch_norm(tmp_path):
    "Each process normalises its share: not the same as one process, but all agree, resumed too"
    def model(): return nn.Sequential(nn.Linear(64, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 10))
    a,b = run(tmp_path, 2, n=300, model=model)
    assert weights_differ(a, b)==0 and a['history']==b['history']
    refused(tmp_path, 'SyncBatchNorm', f=lambda: sync_bn(tmp_path, model))

def sync_bn(tmp_path, model): job(tmp_path/'x', n=300, model=model, sync_bn=True)

class Numbers(torch.utils.data.IterableDataset):
    "A stream that shuffles itself"
    def __iter__(self): return ((x[i], y[i]) for i in torch.randperm(301).tolist())

@pytest.mark.parametrize('workers', [0, 1])
def test_streams(tmp_path, workers):
    "All read it, and each keeps its share; with no end to be seen, the last window of batches isn't full"
    as_one(tmp_path, stream=Numbers, n=301, num_workers=workers, extra='' if workers else 'accum')

class Shards(torch.utils.data.IterableDataset):
    "Three shards of 120, 120 and 61 rows; each process, and each worker, reads its own"
    def __iter__(self):
        info = torch.utils.data.get_worker_info()
        i,n = (info.id, info.num_workers) if info else (0, 1)
        for k in range(rank()*n+i, 3, distributed.world()*n): yield from zip(x[120*k:min(120*k+120, 301)], y[120*k:min(120*k+120, 301)])

@pytest.mark.parametrize('workers', [0, slow(1)])
def test_streams_that_are_split(tmp_path, workers):
    "The processes have 181 and 120 rows, and end together; resumed, too"
    kw = dict(stream=Shards, own_rows=True, bs=60, num_workers=workers, n=301)
    codes,outs,s = forked(lambda: job(tmp_path/'x', subs=[CheckpointS(tmp_path/'b', every=2), StopS(4)], **kw), 2, tmp_path/'dead')
    assert set(codes)=={143}, outs
    a,b = run(tmp_path/'straight', 2, subs=[CheckpointS(tmp_path/'a', every=2)], **kw)
    for r in (b, *run(tmp_path/'resumed', 2, subs=[CheckpointS(tmp_path/'b', every=2)], **kw)): assert weights_differ(a, r)==0 and a['history']==r['history']
    assert a['history'][0]['samples']==301
    if not workers: refused(tmp_path, 'parts=2', world=3, **kw | dict(subs=[CheckpointS(tmp_path/'b', every=2)], epochs=3))

@pytest.mark.slow
@pytest.mark.parametrize('shards', [2, 3])
def test_streams_of_hugging_face(tmp_path, shards):
    "As many shards as processes: each reads its own; else each leaves out rows of the others, and batches are those of one process"
    from datasets import Dataset
    from datasets.distributed import split_dataset_by_node
    def stream(): return split_dataset_by_node(Dataset.from_dict(dict(i=range(301))).to_iterable_dataset(shards).shuffle(3, buffer_size=50), rank(), distributed.world())
    def collate(rows): return default_collate([(x[r['i']], y[r['i']]) if isinstance(r, dict) else r for r in rows])
    kw = dict(stream=stream, bs=60, collate_fn=collate)
    if shards==3: as_one(tmp_path, **kw)
    else: assert run(tmp_path, 2, **kw)[0]['history'][0]['samples']==301

def test_streams_that_differ(tmp_path):
    refused(tmp_path, 'give own_rows=True', stream=Shards)
    refused(tmp_path, 'a process got no rows of the stream', world=4, stream=Shards, own_rows=True)
    refused(tmp_path, 'make it 2 times', stream=Shards, own_rows=True, bs=61)

def test_gradients_meet_once_in_a_window(tmp_path):
    "Of three batches the last one averages"
    class LookS(Subscriber):
        def after_backward(self, learn): self.seen = [*getattr(self, 'seen', ()), len(set(gathered(next(learn.model.parameters()).grad.sum().item())))]
        def cleanup_fit(self, learn): assert self.seen==[2,2,1, 2,2,1, 1], self.seen
    run(tmp_path, 2, extra='accum', n=7*64, epochs=1, subs=[LookS()])

class LastS(Subscriber):
    "Leaves out the last batch of a pass, which closes the window"
    order = -30
    def after_loss(self, learn):
        if learn.training and learn.batch_idx==4: raise CancelBatchException
def test_a_window_that_nothing_closes(tmp_path): as_one(tmp_path, extra='accum', n=5*64, subs=[LastS()])

# ---- sharded models
@pytest.mark.parametrize('extra', ['ema clip accum', slow('early')])
def test_sharded_is_as_one(tmp_path, extra): as_one(tmp_path, 1e-5, n=641, extra=extra, shard=True, model=Lists)

class Lists(nn.Module):
    def __init__(self):
        super().__init__()
        self.first,self.blocks = nn.Linear(64, 32),nn.ModuleList([nn.Sequential(nn.Linear(32, 32), nn.ReLU()) for _ in range(2)])
        self.last = nn.Linear(32, 10)
        self.register_buffer('scale', torch.ones(1))
    def forward(self, x):
        x = self.first(x)*self.scale
        for b in self.blocks: x = x+b(x)
        return self.last(x)

class InfS(Subscriber):
    "An infinite gradient in process 1"
    order = -50
    def after_backward(self, learn):
        if rank()==1 and learn.batch_idx==3: local(next(learn.model.parameters()).grad).fill_(torch.inf)

@pytest.mark.slow
@pytest.mark.parametrize('extra', ['amp', 'skip'])
def test_sharded_with_an_infinite_gradient(tmp_path, extra):
    a,b = run(tmp_path, 2, extra=extra, n=641, shard=True, subs=[InfS()])
    assert weights_differ(a, b)==0 and a['history']==b['history'] and a['history'][-1]['accuracy'] > .6

def test_sharded_with_a_nan(tmp_path):
    def f():
        x[100] = float('nan')
        job(tmp_path/'x', n=640, shuffle=False, subs=[NaNStopS()], epochs=1, shard=True)
    codes,outs,s = forked(f, 2, tmp_path)
    assert codes==[1, 1] and all("the loss (nan) isn't finite" in o for o in outs), outs

def test_shards_that_nobody_makes_whole(tmp_path):
    def f():
        distributed.start()
        model = fully_shard(nn.Linear(64, 10))
        dls = DataLoaders.from_datasets(torch.utils.data.TensorDataset(x[:64], y[:64]), None, 32)
        Learner(model, dls, F.cross_entropy, torch.optim.SGD, .1, [CheckpointS(tmp_path/str(rank()))]).fit(1, valid=False)
    refused(tmp_path, 'DistributedS(shard=True) makes whole ones', f=f)

class OwnFit(Model):
    def __init__(self):
        super().__init__()
        self.net = nn.Linear(64, 10)
    def forward(self, x, targets=None): return self.net(x), None if targets is None else F.cross_entropy(self.net(x), targets)
    def fetch_optimizer(self): return torch.optim.Adam(self.parameters(), lr=1e-2)
def test_a_model_that_trains_itself(tmp_path):
    def f():
        set_seed(0)
        m = OwnFit()
        m.fit(list(zip(x[:301], y[:301])), epochs=2, batch_size=50, subs=[DistributedS()], progress=False)
        torch.save(dict(w=m.state_dict(), history=[{k: v for k,v in r.items() if k!='seconds'} for r in m.learn.history]), tmp_path/f'{distributed.world()}-{rank()}.pt')
    for n in (1, 2): assert not any((out := forked(f, n, tmp_path/'out'))[0]), out
    a,b,c = [torch.load(tmp_path/f, weights_only=False) for f in ('1-0.pt', '2-0.pt', '2-1.pt')]
    same(a, b)
    assert weights_differ(b, c)==0

# ---- with torchrun, as a user would: slow
script = """import sys; sys.path[:0] = [{tests!r}, {root!r}]
import test_distributed as t
from contextlib import nullcontext
from pathlib import Path
if __name__=='__main__': {call}
"""
def torchrun(tmp_path, call, *flags):
    f = tmp_path/'train.py'
    f.write_text(script.format(tests=str(root/'tests'), root=str(root), call=call))
    cmd = [sys.executable, '-m', 'torch.distributed.run', '--nproc_per_node', '2', '--rdzv-backend', 'c10d', '--rdzv-endpoint', 'localhost:0', *flags, f]
    return subprocess.run([str(o) for o in cmd], capture_output=True, text=True, timeout=150, env=dict(os.environ, PYTHONPATH=str(root)))

@pytest.mark.slow
def test_torchrun_starts_again_after_a_kill(tmp_path):
    "Process 1 is killed in the first attempt; the second ends as if nothing had been"
    kw = 'n=700, epochs=2, drop=.3'
    res = torchrun(tmp_path, f"t.job({str(tmp_path/'again')!r}, {kw}, subs=[t.CheckpointS({str(tmp_path/'c')!r}, every=5), *([t.DieS(t.kill)] if t.os.environ['TORCHELASTIC_RESTART_COUNT']=='0' else [])])", '--max-restarts', '2')
    assert res.returncode==0 and 'Resumed from' in res.stdout, res.stdout+res.stderr
    straight = run(tmp_path, 2, n=700, drop=.3, subs=[CheckpointS(tmp_path/'d', every=5)])
    for r,a in enumerate(straight):
        b = torch.load(tmp_path/f'again-{r}.pt', weights_only=False)
        assert weights_differ(a, b)==0 and a['history']==b['history']

@pytest.mark.slow
def test_torchrun_ends_with_the_error_that_came_first(tmp_path):
    res = torchrun(tmp_path, "t.job('x', subs=[t.DieS(t.broken)])")
    assert res.returncode and 'ValueError: a row is broken' in '\n'.join(res.stderr.splitlines()[-12:]), res.stderr

@pytest.mark.parametrize('e', [CancelFitException(), ValueError('my own check')])
def test_a_fit_that_is_left_before_it_begins(e):
    "A subscriber before DistributedS may cancel the fit, or raise; that reaches the caller"
    class FirstS(Subscriber):
        order = DistributedS.order-1
        def before_fit(self, learn): raise e
    learn = Learner(torch.nn.Linear(1, 1), SimpleNamespace(train=[(torch.ones(2, 1), torch.ones(2, 1))], valid=None), F.mse_loss, torch.optim.SGD, .1, [DistributedS(), FirstS()])
    with pytest.raises(ValueError, match='my own') if isinstance(e, ValueError) else nullcontext(): learn.fit(1, valid=False)
