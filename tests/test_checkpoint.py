"A fit leaves no trace, however it ends: subscribers, modes, gradients, hooks, handlers, bars, workers. What needs no processes is in nbs/42_checkpoint.ipynb."
import multiprocessing, os, resource, signal, threading, time, warnings
from contextlib import redirect_stdout
from functools import partial
from io import StringIO
from types import SimpleNamespace
import pytest, torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, Dataset
from nntrain.acceleration import EMAS, GradAccumS, GradClipS
from nntrain.checkpoint import CheckpointS, read_checkpoint
from nntrain.core import set_seed
from nntrain.dataloaders import DataLoaders
from nntrain.events import CancelBatchException, CancelEpochException, CancelFitException, Subscriber
from nntrain.learner import Learner
from nntrain.schedule import Trace, SchedulerS
from nntrain.saving import files
from nntrain.saving.files import BadCheckpoint, read_file, write_file
from nntrain.saving.state import on_cpu, run_state
from nntrain.subscribers import MetricsS, ProgressS
from nntrain.verify import first_difference

pytestmark = pytest.mark.filterwarnings('ignore:.*fork.*:DeprecationWarning', 'ignore:.*worker processes in total.*:UserWarning')

class Points(Dataset):
    def __init__(self, bad=None): self.bad = bad
    def __len__(self): return 64
    def __getitem__(self, i):
        if i==self.bad: raise LookupError('no such file')
        return torch.tensor([i/64, 1-i/64]),i%2

class HookS(Subscriber):
    "Holds a hook for as long as the fit lasts"
    handle = None
    def before_fit(self, learn): self.handle = learn.model[0].register_forward_hook(lambda *args: None)
    def cleanup_fit(self, learn):
        if self.handle: self.handle.remove()

class RaiseS(Subscriber):
    def __init__(self, event, exc): self.exc = exc; setattr(self, event, self.go)
    def go(self, learn):
        if learn.epoch==1: raise self.exc

def get_learner(tmp_path, bad=None, ours=False):
    set_seed(0)
    if ours: dls = DataLoaders.from_datasets(Points(bad), Points(), 8, cache=False, num_workers=1)
    else: dls = SimpleNamespace(train=DataLoader(Points(bad), 8, num_workers=1), valid=DataLoader(Points(), 8, num_workers=1))
    return Learner(nn.Sequential(nn.Linear(2,4), nn.BatchNorm1d(4), nn.Linear(4,2)), dls, F.cross_entropy, torch.optim.SGD, .1,
                   [MetricsS(), HookS(), CheckpointS(tmp_path, every=3)])

def trace(learn):
    "What a fit must leave as it was"
    return dict(subs=list(learn.subs), modes=[m.training for m in learn.model.modules()], grads=[p.grad for p in learn.model.parameters()], grad_mode=torch.is_grad_enabled(),
                hooks=[len(m._forward_hooks) for m in learn.model.modules()], handlers=[signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT)],
                output=[vars(s).get('output') for s in learn.subs], step=vars(learn).get('step'))

def workers():
    "Live children, given a moment to end"
    end = time.monotonic()+5
    while multiprocessing.active_children() and time.monotonic() < end: time.sleep(.01)
    return multiprocessing.active_children()

ENDS = [None, CancelFitException(), CancelEpochException(), CancelBatchException(), ValueError('oops'), KeyboardInterrupt(), SystemExit(3)]
@pytest.mark.parametrize('exc', ENDS, ids=lambda e: type(e).__name__)
@pytest.mark.parametrize('event', ['after_loss', 'cleanup_batch', 'after_epoch'])
def test_a_fit_leaves_no_trace(tmp_path, exc, event):
    if isinstance(exc, CancelBatchException) and event=='after_epoch' or isinstance(exc, (CancelFitException, CancelEpochException, CancelBatchException)) and event.startswith('cleanup'): return
    learn = get_learner(tmp_path)
    learn.model.eval(); learn.model[1].train()
    before,held = trace(learn),None
    with redirect_stdout(StringIO()):
        try: learn.fit(2, subs=[ProgressS(display='terminal'), *([RaiseS(event, exc)] if exc else [])])
        except type(exc or 0) as e: held = e # and with it all the frames that it passed through
        assert held is (None if isinstance(exc, (CancelFitException, CancelEpochException, CancelBatchException)) else exc)
        assert trace(learn)==before and not workers()
        assert (learn.epochs, learn.dl in (learn.dls.train, learn.dls.valid))==(range(2), True)
        if held is not None: assert f'nntrain: in {event} of RaiseS' in held.__notes__
        learn.fit(2) # the next one works
    assert trace(learn)==before and not workers()

@pytest.mark.parametrize('ours', [False, True])
def test_an_error_in_a_worker(tmp_path, ours):
    learn = get_learner(tmp_path, bad=40, ours=ours)
    before = trace(learn)
    with redirect_stdout(StringIO()), pytest.raises((LookupError, ValueError), match='no such file') as e: learn.fit(1)
    assert not workers() and trace(learn)==before
    assert any('nntrain: in epoch 0, training batch' in n for n in e.value.__notes__)

def test_persistent_workers_stay(tmp_path):
    learn = get_learner(tmp_path)
    learn.dls.train = DataLoader(Points(), 8, num_workers=1, persistent_workers=True)
    with redirect_stdout(StringIO()): learn.fit(2)
    assert len(multiprocessing.active_children())==1
    del learn
    assert not workers()

@pytest.mark.parametrize('ours', [False, True])
def test_predictions_in_the_middle_of_a_validation(tmp_path, ours):
    "Workers that stay serve one pass at a time: another one gets workers of its own"
    class AskS(Subscriber):
        def __init__(self): self.got = []
        def after_batch(self, learn):
            if not learn.training and learn.batch_idx==1: self.got.append(len(learn.get_preds()))
    learn = get_learner(tmp_path)
    kw = dict(num_workers=1, persistent_workers=True)
    learn.dls = DataLoaders.from_datasets(Points(), Points(), 8, cache=False, **kw) if ours else SimpleNamespace(train=DataLoader(Points(), 8), valid=DataLoader(Points(), 8, **kw))
    learn.subs,learn.quiet = [ask := AskS()],True
    learn.fit(2)
    assert ask.got==[64, 64] and [r['samples'] for r in learn.history]==[64]*4
    del learn, ask
    assert not workers()

def quiet(subs, epochs, cycle=False):
    set_seed(0)
    dls = DataLoaders.from_datasets(Points(), Points(), 8, seed=0)
    learn = Learner(nn.Sequential(nn.Linear(2,4), nn.Tanh(), nn.Linear(4,2)), dls, F.cross_entropy, torch.optim.SGD, .5, subs)
    learn.quiet = True
    (learn.fit_one_cycle if cycle else learn.fit)(epochs)
    return learn

def test_the_best_checkpoint_holds_the_weights_that_were_the_best(tmp_path):
    "Those of the average, if validation used it; a run resumes from the others"
    learn = quiet([EMAS(.9), CheckpointS(tmp_path, monitor='valid_loss', keep=9)], 3)
    best = min(r['loss'] for r in learn.history if r['mode']=='eval')
    other = quiet([], 0)
    other.load(tmp_path/'best.pt')
    assert other.validate()['loss']==pytest.approx(best, rel=1e-6)
    parts = read_file(tmp_path/'best.pt')
    assert all(not torch.equal(parts['validated'][k], parts['model'][k]) for k in parts['model'])
    other.load(tmp_path/'checkpoint-000003.pt')
    assert all(torch.equal(p, learn.subs[0].trained[k]) for k,p in other.model.named_parameters()) and other.validate()['loss']!=pytest.approx(best, rel=1e-6)
    again = quiet([EMAS(.9), CheckpointS(tmp_path)], 3) # nothing is left to do, and the average is in the model as after the fit itself
    assert all(torch.equal(a, b) for a,b in zip(again.model.parameters(), learn.model.parameters()))
    quiet([CheckpointS(tmp_path/'raw', monitor='valid_loss')], 1) # without an average it is the same file under two names
    assert (tmp_path/'raw'/'best.pt').read_bytes()==(tmp_path/'raw'/'checkpoint-000001.pt').read_bytes()
    for mon in ('train_loss', 'valid_loss'): quiet([EMAS(.9), CheckpointS(tmp_path/mon, monitor=mon)], 1)
    assert [('validated' in read_file(tmp_path/mon/'best.pt')) for mon in ('train_loss', 'valid_loss')]==[False, True]

def test_a_schedule_that_has_ended_is_not_gone_on_with(tmp_path):
    "And says so before the first step"
    quiet([CheckpointS(tmp_path)], 2, cycle=True)
    with pytest.raises(ValueError, match='schedule ends after 16 steps, and this fit takes 32'), pytest.warns(UserWarning, match='goes on with epochs=4'): quiet([CheckpointS(tmp_path)], 4, cycle=True)
    with pytest.warns(UserWarning, match='epochs=1'): quiet([CheckpointS(tmp_path)], 1, cycle=True)

@pytest.mark.parametrize('name', ['{}.pt', '00000{}.pt', 'checkpoint-{}.pt', 'best-{}.pt'])
def test_files_of_your_own_in_the_folder_stay(tmp_path, name):
    "Weights that are saved there by epoch, in a run that is stopped and goes on"
    class SaveS(Subscriber):
        def after_epoch(self, learn):
            if learn.training: learn.save(tmp_path/name.format(learn.epoch))
    for epochs in (3, 5):
        with warnings.catch_warnings(): warnings.simplefilter('ignore'); quiet([CheckpointS(tmp_path, keep=1), SaveS()], epochs)
    assert sorted(f.name for f in tmp_path.iterdir())==sorted(['checkpoint-000005.pt', *(name.format(i) for i in range(5))])
    with pytest.warns(UserWarning, match='1 checkpoints of an earlier run were moved'): quiet([CheckpointS(tmp_path, resume=False), SaveS()], 1)
    assert [f.name for f in (tmp_path/'old-1').iterdir()]==['checkpoint-000005.pt'] and len(list(tmp_path.glob('*.pt')))==6

def test_a_best_of_your_own_stays(tmp_path):
    quiet([], 1).save(tmp_path/'best.pt')
    before = (tmp_path/'best.pt').read_bytes()
    with pytest.raises(FileExistsError, match="isn't a checkpoint"): quiet([CheckpointS(tmp_path, monitor='valid_loss')], 1)
    assert (tmp_path/'best.pt').read_bytes()==before and len(list(tmp_path.iterdir()))==1
    quiet([CheckpointS(tmp_path)], 1) # without a monitor there is none of ours
    assert (tmp_path/'best.pt').read_bytes()==before

def test_where_a_file_cant_have_two_names(tmp_path, monkeypatch):
    "The best one is a copy"
    monkeypatch.setattr(os, 'link', lambda *args: (_ for _ in ()).throw(PermissionError(1, 'Operation not permitted')))
    quiet([CheckpointS(tmp_path, monitor='valid_loss')], 1)
    assert (tmp_path/'best.pt').read_bytes()==(tmp_path/'checkpoint-000001.pt').read_bytes()

class Hits:
    "A metric without `state_dict`"
    def __init__(self): self.reset()
    def reset(self): self.hits = self.n = 0
    def update(self, preds, y): self.hits += int((preds.argmax(1)==y).sum()); self.n += len(y)
    def compute(self): return self.hits/max(self.n, 1)

def test_metrics_are_known_by_name(tmp_path):
    "A subscriber more in the list, and the epoch that was interrupted has the same row"
    class StopS(Subscriber):
        def after_batch(self, learn):
            if learn.batch_idx==5: raise InterruptedError
    def row(learn): return {k: v for k,v in learn.history[0].items() if k!='seconds'}
    whole = quiet([MetricsS(acc=Hits())], 1)
    with pytest.raises(InterruptedError): quiet([MetricsS(acc=Hits()), CheckpointS(tmp_path, every=4), StopS()], 1)
    assert row(quiet([Subscriber(), ProgressS(display='log'), MetricsS(acc=Hits()), CheckpointS(tmp_path)], 1))==row(whole)

def count(x): return sum(map(count, x.values() if isinstance(x, dict) else x)) if isinstance(x, (dict, list, tuple)) else getattr(x, 'nelement', lambda: 1)()

@pytest.mark.parametrize('sub', [partial(GradClipS, 1.), partial(GradAccumS, 2), partial(EMAS, .9), partial(SchedulerS, partial(torch.optim.lr_scheduler.StepLR, step_size=10**9))])
def test_a_long_run_has_no_larger_checkpoints(monkeypatch, sub):
    "What is saved after 2,000 steps is as much as after 400, with records for plots that hold 64 values instead of 8,192"
    monkeypatch.setattr(Trace, 'most', 64)
    sizes = {}
    class CountS(Subscriber):
        order = 2000
        def after_batch(self, learn):
            if learn.training and (n := learn.batch_idx+1) in (400, 2000): sizes[n] = count(run_state(learn))
    model = nn.Linear(1, 1)
    learn = Learner(model, SimpleNamespace(train=[(torch.ones(1,1), torch.ones(1,1))]*2000, valid=None), F.mse_loss, torch.optim.SGD, 1e-3, [sub(), CountS()])
    learn.quiet = True
    learn.fit(1, valid=False)
    assert sizes[2000] <= sizes[400]+330, sizes # the mean of the loss holds up to 256 values, a record 64

def test_nan_after_a_resume_goes_back_to_the_resumed_weights(tmp_path):
    "Not to those that the new process was born with"
    x, y = torch.randn(64, 4), torch.arange(64)%3
    class SpoilS(Subscriber):
        def before_batch(self, learn): learn.batch = learn.batch[0]*float('nan'),learn.batch[1]
    def learner(seed):
        torch.manual_seed(seed)
        learn = Learner(nn.Linear(4, 3), SimpleNamespace(train=list(zip(x.split(16), y.split(16))), valid=None), F.cross_entropy, partial(torch.optim.SGD, momentum=.9), .1)
        learn.quiet = True
        return learn
    first = learner(0)
    first.fit(1, valid=False, subs=[CheckpointS(tmp_path)])
    with warnings.catch_warnings():
        warnings.simplefilter('ignore') # more epochs than the run was begun with
        second = learner(1)
        with pytest.raises(FloatingPointError, match='back at the beginning of the fit'): second.fit(2, valid=False, subs=[CheckpointS(tmp_path), SpoilS()])
    assert torch.equal(second.model.weight, first.model.weight) and not torch.equal(learner(1).model.weight, first.model.weight)
    assert torch.equal(*(o.opt.state_dict()['state'][0]['momentum_buffer'] for o in (first, second)))

def test_a_tilde_is_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv('HOME', str(tmp_path)); monkeypatch.setenv('USERPROFILE', str(tmp_path)); monkeypatch.chdir(tmp_path)
    learn = quiet([CheckpointS('~/run')], 1)
    learn.save('~/w.pt'); learn.load('~/w.pt')
    assert sorted(p.name for p in tmp_path.iterdir())==['run', 'w.pt'] and (tmp_path/'run'/'checkpoint-000001.pt').is_file()

def test_the_best_goes_by_the_name(tmp_path):
    "The best accuracy is the highest; a name that says neither needs `mode`"
    assert [CheckpointS(tmp_path, monitor=m).sign for m in ('valid_loss', 'valid_accuracy', 'train_auroc', None)]==[-1, 1, 1, -1]
    assert CheckpointS(tmp_path, monitor='valid_x', mode='max').sign==1
    for bad in (dict(monitor='valid_x'), dict(monitor='valid_loss', mode='most')):
        with pytest.raises(ValueError, match='mode'): CheckpointS(tmp_path, **bad)

class StopS(Subscriber):
    "Raises, as a kill would end the run, in an event of an epoch and batch"
    def __init__(self, event, epoch=0, batch=5, exc=InterruptedError): self.at,self.exc = (epoch, batch),exc; setattr(self, event, self.go)
    def go(self, learn):
        if (learn.epoch, learn.batch_idx)==self.at: raise self.exc

def weights(learn): return torch.cat([p.detach().flatten() for p in learn.model.parameters()])
def rows(learn): return [{k: v for k,v in r.items() if k!='seconds'} for r in learn.history]

def test_one_run_at_a_time(tmp_path):
    "The second is told who has the folder, before anything in it is touched; after the first it may have it"
    class SecondS(Subscriber):
        def after_epoch(self, learn):
            if learn.epoch: return
            before = sorted(os.listdir(tmp_path))
            with pytest.raises(BlockingIOError, match=f'in use by process {os.getpid()} on .* since'): quiet([CheckpointS(tmp_path, resume=False)], 1)
            assert sorted(os.listdir(tmp_path))==before
            assert not (pid := os.fork()) or os.waitpid(pid, 0) # a child's end changes nothing
            if not pid: os._exit(0)
    quiet([CheckpointS(tmp_path), SecondS()], 2)
    with pytest.raises(InterruptedError): quiet([CheckpointS(tmp_path/'b'), StopS('after_batch')], 2)
    quiet([CheckpointS(tmp_path/'b')], 2)
    assert not list(tmp_path.rglob('.*'))
    with pytest.raises(ValueError, match='two CheckpointS'): quiet([CheckpointS(tmp_path/'c'), CheckpointS(tmp_path/'d')], 1)

@pytest.mark.parametrize('stop', [None, 'after_epoch'])
def test_a_fit_that_is_done_left_a_trained_model(tmp_path, stop):
    "Between two fits of a script that is run again, although the first one isn't; the first may end early"
    def script(folder, seed, subs=()):
        set_seed(seed)
        ckpt,learn = CheckpointS(folder, keep=1),quiet([], 0)
        with torch.no_grad():
            for p in learn.model.parameters(): p.mul_(seed)
        early = [StopS(stop, 1, 7, CancelFitException)] if stop else []
        learn.fit(3, subs=[ckpt, EMAS(.9), *early])
        between = weights(learn),rows(learn),learn.validate()
        learn.fit(3, lr=.1, subs=[ckpt, *subs])
        return *between,weights(learn),rows(learn)
    whole = script(tmp_path/'whole', 1)
    with pytest.raises(InterruptedError): script(tmp_path/'run', 1, [StopS('after_batch', 2)])
    again = script(tmp_path/'run', 2)
    for a,b in zip(whole, again): assert torch.equal(a, b) if isinstance(a, torch.Tensor) else a==b or a['loss']==b['loss']
    assert len(list((tmp_path/'run').glob('*.pt')))==2 # the newest, and how the second one began

def test_newer_work_is_not_thrown_away(tmp_path):
    "By a folder that holds a finished run"
    learn = quiet([CheckpointS(tmp_path)], 2)
    learn.subs = []
    learn.fit(4)
    trained = weights(learn)
    with pytest.raises(ValueError, match='8 passes of the learner .* resume=False'): learn.fit(2, subs=[CheckpointS(tmp_path)])
    assert torch.equal(weights(learn), trained) and len(learn.history)==12
    other = quiet([], 1)
    other.history[0]['loss'] += .1
    with pytest.raises(ValueError, match='1 passes of the learner'): other.fit(2, subs=[CheckpointS(tmp_path)])
    with pytest.warns(UserWarning, match='goes on from that file all the same'): other.fit(2, subs=[CheckpointS(tmp_path, changed='allow')])
    assert len(other.history)==4

def test_a_run_that_was_interrupted_goes_on_in_the_same_learner(tmp_path):
    "What it did since the last checkpoint comes again"
    learn = quiet([], 0)
    with pytest.raises(InterruptedError): learn.fit(3, subs=[CheckpointS(tmp_path, every=100), StopS('after_batch', 2)])
    with pytest.raises(InterruptedError): learn.fit(3, subs=[CheckpointS(tmp_path, every=5), StopS('after_batch', 1)])
    assert len(learn.history)>2
    learn.fit(3, subs=[CheckpointS(tmp_path)])
    assert [r['epoch'] for r in learn.history[-6:]]==[0, 0, 1, 1, 2, 2]

def test_an_error_in_a_validation_costs_no_epoch(tmp_path):
    "Such as a NaN in its data: the epoch was trained well, and is saved"
    def learner(bad):
        learn = quiet([], 0)
        x = torch.rand(16, 2)
        x[3,0] = float('nan') if bad else .5
        learn.dls = SimpleNamespace(train=learn.dls.train, valid=[(x, torch.arange(16)%2)])
        return learn
    learn = learner(True)
    with pytest.raises(FloatingPointError): learn.fit(2, subs=[CheckpointS(tmp_path)])
    assert read_file(tmp_path/'checkpoint-000001.pt')['at']==[0, 'eval', 0]
    steps = []
    class StepS(Subscriber):
        def after_step(self, learn): steps.append(learn.epoch)
    again,whole = learner(False),learner(False)
    with pytest.warns(UserWarning, match='rows.valid'): again.fit(2, subs=[CheckpointS(tmp_path, changed='allow'), StepS()])
    whole.fit(2)
    assert steps==[1]*8 and torch.equal(weights(again), weights(whole)) and [r['mode'] for r in again.history]==['train', 'eval']*2

def test_what_cant_be_stored_is_named_before_the_first_batch(tmp_path):
    class ClockS(Subscriber):
        def state_dict(self): return dict(t=[self])
        def load_state_dict(self, state): pass
    with pytest.raises(TypeError, match=r"subs\['ClockS'\]\['t'\]\[0\] is a ClockS"): quiet([CheckpointS(tmp_path), ClockS(), StopS('before_batch', 0, 0)], 1)

def test_wrong_parts_of_a_whole_file_are_named(tmp_path):
    "Its checksum is right, but somebody else wrote it"
    with pytest.raises(InterruptedError): quiet([CheckpointS(tmp_path, every=3), StopS('after_batch')], 2)
    f = tmp_path/'checkpoint-000001.pt'
    state = read_file(f)
    wrong = dict(at='x', history=5, rng=dict(python=1, numpy=2, torch=3), opt={}, subs=7, n_epochs='a', fits='0', run=None, best='x', data=dict(train=dict(seed='a')))
    for k,v in wrong.items():
        write_file({**state, k: v}, f)
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            with pytest.raises(BadCheckpoint, match=f'part {k}'): quiet([CheckpointS(tmp_path, every=3)], 2)

def test_a_shorter_stream_is_seen(tmp_path):
    def learner(n):
        learn = quiet([], 0)
        learn.dls = SimpleNamespace(train=DataLoader(Stream(n), 8), valid=None)
        return learn
    class Stream(torch.utils.data.IterableDataset):
        def __init__(self, n): self.n = n
        def __iter__(self): return iter([(torch.tensor([i/64, 1-i/64]), i%2) for i in range(self.n)])
    with pytest.raises(InterruptedError): learner(64).fit(1, valid=False, subs=[CheckpointS(tmp_path, every=6), StopS('after_batch', 0, 6)])
    with pytest.raises(ValueError, match=r'Stream\(n=64\), is Stream\(n=16\) now'): learner(16).fit(1, valid=False, subs=[CheckpointS(tmp_path)])
    with pytest.warns(UserWarning, match='of another run'), pytest.raises(ValueError, match='has 2 batches now, and the run was saved after 6'):
        learner(16).fit(1, valid=False, subs=[CheckpointS(tmp_path, changed='allow')])

@pytest.mark.parametrize('stop', [KeyboardInterrupt(), OSError(28, 'No space left on device')])
def test_a_save_that_ends_half_way_leaves_the_one_before(tmp_path, monkeypatch, stop):
    "And nothing else: a second Ctrl-C in a save is a KeyboardInterrupt, not an error of torch's"
    saves,real = [],torch.save
    class Stops:
        def __init__(self, f): self.f,self.flush,self.n = f,f.flush,0
        def write(self, b):
            self.n += 1
            if self.n==9: raise stop
            return self.f.write(b)
    monkeypatch.setattr(torch, 'save', lambda state, f: (saves.append(f), real(state, Stops(f) if len(saves)==2 else f)))
    with pytest.raises(type(stop)): quiet([CheckpointS(tmp_path)], 3)
    assert [f.name for f in tmp_path.iterdir()]==['checkpoint-000001.pt']
    whole,again = quiet([], 3),quiet([CheckpointS(tmp_path)], 3)
    assert rows(again)==rows(whole) and torch.equal(weights(again), weights(whole))

def peak_memory(d, subs, epochs=2):
    "MB that a fit of a 34 MB model with Adam needs at most, in a process of its own"
    def fit():
        x = torch.ones(2, 2912)
        learn = Learner(nn.Linear(2912, 2912, bias=False), SimpleNamespace(train=[(x, x)]*3, valid=None), F.mse_loss, torch.optim.Adam, 1e-3, subs)
        learn.quiet,before = True,resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        try: learn.fit(epochs, valid=False)
        except InterruptedError: pass
        return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss-before)/1024
    if not (pid := os.fork()):
        try: (d/'peak').write_text(str(fit()))
        finally: os._exit(0)
    os.waitpid(pid, 0)
    text = (d/'peak').read_text()
    (d/'peak').unlink() # or an error in the next process would go unseen
    return float(text)

def test_a_resume_takes_no_more_memory_than_training(tmp_path):
    "In the middle of a pass: two copies of the state at once would be more"
    ckpt = CheckpointS(tmp_path/'run', every=4, keep=1)
    alone,_,resumed = peak_memory(tmp_path, []),peak_memory(tmp_path, [ckpt, StopS('after_batch', 1, 1)]),peak_memory(tmp_path, [ckpt])
    assert 100 < alone and resumed <= 1.1*alone, (alone, resumed)
    assert read_file(max((tmp_path/'run').glob('*.pt')))['steps']==6

BACK = partial(CheckpointS, background=True)
def slow_writes(monkeypatch, before, after=lambda f: None):
    "From now on, `before` is called with the name of each file before it is written, and `after` behind it"
    real = files.write_file
    monkeypatch.setattr(files, 'write_file', lambda state, f: (before(f), real(state, f), after(f)))

def test_training_goes_on_while_a_file_is_written(tmp_path, monkeypatch):
    "One at a time, the one before stays until then, and what is written is the state at the save"
    going,log = threading.Event(),[]
    class GoS(Subscriber):
        order = -2000 # before the next save
        def after_batch(self, learn):
            if learn.batch_idx==3: going.set()
    def before(f):
        assert going.wait(20), 'the training waited'
        log.append(sorted(o.name for o in tmp_path.glob('*.pt'))+[f'+ {f.name}'])
    slow_writes(monkeypatch, before, lambda f: log.append(f'{f.name} done'))
    quiet([BACK(tmp_path, every=2, keep=1), GoS()], 1)
    names = [f'checkpoint-00000{i}.pt' for i in range(6)]
    assert log[:4]==[['+ '+names[1]], f'{names[1]} done', [names[1], '+ '+names[2]], f'{names[2]} done']
    assert [f.name for f in tmp_path.iterdir()]==names[5:], 'the end waits for the last one, and the lock is gone'
    monkeypatch.undo()
    whole = quiet([CheckpointS(tmp_path/'whole', every=2, keep=9)], 1)
    slow_writes(monkeypatch, lambda f: time.sleep(.02))
    quiet([BACK(tmp_path/'back', every=2, keep=9)], 1)
    monkeypatch.undo()
    for f in sorted((tmp_path/'whole').glob('*.pt')):
        a,b = read_checkpoint(f),read_checkpoint(tmp_path/'back'/f.name)
        for s in (a, b): s.pop('seconds'); s['history'] = rows(SimpleNamespace(history=s['history']))
        assert first_difference(a, b) is None
    assert rows(whole)==rows(quiet([CheckpointS(tmp_path/'back')], 1))

def test_a_copy_makes_the_same_file(tmp_path):
    "Also of weights that are tied"
    model = nn.Sequential(nn.Linear(9, 9), nn.Linear(9, 9))
    model[1].weight = model[0].weight
    state = dict(model=model.state_dict(), history=[dict(loss=1.)], at=(1, 'x'), n={2})
    write_file(state, tmp_path/'a'); write_file(on_cpu(state), tmp_path/'b')
    assert (tmp_path/'a').read_bytes()==(tmp_path/'b').read_bytes()

@pytest.mark.parametrize('n,at', [(1, (0, 3)), (5, (0, 7))], ids=['at the next save', 'at the end'])
def test_an_error_in_the_background_is_raised(tmp_path, monkeypatch, n, at):
    "And never lost; the files before are whole, and the run goes on from them"
    seen,last = [],[]
    def before(f):
        seen.append(f)
        if len(seen)==n: raise OSError(28, 'No space left on device')
    class LastS(Subscriber):
        def after_step(self, learn): last[:] = [(learn.epoch, learn.batch_idx)]
    slow_writes(monkeypatch, before)
    with pytest.raises(OSError, match='No space left'): quiet([BACK(tmp_path, every=2, keep=9), LastS()], 1)
    assert last==[at] and len(os.listdir(tmp_path))==n-1
    monkeypatch.undo()
    assert rows(quiet([BACK(tmp_path)], 1))==rows(quiet([], 1))

@pytest.mark.parametrize('exc', [InterruptedError, KeyboardInterrupt, CancelFitException, signal.SIGTERM], ids=str)
def test_every_end_waits_for_the_file(tmp_path, monkeypatch, exc):
    slow_writes(monkeypatch, lambda f: time.sleep(.2))
    class EndS(Subscriber):
        def after_batch(self, learn):
            if learn.batch_idx==4: signal.raise_signal(exc) if isinstance(exc, signal.Signals) else (_ for _ in ()).throw(exc)
    ckpt = BACK(tmp_path, every=2, grace=60.) # however busy the machine is
    try: quiet([ckpt, EndS()], 2)
    except (InterruptedError, KeyboardInterrupt, SystemExit) as e: assert isinstance(e, SystemExit if exc==signal.SIGTERM else exc)
    there = sorted(os.listdir(tmp_path))
    assert there==[f'checkpoint-00000{i+1}.pt' for i in range(3 if exc==signal.SIGTERM else 2)] and not any('ThreadPool' in t.name for t in threading.enumerate())
    monkeypatch.undo()
    if exc is not CancelFitException: assert rows(quiet([ckpt], 2))==rows(quiet([], 2))

def test_a_best_file_in_the_background(tmp_path):
    a,b = (quiet([EMAS(.9), cls(tmp_path/name, monitor='valid_loss', keep=2)], 3) for name,cls in (('a', CheckpointS), ('b', BACK)))
    assert sorted(os.listdir(tmp_path/'a'))==sorted(os.listdir(tmp_path/'b'))
    parts = [read_file(tmp_path/d/'best.pt') for d in 'ab']
    assert first_difference(*(dict(m=p['model'], v=p['validated'], at=p['at']) for p in parts)) is None

@pytest.mark.parametrize('n_workers', [0, 2])
def test_killed_while_a_thread_writes(tmp_path, monkeypatch, n_workers):
    "With workers, which are forked meanwhile, and end with the process"
    def fit(subs):
        set_seed(0)
        dls = DataLoaders.from_datasets(Points(), Points(), 8, seed=0, num_workers=n_workers, cache=False)
        learn = Learner(nn.Linear(2,2), dls, F.cross_entropy, partial(torch.optim.SGD, momentum=.9), .5, subs)
        learn.quiet = True
        learn.fit(2)
        return learn
    n = []
    def before(f):
        n.append(f)
        if len(n)==6: (tmp_path/'run'/'.checkpoint-000006.pt.1234abcd.tmp').write_bytes(b'PK'); os.kill(os.getpid(), signal.SIGKILL)
    with monkeypatch.context() as m:
        slow_writes(m, before)
        if not (pid := os.fork()):
            try: fit([BACK(tmp_path/'run', every=2)])
            finally: os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])==-signal.SIGKILL
    a,b = fit([]),fit([BACK(tmp_path/'run', every=2)])
    assert rows(a)==rows(b) and torch.equal(weights(a), weights(b)) and not list((tmp_path/'run').glob('.*'))
